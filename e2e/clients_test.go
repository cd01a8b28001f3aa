// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestOpenAIPython(t *testing.T) {
	testClient(t, need(t, "AGENTFM_TEST_PYTHON"), "python/openai_client.py")
}

func TestOpenAINode(t *testing.T) {
	testClient(t, need(t, "AGENTFM_TEST_NODE"), "node/openai_client.mjs")
}

func TestAgentFMPython(t *testing.T) {
	testClient(t, need(t, "AGENTFM_TEST_PYTHON"), "python/agentfm_client.py")
}

// testClient runs a client's script, which holds the checks, against a gateway
// that wants a key and has three agents.
func testClient(t *testing.T, interpreter, script string) {
	gate := filepath.Join(t.TempDir(), "gate")
	dir := home(t)
	p := start(t, dir, caddyfile(localMesh, "agentfm {\n\t\tapi_keys "+testKey+"\n\t}",
		agent("report", "Text report", "text-report", command(reportScript)),
		agent("second", "Second report", "text-report", command(reportScript)),
		agent("gated", "Gated", "gated", command(writeScript(t, gatedScript), "GATE", gate)),
	))
	p.awaitWorkers(3)

	cmd := exec.CommandContext(t.Context(), interpreter, script)
	cmd.Env = append(os.Environ(),
		"GATEWAY_URL="+p.url,
		"GATEWAY_KEY="+testKey,
		"GATEWAY_GATE="+gate,
		"GATEWAY_ARTIFACTS="+filepath.Join(dir, "artifacts"),
	)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", script, err, out)
	}
}
