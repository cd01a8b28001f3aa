// SPDX-License-Identifier: Apache-2.0

package command

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/client"
	"github.com/Agent-FM/caddy-agentfm/openai"
)

// modelsCommand is `caddy agentfm models`.
func modelsCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:               "models [--json] [--gateway <url>]",
		Short:             "Lists the models that a gateway has, and the workers that offer them",
		Args:              cobra.NoArgs,
		ValidArgsFunction: nothing,
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, c *client.Client, _ []string) error {
			models, err := c.OpenAI.Models(ctx)
			if err != nil {
				return err
			}
			head := []string{"MODEL", "AGENT", "STATUS", "TASKS", "AUTHOR", "PEER"}
			return printList(cmd, head, models, func(m openai.Model) []string {
				offered := m.Engine
				if len(m.Models) > 0 {
					offered = strings.Join(m.Models, ",")
				}
				return []string{offered, m.Name, m.Status, fmt.Sprintf("%d/%d", m.CurrentTasks, m.MaxTasks), m.OwnedBy, m.ID}
			})
		}),
	})
	jsonFlag(cmd)
	return cmd
}

// whoFlags gives a command the flags that say who shall answer.
func whoFlags(cmd *cobra.Command) {
	cmd.Flags().StringP("model", "m", "", "Model engine; a worker that offers it answers")
	cmd.Flags().StringSlice("peer", nil, "Peer id of the worker that shall answer")
	cmd.MarkFlagsOneRequired("model", "peer")
	cmd.MarkFlagsMutuallyExclusive("model", "peer")
	completeFlag(cmd, "model", knownModels)
	completeFlag(cmd, "peer", knownPeers)
}

// who returns what whoFlags say. There is at most one peer id where only one may be.
func who(cmd *cobra.Command, one bool) (model string, peers []string, err error) {
	model, _ = cmd.Flags().GetString("model")
	peers, _ = cmd.Flags().GetStringSlice("peer")
	if model == "" && len(peers) == 0 || one && len(peers) > 1 {
		return "", nil, usage(errors.New("want --model, or --peer with one peer id"))
	}
	return model, peers, nil
}

// pickWorker returns the peer id of who shall run a task: for a model, of a worker with room.
func pickWorker(ctx context.Context, cmd *cobra.Command, c *client.Client) (string, error) {
	model, peers, err := who(cmd, true)
	if err != nil || model == "" {
		return strings.Join(peers, ""), err
	}
	workers, err := c.Workers.List(ctx, client.WorkerFilter{Model: model})
	if err != nil {
		return "", err
	}
	best := -1
	for i, w := range workers {
		if w.DispatchAllowed && (best < 0 || w.Available() && (!workers[best].Available() || w.CurrentTasks < workers[best].CurrentTasks)) {
			best = i
		}
	}
	if best < 0 {
		return "", &client.Error{Kind: client.ErrModelNotFound, Code: client.CodeModelNotFound, Message: "no worker that is online offers " + model}
	}
	return workers[best].PeerID, nil
}

// maxPrompt bounds a prompt that is read, in bytes: no agent takes more.
const maxPrompt = 1 << 20

// promptOf returns the prompt: the arguments, or standard input where they are "-" or
// there are none.
func promptOf(cmd *cobra.Command, args []string) (string, error) { return textOf(cmd, "prompt", args) }

// textOf is promptOf for any text: what is what it is.
func textOf(cmd *cobra.Command, what string, args []string) (string, error) {
	if len(args) > 0 && args[0] != "-" {
		return strings.Join(args, " "), nil
	}
	b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxPrompt+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("reading the %s: %w", what, err)
	case len(b) > maxPrompt:
		return "", usage(fmt.Errorf("the %s has more than %d bytes", what, maxPrompt))
	case len(b) == 0:
		return "", usage(fmt.Errorf("the %s is empty: give it as an argument or on standard input", what))
	}
	return string(b), nil
}

// runCommand is `caddy agentfm run`.
func runCommand() *cobra.Command {
	cmd := askGateway(&cobra.Command{
		Use:   "run --model <engine> | --peer <peer id> [--files <folder>] [--json] [<prompt> | -]",
		Short: "Runs a task on a worker and prints what its agent says",
		Long: `
Runs a task on a worker, and prints what its agent says as it comes. Without a prompt,
standard input is one. With --files, what the agent leaves is unpacked into a folder of
that folder, and its name printed to standard error. Ctrl-C stops the agent.

The exit status is 0 only when the agent has ended well.`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: nothing,
		RunE:              withClient(runTask),
	})
	whoFlags(cmd)
	cmd.Flags().String("files", "", "Folder for what the agent leaves")
	jsonFlag(cmd)
	return cmd
}

// runResult is what `run --json` prints, and a line of `scatter`.
type runResult struct {
	Index    *int     `json:"index,omitempty"`
	Status   string   `json:"status,omitempty"`
	Worker   string   `json:"worker_id"`
	Task     string   `json:"task_id,omitempty"`
	Text     string   `json:"text"`
	Files    []string `json:"artifacts,omitempty"`
	Seconds  float64  `json:"duration_seconds"`
	Attempts int      `json:"attempts,omitempty"`
	Error    string   `json:"error,omitempty"`
	Code     string   `json:"code,omitempty"`
}

// failed returns the result with an error; nil is none.
func (r runResult) failed(err error) runResult {
	if e, ok := errors.AsType[*client.Error](err); ok {
		r.Error, r.Code = e.Error(), string(e.Code)
	}
	return r
}

// runTask is the work of runCommand.
func runTask(ctx context.Context, cmd *cobra.Command, c *client.Client, args []string) error {
	prompt, err := promptOf(cmd, args)
	if err != nil {
		return err
	}
	peer, err := pickWorker(ctx, cmd, c)
	if err != nil {
		return err
	}
	dir, _ := cmd.Flags().GetString("files")
	request := client.RunRequest{WorkerID: peer, Prompt: prompt, ArtifactsDir: dir}
	if asJSON(cmd) {
		r, err := c.Tasks.Run(ctx, request)
		if r == nil {
			return err
		}
		line := runResult{Worker: r.WorkerID, Task: r.TaskID, Text: r.Text, Files: r.Artifacts, Seconds: r.Duration.Seconds()}
		return cmp.Or(printValue(cmd, line.failed(err)), err) // where only its files are missing
	}
	stream, err := c.Tasks.Stream(ctx, request)
	if err != nil {
		return err
	}
	out, files := answers(cmd), false
	for chunk, err := range stream.All() {
		if err != nil {
			return err
		}
		if chunk.Kind == client.ChunkMarker {
			files = chunk.Text == client.MarkerFiles
			continue
		}
		if _, err := io.WriteString(out, chunk.Text); err != nil {
			return err
		}
	}
	if !files || dir == "" {
		return nil
	}
	paths, err := c.Tasks.Artifacts(ctx, stream.Served.TaskID, filepath.Join(dir, stream.Served.TaskID))
	for _, path := range paths {
		fmt.Fprintln(cmd.ErrOrStderr(), plain(path))
	}
	return err
}
