// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// tasksLogsCommand is `caddy agentfm tasks logs`.
func tasksLogsCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:   "logs <task id> [-f] [--json] [--gateway <url>]",
		Short: "Prints what a task's agent has said so far, or with -f as it comes",
		Long: `
Prints what a task's agent has said so far, or with -f as it comes. With -f and --json
there is a line of JSON for each part, one without a text where the task was begun anew
and what came before is void, and one with the status when it has ended:

	{"task_id":"task_...","text":"The report"}
	{"task_id":"task_...","restarted":true}
	{"task_id":"task_...","text":"The report is done."}
	{"task_id":"task_...","status":"completed"}`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(knownTasks),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client.Client, args []string) error {
			follow, _ := cmd.Flags().GetBool("follow")
			if follow {
				return followLogs(ctx, cmd, c, args[0])
			}
			out, err := c.Tasks.Output(ctx, args[0])
			if err != nil {
				return err
			}
			if asJSON(cmd) {
				return printValue(cmd, logs{args[0], out.Status, out.Text})
			}
			_, err = io.WriteString(answers(cmd), out.Text)
			return err
		}),
	})
	cmd.Flags().BoolP("follow", "f", false, "Wait for more until the task ends; fails when the task does")
	jsonFlag(cmd)
	return cmd
}

// logs is what `tasks logs --json` prints.
type logs struct {
	ID     string            `json:"task_id"`
	Status client.TaskStatus `json:"status"`
	Text   string            `json:"text"`
}

// logLine is a line of `tasks logs -f --json`.
type logLine struct {
	ID        string            `json:"task_id"`
	Text      string            `json:"text,omitempty"`
	Restarted bool              `json:"restarted,omitempty"`
	Status    client.TaskStatus `json:"status,omitempty"`
	Reason    client.Code       `json:"reason,omitempty"`
}

// followRetries is how often, in a row, an output that is followed may break off: some of them
// while a gateway starts anew.
const followRetries = 4

// followLogs prints the output until the task ends, and fails when the task does. An agent
// that is run again begins anew.
func followLogs(ctx context.Context, cmd *cobra.Command, c *client.Client, id string) error {
	c, err := c.With(client.WithRetries(followRetries))
	if err != nil {
		return err
	}
	out := answers(cmd)
	say := func(line logLine) error {
		if line.ID = id; asJSON(cmd) {
			return printLine(cmd.OutOrStdout(), line)
		}
		if line.Restarted {
			fmt.Fprintln(cmd.ErrOrStderr(), "\nthe connection to the worker was lost, and the task runs again: its output from the beginning")
		}
		_, err := io.WriteString(out, line.Text)
		return err
	}
	for again := true; again; {
		again = false
		for text, err := range c.Tasks.Follow(ctx, id) {
			again = errors.Is(err, client.CodeOutputRestarted)
			if err != nil && !again {
				return err
			}
			if err := say(logLine{Text: text, Restarted: again}); err != nil {
				return err
			}
		}
	}
	t, err := c.Tasks.Wait(ctx, id)
	if err != nil {
		return err
	}
	if err := say(logLine{Status: t.Status, Reason: t.Reason}); err != nil {
		return err
	}
	return t.Err()
}

// tasksArtifactsCommand is `caddy agentfm tasks artifacts`.
func tasksArtifactsCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:   "artifacts <task id> [--output <file>] [--json] [--gateway <url>]",
		Short: "Fetches the zip of a task's files to <task id>.zip",
		Long: `
Fetches the zip of the files that a task left, and prints the name of the file. It is
there only when all of it has come, and replaces none that is there. It holds what a
stranger made: look at it before you unpack it.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: first(knownTasks),
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client.Client, args []string) error {
			file, _ := cmd.Flags().GetString("output")
			if file == "" {
				file = args[0] + ".zip"
				if strings.ContainsAny(file, `/\`) {
					return usage(errors.New("that is not the id of a task; `tasks list` shows them"))
				}
			}
			d, err := fetch(ctx, c, args[0], file)
			if err != nil {
				return err
			}
			if asJSON(cmd) {
				return printValue(cmd, map[string]any{"file": file, "bytes": d.Size, "sha256": d.SHA256})
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), file)
			return err
		}),
	})
	cmd.Flags().StringP("output", "o", "", "File to write, in place of <task id>.zip")
	jsonFlag(cmd)
	return cmd
}

// fetch writes the zip of a task to a new file, which is there when it is whole.
func fetch(ctx context.Context, c *client.Client, id, file string) (*client.Download, error) {
	if err := absent(file); err != nil {
		return nil, err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	d, err := c.Tasks.Download(ctx, id, tmp)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return nil, err
	}
	// A link fails where a file is, as a new name for another does not.
	if os.Link(tmp.Name(), file) == nil {
		return d, nil
	}
	if err := absent(file); err != nil {
		return nil, err
	}
	return d, os.Rename(tmp.Name(), file) // there are file systems without links
}

// absent returns an error when a file is there.
func absent(file string) error {
	_, err := os.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil:
		return fmt.Errorf("%s is there already; remove it, or name another file with --output", file)
	}
	return err
}
