// SPDX-License-Identifier: Apache-2.0

// Package command adds `agentfm` to Caddy's command line: what an operator wants
// to see of a running gateway, new keys, and an agent tried out.
package command

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf16"

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
with tabs between the fields and no head. With --json they are what the admin API
answers.`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Args = cobra.NoArgs
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			cmd.AddCommand(workersCommand(), peersCommand(), pingCommand(), genkeyCommand(), testCommand(), tasksCommand(), webhooksCommand(), wayCommand(),
				modelsCommand(), runCommand(), chatCommand(), scatterCommand(), reputationCommand())
		},
	})
}

// askServer gives a command the flags of those that ask the running Caddy.
func askServer(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String("address", "", "Address of the administration API listener (if --config is not used)")
	cmd.Flags().StringP("config", "c", "", "Configuration file (if --address is not used)")
	cmd.Flags().StringP("adapter", "a", "", "Name of config adapter to apply (if --config is used)")
	cmd.Flags().Bool("json", false, "Print the answer of the admin API")
	cmd.MarkFlagsMutuallyExclusive("address", "config")
	return cmd
}

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 256 << 20

// ask returns the answer of the running Caddy. A body makes the request a POST.
func ask(cmd *cobra.Command, path string, body any) ([]byte, error) {
	flag := func(name string) string { return cmd.Flag(name).Value.String() }
	if flag("adapter") != "" && flag("config") == "" {
		return nil, fmt.Errorf("--adapter is for --config, which is not given")
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
		return nil, fmt.Errorf("asking the admin API at %s: %w", address, plainError{err})
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", address, err)
	}
	return answer, nil
}

// plainError is an error whose text may hold that of strangers.
type plainError struct{ error }

// Error implements error.
func (e plainError) Error() string { return plain(e.error.Error()) }

// Unwrap returns the error.
func (e plainError) Unwrap() error { return e.error }

// plain makes a text fit for one line of a terminal: a stranger's could steer it.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, strings.TrimSpace(s))
}

// list asks for a list and prints it: row returns the fields of an entry, and
// head names them.
func list[T any](cmd *cobra.Command, path string, head []string, row func(T) []string) error {
	answer, err := ask(cmd, path, nil)
	if err != nil {
		return err
	}
	if asJSON, _ := cmd.Flags().GetBool("json"); asJSON {
		return printJSON(cmd.OutOrStdout(), answer)
	}
	var entries []T
	if err := json.Unmarshal(answer, &entries); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	rows := make([][]string, len(entries))
	for i, e := range entries {
		rows[i] = row(e)
	}
	return printRows(cmd.OutOrStdout(), head, rows)
}

// printJSON prints JSON. What in a stranger's text could steer a terminal is
// escaped, which JSON itself asks for of some of it alone.
func printJSON(out io.Writer, b []byte) error {
	var safe strings.Builder
	for _, r := range string(b) {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			safe.WriteRune(r)
			continue
		}
		for _, u := range utf16.Encode([]rune{r}) {
			fmt.Fprintf(&safe, "\\u%04x", u)
		}
	}
	_, err := io.WriteString(out, safe.String())
	return err
}

// printRows prints a table on a terminal, and lines with tabs elsewhere.
func printRows(out io.Writer, head []string, rows [][]string) error {
	table := terminal(out)
	w := out
	if table {
		aligned := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		defer aligned.Flush()
		w, rows = aligned, append([][]string{head}, rows...)
	}
	for _, r := range rows {
		fields := make([]string, len(r))
		for i, f := range r {
			if fields[i] = plain(f); table && fields[i] == "" {
				fields[i] = "-"
			}
		}
		if _, err := fmt.Fprintln(w, strings.Join(fields, "\t")); err != nil {
			return err
		}
	}
	return nil
}

// terminal reports whether out is one. A variable for tests.
var terminal = func(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
