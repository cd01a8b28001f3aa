// SPDX-License-Identifier: Apache-2.0

package command

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// workersCommand is `caddy agentfm workers`.
func workersCommand() *cobra.Command {
	return askServer(&cobra.Command{
		Use:   "workers [--json] [--address <listen>] [--config <path> [--adapter <name>]]",
		Short: "Lists the workers that the gateway knows, also those that are offline",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			head := []string{"STATUS", "NAME", "MODEL", "TASKS", "CPU", "AUTHOR", "LAST SEEN", "PEER"}
			return list(cmd, "workers", head, workerEntry.row)
		},
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
}

// row returns the fields of the table.
func (w workerEntry) row() []string {
	status := w.Status
	if !w.Online {
		status = "OFFLINE"
	}
	return []string{
		status, w.Name, w.Model, fmt.Sprintf("%d/%d", w.Tasks, w.MaxTasks), fmt.Sprintf("%.0f%%", w.CPU),
		w.Author, w.LastSeen.UTC().Format(time.RFC3339), w.Peer,
	}
}

// peersCommand is `caddy agentfm peers`.
func peersCommand() *cobra.Command {
	return askServer(&cobra.Command{
		Use:   "peers [--json] [--address <listen>] [--config <path> [--adapter <name>]]",
		Short: "Lists the peers to which the gateway is connected",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			head := []string{"PEER", "DIRECTION", "LATENCY", "BOOTSTRAP", "SOFTWARE", "ADDRESS"}
			return list(cmd, "peers", head, peerEntry.row)
		},
	})
}

// peerEntry is what is shown of a peer.
type peerEntry struct {
	Peer        string  `json:"peer_id"`
	Software    string  `json:"agent_version"`
	Latency     float64 `json:"latency_ms"`
	Bootstrap   bool    `json:"is_bootstrap"`
	Connections []struct {
		Address   string `json:"address"`
		Direction string `json:"direction"`
	} `json:"connections"`
}

// row returns the fields of the table: of the connections it shows the first.
func (p peerEntry) row() []string {
	latency, bootstrap, address, direction := "", "", "", ""
	if p.Latency > 0 {
		latency = milliseconds(p.Latency)
	}
	if p.Bootstrap {
		bootstrap = "yes"
	}
	if len(p.Connections) > 0 {
		address, direction = p.Connections[0].Address, p.Connections[0].Direction
	}
	return []string{p.Peer, direction, latency, bootstrap, p.Software, address}
}

// milliseconds writes a time.
func milliseconds(ms float64) string { return strconv.FormatFloat(ms, 'f', 2, 64) + " ms" }

// Pings of one command.
const (
	defaultPings = 1
	maxPings     = 1000
)

// pingPause is the time from one ping to the next. A variable for tests.
var pingPause = time.Second

// errNoAnswer says that a peer did not answer.
var errNoAnswer = errors.New("the peer did not answer")

// pingCommand is `caddy agentfm ping`.
func pingCommand() *cobra.Command {
	cmd := askServer(&cobra.Command{
		Use:   "ping <peer id or multiaddr> [--count <n>] [--json] [--address <listen>] [--config <path> [--adapter <name>]]",
		Short: "Measures the time of a round trip from the gateway to a peer",
		Args:  cobra.ExactArgs(1),
		RunE:  runPing,
	})
	cmd.Flags().IntP("count", "n", defaultPings, "How many times, a second apart")
	return cmd
}

// runPing pings and prints each answer. It fails when the last ping did.
func runPing(cmd *cobra.Command, args []string) error {
	count, _ := cmd.Flags().GetInt("count")
	asJSON, _ := cmd.Flags().GetBool("json")
	if count < 1 || count > maxPings {
		return fmt.Errorf("--count %d: want 1 to %d", count, maxPings)
	}
	var failure error
	for i := range count {
		if i > 0 {
			time.Sleep(pingPause)
		}
		answer, err := ask(cmd, "ping", map[string]string{"peer": args[0]})
		if err != nil {
			return err
		}
		var result struct {
			OK    bool    `json:"ok"`
			RTT   float64 `json:"rtt_ms"`
			Error string  `json:"error"`
		}
		if err := json.Unmarshal(answer, &result); err != nil {
			return fmt.Errorf("reading the answer: %w", err)
		}
		failure = nil
		if !result.OK {
			failure = fmt.Errorf("%w: %s", errNoAnswer, plain(result.Error))
		}
		switch {
		case asJSON:
			err = printJSON(cmd.OutOrStdout(), answer)
		case result.OK:
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "answer after %s\n", milliseconds(result.RTT))
		case i < count-1:
			_, err = fmt.Fprintln(cmd.OutOrStdout(), failure)
		}
		if err != nil {
			return err
		}
	}
	return failure
}
