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
	if count < 1 || count > maxPings {
		return usage(fmt.Errorf("--count %d: want 1 to %d", count, maxPings))
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
		case asJSON(cmd):
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
