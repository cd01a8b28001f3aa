// SPDX-License-Identifier: Apache-2.0

package command

import (
	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/internal/way"
)

// wayCommand is what the runtime docker runs in a container beside an agent's, where Caddy
// may not enter that. It is nothing for an operator to call.
func wayCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "way <socket>",
		Short:  "Opens sockets in a container for the runtime docker, which starts it there",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(_ *cobra.Command, args []string) error { return way.Serve(args[0]) },
	}
}
