// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// webhooksCommand is `caddy agentfm webhooks`.
func webhooksCommand() *cobra.Command {
	cmd := group("webhooks", "Lists the webhooks of submitted tasks, and sends them again", `
Uses the API of a gateway with your key, as "caddy agentfm tasks" does:

	caddy agentfm webhooks list --status given_up
	caddy agentfm webhooks redeliver task_...`)
	cmd.AddCommand(webhooksListCommand(), webhooksRedeliverCommand())
	return cmd
}

// result writes how an attempt went; empty for none.
func result(status int, code string) string {
	if status != 0 {
		return strconv.Itoa(status)
	}
	return code
}

// webhookFields returns what there is to tell of a webhook.
func webhookFields(w *client.TaskWebhook) [][]string {
	all := [][]string{
		{"webhook", w.URL}, {"webhook status", w.Status}, {"webhook attempts", strconv.Itoa(w.Attempts)}, {"next attempt", when(w.Next)},
	}
	for _, d := range w.History {
		took := time.Duration(d.DurationSeconds * float64(time.Second)).Round(time.Millisecond)
		all = append(all, []string{"attempt", fmt.Sprintf("%s %s after %s", when(d.At), result(d.Status, d.Error), took)})
	}
	return all
}

// webhooksListCommand is `caddy agentfm webhooks list`.
func webhooksListCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:               "list [--status <status>] [--limit <n>] [--json] [--gateway <url>]",
		Short:             "Lists your tasks that have a webhook, the newest first",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client.Client, _ []string) error {
			status, _ := cmd.Flags().GetString("status")
			head := []string{"TASK", "WEBHOOK", "ATTEMPTS", "LAST", "AT", "NEXT", "URL"}
			return listTasks(ctx, cmd, c, client.TaskQuery{Webhook: status}, head, webhookRow)
		}),
	})
	cmd.Flags().String("status", "", "Only those that are pending, delivered, disabled or given_up")
	completeFlag(cmd, "status", words("pending", "delivered", "disabled", "given_up"))
	listFlags(cmd)
	return cmd
}

// webhookRow returns the fields of the table; nil for a task without a webhook.
func webhookRow(t client.Task) []string {
	w := t.Webhook
	if w == nil {
		return nil
	}
	return []string{t.ID, w.Status, strconv.Itoa(w.Attempts), result(w.LastStatus, w.LastError), when(w.Last), when(w.Next), w.URL}
}

// webhooksRedeliverCommand is `caddy agentfm webhooks redeliver`.
func webhooksRedeliverCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:               "redeliver <task id>... [--json] [--gateway <url>]",
		Short:             "Sends webhooks again that were delivered, given up or disabled",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: knownTasks,
		RunE:              withClient(redeliver),
	})
	jsonFlag(cmd)
	return cmd
}

// redeliver is the work of webhooksRedeliverCommand. One that cannot be sent keeps no other
// from it.
func redeliver(ctx context.Context, cmd *cobra.Command, c *client.Client, ids []string) error {
	queued := []client.Task{}
	for _, id := range ids {
		t, err := c.Tasks.RedeliverWebhook(ctx, id)
		switch {
		case err == nil:
			queued = append(queued, *t)
		case len(ids) == 1 || errors.Is(err, client.ErrAuthentication) || errors.Is(err, client.ErrContext):
			return err
		default:
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", plain(id), err)
		}
	}
	if err := printList(cmd, nil, queued, func(t client.Task) []string { return []string{t.ID + ": queued"} }); err != nil {
		return err
	}
	if failed := len(ids) - len(queued); failed > 0 {
		return fmt.Errorf("%d of %d webhooks were not queued", failed, len(ids))
	}
	return nil
}
