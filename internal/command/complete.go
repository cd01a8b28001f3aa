// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"regexp"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// Flags that take a file, and those that take a folder.
var (
	fileFlags   = []string{"config", "api-key-file", "output"}
	folderFlags = []string{"files", "build"}
)

// withCompletions gives the flags of a command, and of those below it, the completions that are
// theirs by their names: without one, a shell offers files.
func withCompletions(cmd *cobra.Command) {
	for _, below := range cmd.Commands() {
		withCompletions(below)
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		_, has := cmd.GetFlagCompletionFunc(f.Name)
		switch {
		case has || f.Value.Type() == "bool" || slices.Contains(fileFlags, f.Name):
		case slices.Contains(folderFlags, f.Name):
			completeFlag(cmd, f.Name, folders)
		case f.Name == "adapter":
			completeFlag(cmd, f.Name, adapters)
		default:
			completeFlag(cmd, f.Name, nothing)
		}
	})
}

// completeWait is how long a shell waits for what a gateway knows.
const completeWait = 3 * time.Second

// maxCompletions bounds what a shell is offered.
const maxCompletions = 100

// completeFlag says how a shell completes the value of a flag.
func completeFlag(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // there is no such flag
	}
}

// nothing offers nothing, and no files either.
func nothing(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// folders offers folders.
func folders(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// words offers these.
func words(all ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(all, cobra.ShellCompDirectiveNoFileComp)
}

// adapters offers Caddy's config adapters.
func adapters(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var names []string
	for _, id := range caddy.GetModules("caddy.adapters") {
		names = append(names, id.ID.Name())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// first offers what f does for the first argument, and nothing for further ones.
func first(f cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nothing(cmd, args, begun)
		}
		return f(cmd, args, begun)
	}
}

// What a shell may be offered of a stranger's text: bash expands the words it is offered, and
// would run the command in "$(command)".
var (
	harmless = regexp.MustCompile(`^[\pL\pN_][\pL\pN_.:/@+-]*$`)
	harmful  = regexp.MustCompile(`[^\pL\pN_.:/@+ -]`)
)

// known offers what a gateway knows; nothing where it does not answer soon.
func known(list func(ctx context.Context, c *client.Client, offer func(name, what string)) error) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		c, err := newClient(cmd)
		if err != nil {
			return nothing(cmd, args, begun)
		}
		defer c.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), completeWait)
		defer cancel()
		var all []cobra.Completion
		seen := map[string]bool{}
		_ = list(ctx, c, func(name, what string) {
			if harmless.MatchString(name) && !seen[name] && len(all) < maxCompletions {
				seen[name] = true
				all = append(all, cobra.CompletionWithDesc(name, harmful.ReplaceAllString(what, "?")))
			}
		})
		return all, cobra.ShellCompDirectiveNoFileComp
	}
}

// knownModels offers the engines of workers.
var knownModels = known(func(ctx context.Context, c *client.Client, offer func(name, what string)) error {
	workers, err := c.Workers.List(ctx, client.WorkerFilter{})
	for _, w := range workers {
		offer(w.Model, w.Name)
	}
	return err
})

// knownPeers offers the peer ids of workers.
var knownPeers = known(func(ctx context.Context, c *client.Client, offer func(name, what string)) error {
	workers, err := c.Workers.List(ctx, client.WorkerFilter{IncludeOffline: true})
	for _, w := range workers {
		offer(w.PeerID, w.Name+" "+w.Model)
	}
	return err
})

// knownTasks offers the ids of tasks, the newest first.
var knownTasks = known(func(ctx context.Context, c *client.Client, offer func(name, what string)) error {
	n := 0
	for t, err := range c.Tasks.List(ctx, client.TaskQuery{PageSize: maxCompletions}) {
		if err != nil {
			return err
		}
		offer(t.ID, string(t.Status)+" "+t.Agent)
		if n++; n == maxCompletions {
			break
		}
	}
	return nil
})

// knownComments offers the cids of the comments about a peer.
func knownComments(peer string) cobra.CompletionFunc {
	return known(func(ctx context.Context, c *client.Client, offer func(name, what string)) error {
		page, err := c.Peers.LogPage(ctx, peer, maxCompletions, 0)
		if err != nil {
			return err
		}
		for _, e := range page.Entries {
			if e.Kind == "Comment" {
				offer(e.TextCID, when(e.ReceivedAt))
			}
		}
		return nil
	})
}
