// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// xcaddy builds Caddy with this module, and beside another one.
func TestXcaddyBuild(t *testing.T) {
	xcaddy := need(t, "AGENTFM_TEST_XCADDY")
	module, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	caddy := filepath.Join(t.TempDir(), "caddy")
	build := exec.CommandContext(t.Context(), xcaddy, "build", "v2.11.4",
		"--with", "github.com/Agent-FM/caddy-agentfm@v0.0.0="+module,
		"--with", "github.com/mholt/caddy-ratelimit@v0.1.0",
		"--output", caddy)
	build.Dir = t.TempDir()
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), caddy, "list-modules", "--skip-standard").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	listed := strings.Fields(string(out))
	for _, id := range []string{
		"admin.api.agentfm", "agentfm", "agentfm_worker", "agentfm.runtimes.docker", "agentfm.runtimes.process",
		"http.handlers.agentfm", "http.handlers.rate_limit",
	} {
		if !slices.Contains(listed, id) {
			t.Errorf("no module %s in\n%s", id, out)
		}
	}
}
