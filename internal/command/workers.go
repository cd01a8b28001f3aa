// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// workersHead names the fields of a worker.
var workersHead = []string{"STATUS", "NAME", "MODEL", "TASKS", "CPU", "DISPATCH", "AUTHOR", "LAST SEEN", "PEER"}

// workersCommand is `caddy agentfm workers`.
func workersCommand() *cobra.Command {
	cmd := askGateway(askServer(&cobra.Command{
		Use:   "workers [--json] [--gateway <url> | --address <listen> | --config <path> [--adapter <name>]]",
		Short: "Lists the workers that the gateway knows, also those that are offline",
		Long: `
Lists the workers that the running Caddy knows, by its admin API. With --gateway, or where
AGENTFM_GATEWAY_URL names a gateway, lists those of that gateway, by its API; then they
can be chosen, and waited for:

	caddy agentfm workers --gateway https://gateway.example.com --model llama3.2 --available
	caddy agentfm workers --model llama3.2 --wait 2 --timeout 1m`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			if ofGateway(cmd) {
				return withClient(gatewayWorkers)(cmd, args)
			}
			for _, name := range workerFilters {
				if cmd.Flag(name).Changed {
					return usage(fmt.Errorf("--%s is for the workers of a gateway: set --gateway", name))
				}
			}
			return list(cmd, "workers", workersHead, workerEntry.row)
		},
	}))
	f := cmd.Flags()
	f.StringP("model", "m", "", "Only those that offer this engine")
	f.String("name", "", "Only those whose agent has this name")
	f.String("author", "", "Only those of this author")
	f.Bool("available", false, "Only those that have room for a task")
	f.Int("wait", 0, "Wait until there are so many")
	f.Duration("timeout", time.Minute, "How long to wait")
	for _, admin := range []string{"address", "config"} {
		cmd.MarkFlagsMutuallyExclusive("gateway", admin)
	}
	completeFlag(cmd, "model", knownModels)
	return cmd
}

// workerFilters are the flags that choose among the workers of a gateway.
var workerFilters = []string{"model", "name", "author", "available", "wait", "timeout"}

// ofGateway reports whether a command that has both asks a gateway, and not the running Caddy.
func ofGateway(cmd *cobra.Command) bool {
	if cmd.Flag("address").Changed || cmd.Flag("config").Changed {
		return false
	}
	return cmd.Flag("gateway").Changed || os.Getenv(client.EnvGatewayURL) != ""
}

// gatewayWorkers lists the workers of a gateway.
func gatewayWorkers(ctx context.Context, cmd *cobra.Command, c *client.Client, _ []string) error {
	flag := func(name string) string { return cmd.Flag(name).Value.String() }
	filter := client.WorkerFilter{Model: flag("model"), Name: flag("name"), Author: flag("author")}
	filter.AvailableOnly, _ = cmd.Flags().GetBool("available")
	filter.IncludeOffline = !filter.AvailableOnly
	list := func() ([]client.Worker, error) { return c.Workers.List(ctx, filter) }
	if n, _ := cmd.Flags().GetInt("wait"); n > 0 {
		timeout, _ := cmd.Flags().GetDuration("timeout")
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		filter.IncludeOffline = false
		list = func() ([]client.Worker, error) { return c.Workers.Wait(ctx, n, filter) }
	}
	workers, err := list()
	if err != nil {
		return err
	}
	return printList(cmd, workersHead, workers, func(w client.Worker) []string {
		return workerEntry{
			Peer: w.PeerID, Name: w.Name, Model: w.Model, Author: w.Author, Status: w.Status, CPU: w.CPUPercent,
			Tasks: w.CurrentTasks, MaxTasks: w.MaxTasks, Online: w.Online, LastSeen: w.LastSeen,
			Allowed: w.DispatchAllowed, Refused: w.RefuseReason, Probation: w.OnProbation,
		}.row()
	})
}

// workerEntry is what is shown of a worker.
type workerEntry struct {
	Peer     string    `json:"peer_id"`
	Name     string    `json:"agent_name"`
	Model    string    `json:"model"`
	Author   string    `json:"author"`
	Status   string    `json:"status"`
	CPU      float64   `json:"cpu_usage_pct"`
	Tasks    int       `json:"current_tasks"`
	MaxTasks int       `json:"max_tasks"`
	Online   bool      `json:"online"`
	LastSeen time.Time `json:"last_seen"`

	Allowed   bool   `json:"dispatch_allowed"`
	Refused   string `json:"-"` // which the running Caddy does not say
	Probation bool   `json:"on_probation"`
}

// row returns the fields of the table.
func (w workerEntry) row() []string {
	status := w.Status
	if !w.Online {
		status = "OFFLINE"
	}
	return []string{
		status, w.Name, w.Model, fmt.Sprintf("%d/%d", w.Tasks, w.MaxTasks), fmt.Sprintf("%.0f%%", w.CPU),
		dispatch(w.Allowed, w.Refused, w.Probation), w.Author, when(w.LastSeen), w.Peer,
	}
}
