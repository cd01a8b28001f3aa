// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"
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

// webhook is what is shown of a webhook.
type webhook struct {
	URL      string    `json:"url"`
	Status   string    `json:"status"`
	Attempts int       `json:"attempts"`
	Code     int       `json:"last_status"`
	Error    string    `json:"last_error"`
	Last     time.Time `json:"last_attempt_at"`
	Next     time.Time `json:"next_attempt_at"`
	History  []struct {
		At       time.Time `json:"at"`
		Duration float64   `json:"duration_seconds"`
		Status   int       `json:"status"`
		Error    string    `json:"error"`
	} `json:"history"`
}

// result writes how an attempt went; empty for none.
func result(status int, code string) string {
	if status != 0 {
		return strconv.Itoa(status)
	}
	return code
}

// fields returns what there is to tell of a webhook.
func (w *webhook) fields() [][]string {
	all := [][]string{
		{"webhook", w.URL}, {"webhook status", w.Status}, {"webhook attempts", strconv.Itoa(w.Attempts)}, {"next attempt", when(w.Next)},
	}
	for _, d := range w.History {
		took := time.Duration(d.Duration * float64(time.Second)).Round(time.Millisecond)
		all = append(all, []string{"attempt", fmt.Sprintf("%s %s after %s", when(d.At), result(d.Status, d.Error), took)})
	}
	return all
}

// webhooksListCommand is `caddy agentfm webhooks list`.
func webhooksListCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:   "list [--status <status>] [--limit <n>] [--json] [--gateway <url>]",
		Short: "Lists your tasks that have a webhook, the newest first",
		Args:  cobra.NoArgs,
		RunE: withGateway(func(ctx context.Context, cmd *cobra.Command, g *gatewayClient, _ []string) error {
			status, _ := cmd.Flags().GetString("status")
			head := []string{"TASK", "WEBHOOK", "ATTEMPTS", "LAST", "AT", "NEXT", "URL"}
			return listTasks(ctx, cmd, g, url.Values{"webhook": {status}}, func(t task) bool { return t.Webhook != nil }, head, task.webhookRow)
		}),
	})
	cmd.Flags().String("status", "", "Only those that are pending, delivered, disabled or given_up")
	listFlags(cmd)
	return cmd
}

// webhookRow returns the fields of the table.
func (t task) webhookRow() []string {
	w := t.Webhook
	return []string{t.ID, w.Status, strconv.Itoa(w.Attempts), result(w.Code, w.Error), when(w.Last), when(w.Next), w.URL}
}

// webhooksRedeliverCommand is `caddy agentfm webhooks redeliver`.
func webhooksRedeliverCommand() *cobra.Command {
	return askGateway(&cobra.Command{
		Use:   "redeliver <task id>... [--gateway <url>]",
		Short: "Sends webhooks again that were delivered, given up or disabled",
		Args:  cobra.MinimumNArgs(1),
		RunE: withGateway(func(ctx context.Context, cmd *cobra.Command, g *gatewayClient, args []string) error {
			failed := 0
			for _, id := range args {
				err := redeliver(ctx, g, id)
				if err == nil {
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: queued\n", plain(id))
				} else if e := (*gatewayError)(nil); len(args) > 1 && errors.As(err, &e) && e.status != http.StatusUnauthorized {
					failed++
					_, err = fmt.Fprintf(cmd.ErrOrStderr(), "%s: %v\n", plain(id), err)
				}
				if err != nil {
					return err
				}
			}
			if failed > 0 {
				return fmt.Errorf("%d of %d webhooks were not queued", failed, len(args))
			}
			return nil
		}),
	})
}

// redeliver has the webhook of a task sent again.
func redeliver(ctx context.Context, g *gatewayClient, id string) error {
	path, err := taskPath(id)
	if err != nil {
		return err
	}
	var t task
	_, err = g.ask(ctx, http.MethodPost, path+"/webhook", &t)
	return err
}
