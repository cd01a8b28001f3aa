// SPDX-License-Identifier: Apache-2.0

// Package command adds `agentfm` to Caddy's command line: what an operator wants
// to see of a running gateway, new keys, and an agent tried out.
package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "agentfm",
		Usage: "<command>",
		Short: "Shows what an AgentFM gateway sees of its mesh and keeps of tasks, makes keys, and tries agents",
		Long: `
Asks the running Caddy, over its admin API, what it sees of the AgentFM mesh;
asks any gateway, with a key, for its models, for answers of these and for the tasks
of that key; makes keys; and runs one task of an agent without a mesh.

The address of the admin API is --address, or that of the configuration --config,
or Caddy's default. On a terminal, lists are tables; elsewhere, the same as lines
with tabs between the fields and no head. With --json they are JSON.

The exit code is 0 when all went well, and else
	2  the command, or the request, is wrong in itself
	3  the gateway cannot be reached, or is none, or has a fault
	4  the key is missing, wrong, or may not do this
	5  no such worker, model, task, peer or comment, or not any more
	6  all are busy, or asked too often: later it may work
	7  the agent failed, or its worker did, or some prompts of many
	130  it was interrupted
	1  for all else.`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Args = cobra.NoArgs
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			cmd.AddCommand(workersCommand(), peersCommand(), pingCommand(), idCommand(), genkeyCommand(), testCommand(), tasksCommand(), webhooksCommand(), wayCommand(),
				modelsCommand(), runCommand(), chatCommand(), scatterCommand(), reputationCommand())
			withCompletions(cmd)
			withExitCodes(cmd)
		},
	})
}

// askServer gives a command the flags of those that ask the running Caddy.
func askServer(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String("address", "", "Address of the administration API listener (if --config is not used)")
	cmd.Flags().StringP("config", "c", "", "Configuration file (if --address is not used)")
	cmd.Flags().StringP("adapter", "a", "", "Name of config adapter to apply (if --config is used)")
	jsonFlag(cmd)
	cmd.MarkFlagsMutuallyExclusive("address", "config")
	return cmd
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 256 << 20

// ask returns the answer of the running Caddy. A body makes the request a POST.
func ask(cmd *cobra.Command, path string, body any) ([]byte, error) {
	flag := func(name string) string { return cmd.Flag(name).Value.String() }
	if flag("adapter") != "" && flag("config") == "" {
		return nil, usage(errors.New("--adapter is for --config, which is not given"))
	}
	address, err := caddycmd.DetermineAdminAPIAddress(flag("address"), nil, flag("config"), flag("adapter"))
	if err != nil {
		return nil, fmt.Errorf("finding the address of the admin API: %w", err)
	}
	method, header, payload := http.MethodGet, http.Header{}, io.Reader(nil)
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		method, payload = http.MethodPost, bytes.NewReader(b)
		header.Set("Content-Type", "application/json")
	}
	resp, err := caddycmd.AdminAPIRequest(address, method, "/agentfm/"+path, header, payload)
	if err != nil {
		advice := "; does Caddy run, and is its admin API there? --address or --config say where it is"
		if answered(err) {
			advice = ""
		}
		return nil, coded{fmt.Errorf("asking the admin API at %s: %w%s", address, plainError{err}, advice), exitGateway}
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, coded{fmt.Errorf("reading the answer of %s: %w", address, err), exitGateway}
	}
	return answer, nil
}

// answered reports whether an error of Caddy's says that the running one refused what it was
// asked, and knows the route.
func answered(err error) bool {
	text := err.Error()
	return strings.Contains(text, "responded with error: HTTP ") && !strings.Contains(text, "HTTP 404")
}

// plainError is an error whose text may hold that of strangers.
type plainError struct{ error }

// Error implements error.
func (e plainError) Error() string { return plain(e.error.Error()) }

// Unwrap returns the error.
func (e plainError) Unwrap() error { return e.error }

// list asks for a list and prints it: row returns the fields of an entry, and
// head names them.
func list[T any](cmd *cobra.Command, path string, head []string, row func(T) []string) error {
	answer, err := ask(cmd, path, nil)
	if err != nil {
		return err
	}
	if asJSON(cmd) {
		return printJSON(cmd.OutOrStdout(), answer)
	}
	var entries []T
	if err := json.Unmarshal(answer, &entries); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	return printList(cmd, head, entries, row)
}
