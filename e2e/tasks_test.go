// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The clients of AgentFM submit tasks and are told of their ends; its receiver, OpenAI's
// client and standardwebhooks find the signatures right.
func TestWebhookPython(t *testing.T) {
	const secret = "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c="
	p := startWith(t, home(t), caddyfile(localMesh, "agentfm {\n\t\tapi_keys "+testKey+"\n\t}",
		agent("report", "Text report", "text-report", command(reportScript))),
		[]string{"AGENTFM_WEBHOOK_SECRET=" + secret, "AGENTFM_WEBHOOK_ALLOW_PRIVATE=1"})
	p.awaitWorkers(1)
	cmd := exec.CommandContext(t.Context(), need(t, "AGENTFM_TEST_PYTHON"), "python/webhook_client.py")
	cmd.Env = append(os.Environ(), "GATEWAY_URL="+p.url, "GATEWAY_KEY="+testKey, "GATEWAY_SECRET="+secret,
		"WEBHOOK_PORTS="+strings.Join(freePorts(t, 2), " "))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if strings.Contains(p.log.String(), secret) {
		t.Error("the secret is in the log")
	}
}
