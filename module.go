// SPDX-License-Identifier: Apache-2.0

// Package agentfm makes Caddy a public gateway to an AgentFM mesh of AI agents,
// and a worker that runs agents. Importing it registers every module of the
// project; so `xcaddy build --with github.com/Agent-FM/caddy-agentfm` is enough.
package agentfm

import (
	// The Caddy modules, and the command.
	_ "github.com/Agent-FM/caddy-agentfm/caddyfile"
	_ "github.com/Agent-FM/caddy-agentfm/handler"
	_ "github.com/Agent-FM/caddy-agentfm/handler/auth"
	_ "github.com/Agent-FM/caddy-agentfm/internal/command"
	_ "github.com/Agent-FM/caddy-agentfm/mesh"
	_ "github.com/Agent-FM/caddy-agentfm/router/policy"
	_ "github.com/Agent-FM/caddy-agentfm/worker"
	_ "github.com/Agent-FM/caddy-agentfm/worker/docker"
	_ "github.com/Agent-FM/caddy-agentfm/worker/process"
	_ "github.com/Agent-FM/caddy-agentfm/worker/upstream"
)
