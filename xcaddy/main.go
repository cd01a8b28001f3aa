// SPDX-License-Identifier: Apache-2.0

// Command agentfm is Caddy with its standard modules and those of this project.
// It is what `xcaddy build --with github.com/Agent-FM/caddy-agentfm` makes, and takes the
// command line of AgentFM's own binary, too: `agentfm -mode api`.
package main

import (
	"os"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/Agent-FM/caddy-agentfm"
	"github.com/Agent-FM/caddy-agentfm/internal/mode"
	"github.com/Agent-FM/caddy-agentfm/mesh"
)

func main() {
	caddy.CustomBinaryName = "agentfm"                            // which is what shells complete
	caddy.CustomVersion = "agentfm " + mesh.Version() + ", caddy" // whose own version follows
	if mode.Asked(os.Args[1:]) {
		mode.Main()
		return
	}
	caddycmd.Main()
}
