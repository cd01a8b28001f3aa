// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// tasksCommand is `caddy agentfm tasks`.
func tasksCommand() *cobra.Command {
	cmd := group("tasks", "Lists, shows and cancels submitted tasks, and fetches what they leave", `
Uses the API of a gateway with your key, which sees its own tasks:

	export AGENTFM_GATEWAY_URL=https://gateway.example.com
	export AGENTFM_API_KEY=afm_...
	caddy agentfm tasks list --status running
	caddy agentfm tasks logs -f task_...`)
	cmd.AddCommand(tasksListCommand(), tasksShowCommand(), tasksCancelCommand(), tasksLogsCommand(), tasksArtifactsCommand())
	return cmd
}

// group returns a command that has others below it.
func group(name, short, long string) *cobra.Command {
	return &cobra.Command{
		Use: name + " <command>", Short: short, Long: long, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
}

// taskRow returns the fields of the table.
func taskRow(t client.Task) []string {
	return []string{t.ID, string(t.Status), string(t.Reason), t.Agent, t.Model, when(t.Created), took(t.Started, t.Ended)}
}

// when writes a time; empty for none.
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// took writes the time from one to the other, where both are known.
func took(from, to time.Time) string {
	if from.IsZero() || to.IsZero() {
		return ""
	}
	return to.Sub(from).Round(10 * time.Millisecond).String()
}

// Numbers of tasks in one list, and in one answer of a gateway.
const (
	defaultList = 50
	maxList     = 10_000
	listPage    = 200
)

// tasksListCommand is `caddy agentfm tasks list`.
func tasksListCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:               "list [--status <status>] [--limit <n>] [--json] [--gateway <url>]",
		Short:             "Lists your tasks, the newest first",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client.Client, _ []string) error {
			status, _ := cmd.Flags().GetString("status")
			head := []string{"TASK", "STATUS", "REASON", "AGENT", "MODEL", "SUBMITTED", "TOOK"}
			return listTasks(ctx, cmd, c, client.TaskQuery{Status: client.TaskStatus(status)}, head, taskRow)
		}),
	})
	cmd.Flags().String("status", "", "Only those that are queued, running, completed, failed or cancelled")
	completeFlag(cmd, "status", words("queued", "running", "completed", "failed", "cancelled"))
	listFlags(cmd)
	return cmd
}

// listFlags gives a command the flags of lists.
func listFlags(cmd *cobra.Command) {
	cmd.Flags().IntP("limit", "n", defaultList, "How many, at most")
	jsonFlag(cmd)
}

// listTasks prints the tasks of a query for which row has fields.
func listTasks(ctx context.Context, cmd *cobra.Command, c *client.Client, query client.TaskQuery, head []string, row func(client.Task) []string) error {
	limit, _ := cmd.Flags().GetInt("limit")
	if limit < 1 || limit > maxList {
		return usage(fmt.Errorf("--limit %d: want 1 to %d", limit, maxList))
	}
	query.PageSize = min(limit, listPage)
	tasks := []client.Task{}
	for t, err := range c.Tasks.List(ctx, query) {
		if err != nil {
			return err
		}
		if row(t) == nil {
			continue
		}
		if tasks = append(tasks, t); len(tasks) == limit {
			break
		}
	}
	return printList(cmd, head, tasks, row)
}

// oneTask returns a command that does something with a task and shows what it is then.
func oneTask(name, short string, do func(*client.TaskService, context.Context, string) (*client.Task, error)) *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:               name + " <task id> [--json] [--gateway <url>]",
		Short:             short,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(knownTasks),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client.Client, args []string) error {
			t, err := do(c.Tasks, ctx, args[0])
			if err != nil {
				return err
			}
			return printFields(cmd, t, taskFields(t))
		}),
	})
	jsonFlag(cmd)
	return cmd
}

// tasksShowCommand is `caddy agentfm tasks show`.
func tasksShowCommand() *cobra.Command {
	return oneTask("show", "Shows a task, and the attempts to deliver its webhook", (*client.TaskService).Get)
}

// tasksCancelCommand is `caddy agentfm tasks cancel`.
func tasksCancelCommand() *cobra.Command {
	return oneTask("cancel", "Cancels a task, and stops its agent", (*client.TaskService).Cancel)
}

// taskFields returns what there is to tell of a task.
func taskFields(t *client.Task) [][]string {
	all := [][]string{
		{"task", t.ID}, {"status", string(t.Status)}, {"reason", string(t.Reason)}, {"message", t.Message},
		{"agent", t.Agent}, {"model", t.Model}, {"worker", t.WorkerID}, {"attempts", strconv.Itoa(t.Attempts)},
		{"submitted", when(t.Created)}, {"started", when(t.Started)}, {"ended", when(t.Ended)}, {"took", took(t.Started, t.Ended)},
		{"prompt", size(t.PromptBytes)}, {"output", size(t.OutputBytes)},
	}
	if t.HasFiles {
		all = append(all, []string{"files", "yes"})
	}
	if t.Webhook != nil {
		all = append(all, webhookFields(t.Webhook)...)
	}
	return all
}

// size writes how much something is.
func size(n int64) string { return strconv.FormatInt(n, 10) + " bytes" }
