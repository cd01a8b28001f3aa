// SPDX-License-Identifier: Apache-2.0

//go:build unix

// Package lifecycle tests what a reload, a failed reload, a removal and an exit
// of Caddy do to requests, agents and peers: in this process with the real Caddy,
// and with the ready-made binary where a process must end. Everything runs over
// loopback. The agents are real processes, which the tests steer through FIFOs.
package lifecycle

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/goleak"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/Agent-FM/caddy-agentfm"
)

const (
	// patience is how long a condition may take to come true, on a machine
	// that is busy with other things.
	patience = 30 * time.Second
	// pollInterval is how often a condition is looked at.
	pollInterval = 10 * time.Millisecond
)

// outerEnv is the environment before the tests made it their own; the go command
// finds its caches by it.
var outerEnv = os.Environ()

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "lifecycle")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	for name, value := range homeEnv(dir) {
		os.Setenv(name, value)
	}
	// Caddy has read the environment already for these.
	caddy.DefaultStorage.Path = caddy.AppDataDir()
	caddy.ConfigAutosavePath = filepath.Join(caddy.AppConfigDir(), "autosave.json")

	code := m.Run()
	for _, dir := range []string{binaryDir, natsDir} {
		if dir != "" {
			os.RemoveAll(dir)
		}
	}
	if err := caddy.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stopping Caddy:", err)
		return 1
	}
	client.CloseIdleConnections()
	if err := goleak.Find(caddyGoroutines...); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "goroutines are left after the last configuration:", err)
		return 1
	}
	return code
}

// caddyGoroutines are those of Caddy itself that outlive its last configuration.
var caddyGoroutines = []goleak.Option{
	// the upkeep of the one cache of certificates, which is the process's
	goleak.IgnoreTopFunction("github.com/caddyserver/certmagic.(*Cache).maintainAssets"),
	// sleeps for 5 s, and then sees that its lock is no more
	goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"),
}

// homeEnv is where Caddy and what it runs find their folders.
func homeEnv(dir string) map[string]string {
	return map[string]string{
		"HOME":            dir,
		"XDG_DATA_HOME":   filepath.Join(dir, "data"),
		"XDG_CONFIG_HOME": filepath.Join(dir, "config"),
	}
}

// await waits until a condition holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	deadline := time.After(patience)
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}
