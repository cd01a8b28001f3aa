// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"
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

// task is what is shown of a task.
type task struct {
	ID       string    `json:"task_id"`
	Status   string    `json:"status"`
	Reason   string    `json:"reason"`
	Message  string    `json:"message"`
	Worker   string    `json:"worker_id"`
	Agent    string    `json:"agent_name"`
	Model    string    `json:"model"`
	Attempts int       `json:"attempts"`
	Created  time.Time `json:"created_at"`
	Started  time.Time `json:"started_at"`
	Ended    time.Time `json:"ended_at"`
	Prompt   int64     `json:"prompt_bytes"`
	Output   int64     `json:"output_bytes"`
	Files    bool      `json:"has_files"`
	Webhook  *webhook  `json:"webhook"`
}

// ended reports whether the task has ended.
func (t task) ended() bool { return t.Status != "queued" && t.Status != "running" }

// row returns the fields of the table.
func (t task) row() []string {
	return []string{t.ID, t.Status, t.Reason, t.Agent, t.Model, when(t.Created), took(t.Started, t.Ended)}
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
		Use:   "list [--status <status>] [--limit <n>] [--json] [--gateway <url>]",
		Short: "Lists your tasks, the newest first",
		Args:  cobra.NoArgs,
		RunE: withGateway(func(ctx context.Context, cmd *cobra.Command, g *gatewayClient, _ []string) error {
			status, _ := cmd.Flags().GetString("status")
			head := []string{"TASK", "STATUS", "REASON", "AGENT", "MODEL", "SUBMITTED", "TOOK"}
			return listTasks(ctx, cmd, g, url.Values{"status": {status}}, nil, head, task.row)
		}),
	})
	cmd.Flags().String("status", "", "Only those that are queued, running, completed, failed or cancelled")
	listFlags(cmd)
	return cmd
}

// listFlags gives a command the flags of lists.
func listFlags(cmd *cobra.Command) {
	cmd.Flags().IntP("limit", "n", defaultList, "How many, at most")
	cmd.Flags().Bool("json", false, "Print them as JSON")
}

// listTasks prints the tasks of a query that are wanted; nil for all of them.
func listTasks(ctx context.Context, cmd *cobra.Command, g *gatewayClient, query url.Values, want func(task) bool, head []string, row func(task) []string) error {
	limit, _ := cmd.Flags().GetInt("limit")
	if limit < 1 || limit > maxList {
		return fmt.Errorf("--limit %d: want 1 to %d", limit, maxList)
	}
	query.Set("limit", strconv.Itoa(listPage))
	var rows [][]string
	all := []json.RawMessage{}
	for more := true; more && len(rows) < limit; {
		var page struct {
			Tasks []json.RawMessage `json:"tasks"`
			More  bool              `json:"has_more"`
		}
		if _, err := g.ask(ctx, http.MethodGet, "/api/tasks?"+query.Encode(), &page); err != nil {
			return err
		}
		more = page.More && len(page.Tasks) > 0
		for _, raw := range page.Tasks {
			var t task
			if err := json.Unmarshal(raw, &t); err != nil {
				return fmt.Errorf("reading the answer: %w", err)
			}
			query.Set("before", t.ID)
			if len(rows) < limit && (want == nil || want(t)) {
				rows, all = append(rows, row(t)), append(all, raw)
			}
		}
	}
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
		return printValue(cmd, all)
	}
	return printRows(cmd.OutOrStdout(), head, rows)
}

// printValue prints a value as JSON.
func printValue(cmd *cobra.Command, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return printJSON(cmd.OutOrStdout(), append(b, '\n'))
}

// oneTask returns a command that sends a request for a task and shows what it is then.
func oneTask(name, short, method, below string) *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:   name + " <task id> [--json] [--gateway <url>]",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: withGateway(func(ctx context.Context, cmd *cobra.Command, g *gatewayClient, args []string) error {
			path, err := taskPath(args[0])
			if err != nil {
				return err
			}
			var t task
			answer, err := g.ask(ctx, method, path+below, &t)
			if err != nil {
				return err
			}
			if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
				return printValue(cmd, json.RawMessage(answer))
			}
			return printRows(cmd.OutOrStdout(), []string{"FIELD", "VALUE"}, t.fields())
		}),
	})
	cmd.Flags().Bool("json", false, "Print the answer of the gateway")
	return cmd
}

// tasksShowCommand is `caddy agentfm tasks show`.
func tasksShowCommand() *cobra.Command {
	return oneTask("show", "Shows a task, and the attempts to deliver its webhook", http.MethodGet, "")
}

// tasksCancelCommand is `caddy agentfm tasks cancel`.
func tasksCancelCommand() *cobra.Command {
	return oneTask("cancel", "Cancels a task, and stops its agent", http.MethodDelete, "")
}

// fields returns what there is to tell of a task.
func (t task) fields() [][]string {
	all := [][]string{
		{"task", t.ID}, {"status", t.Status}, {"reason", t.Reason}, {"message", t.Message},
		{"agent", t.Agent}, {"model", t.Model}, {"worker", t.Worker}, {"attempts", strconv.Itoa(t.Attempts)},
		{"submitted", when(t.Created)}, {"started", when(t.Started)}, {"ended", when(t.Ended)}, {"took", took(t.Started, t.Ended)},
		{"prompt", strconv.FormatInt(t.Prompt, 10) + " bytes"}, {"output", strconv.FormatInt(t.Output, 10) + " bytes"},
	}
	if t.Files {
		all = append(all, []string{"files", "yes"})
	}
	if t.Webhook != nil {
		all = append(all, t.Webhook.fields()...)
	}
	var known [][]string
	for _, f := range all {
		if f[1] != "" {
			known = append(known, f)
		}
	}
	return known
}

// failure returns why a task that has ended has not succeeded; nil for one that has.
func (t task) failure() error {
	switch t.Status {
	case "completed":
		return nil
	case "cancelled":
		return errors.New("the task was cancelled")
	}
	return fmt.Errorf("the task failed: %s: %s", plain(t.Reason), plain(t.Message))
}
