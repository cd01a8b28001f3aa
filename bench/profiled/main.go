// SPDX-License-Identifier: Apache-2.0

// Command profiled is the Caddy that the suite takes profiles of: it also notes who waits
// for whom, and more of what is allocated.
package main

import (
	"runtime"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/Agent-FM/caddy-agentfm"
)

func main() {
	runtime.MemProfileRate = 16 << 10
	runtime.SetBlockProfileRate(10_000) // nanoseconds
	runtime.SetMutexProfileFraction(10)
	caddycmd.Main()
}
