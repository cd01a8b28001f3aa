// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// withRateLimit returns a Caddy that xcaddy has built with this module and beside
// another one, as the example rate-limits asks for.
func withRateLimit(t *testing.T) string {
	t.Helper()
	need(t, "AGENTFM_TEST_XCADDY")
	caddy, err := builtWithRateLimit()
	if err != nil {
		t.Fatal(err)
	}
	return caddy
}

// builtWithRateLimit builds it, once.
var builtWithRateLimit = sync.OnceValues(func() (string, error) {
	module, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	if _, err := binary(); err != nil { // it makes the folder
		return "", err
	}
	caddy := filepath.Join(binaryDir, "caddy")
	build := exec.Command(os.Getenv("AGENTFM_TEST_XCADDY"), "build", "v2.11.4",
		"--with", "github.com/Agent-FM/caddy-agentfm@v0.0.0="+module,
		"--with", "github.com/mholt/caddy-ratelimit@v0.1.0",
		"--output", caddy)
	build.Dir = binaryDir
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return caddy, nil
})

// xcaddy builds Caddy with this module, and beside another one.
func TestXcaddyBuild(t *testing.T) {
	caddy := withRateLimit(t)
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
