// SPDX-License-Identifier: Apache-2.0

// Command agentfm is Caddy with its standard modules and those of this project.
// It is what `xcaddy build --with github.com/Agent-FM/caddy-agentfm` makes.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/Agent-FM/caddy-agentfm"
)

func main() {
	caddycmd.Main()
}
