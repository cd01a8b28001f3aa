// SPDX-License-Identifier: Apache-2.0

// Package mode gives the binary the command line of AgentFM's own: -mode and the flags
// of each mode. They become a Caddyfile, or one of the commands of this project, which
// Caddy then runs as if it had been given them.
package mode

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
)

// Asked reports whether a command line is one of AgentFM's own: flags from the first
// word on, of which one is -mode. Caddy's begin with a command.
func Asked(args []string) bool {
	return len(args) > 0 && strings.HasPrefix(args[0], "-") && slices.ContainsFunc(args, func(arg string) bool {
		name, _, _ := strings.Cut(arg, "=")
		return name == "-mode" || name == "--mode"
	})
}

// Main runs the command line of the process, which [Asked] accepts.
func Main() {
	c, err := Translate(os.Args[1:], System{
		Getenv:  os.Getenv,
		Exists:  func(file string) bool { _, err := os.Stat(file); return !errors.Is(err, fs.ErrNotExist) },
		DataDir: caddy.AppDataDir(),
	})
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Print(usage())
		return
	case err != nil:
		fmt.Fprintf(os.Stderr, "agentfm: %v\n", err)
		os.Exit(2)
	case c.Print:
		fmt.Print(c.Config)
		return
	}
	if c.Config != "" { // Caddy reads it as its standard input
		r, w, err := os.Pipe()
		if err != nil {
			fmt.Fprintf(os.Stderr, "agentfm: %v\n", err)
			os.Exit(1)
		}
		go func() {
			_, _ = io.WriteString(w, c.Config)
			_ = w.Close()
		}()
		os.Stdin = r
	}
	os.Args = append(os.Args[:1], c.Args...)
	caddycmd.Main()
}
