// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/webhook"
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

// signedWebhook is a webhook for a receiver to check.
type signedWebhook struct {
	Name    string            `json:"name"`
	Secret  string            `json:"secret"` // of the receiver
	Body    string            `json:"body"`
	Headers map[string]string `json:"headers"`
	Good    bool              `json:"good"`
}

// signedWebhooks are good ones, and others with which somebody has meddled.
func signedWebhooks(t *testing.T) []signedWebhook {
	t.Helper()
	const fresh, old, other = "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c=", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	signer, err := webhook.NewSigner(fresh, old)
	if err != nil {
		t.Fatal(err)
	}
	var all []signedWebhook
	add := func(name, secret string, age time.Duration, good bool, change func(w *signedWebhook)) {
		w := signedWebhook{Name: name, Secret: secret, Body: `{"task_id":"task_1","type":"task.completed","name":"ü"}`, Headers: make(map[string]string), Good: good}
		h := make(http.Header)
		signer.Sign(h, "msg_1", time.Now().Add(-age), []byte(w.Body))
		for name := range h {
			w.Headers[strings.ToLower(name)] = h.Get(name)
		}
		if change != nil {
			change(&w)
		}
		all = append(all, w)
	}
	add("new secret", fresh, 0, true, nil)
	add("old secret", old, 0, true, nil)
	add("four minutes old", fresh, 4*time.Minute, true, nil)
	add("another secret", other, 0, false, nil)
	add("six minutes old", fresh, 6*time.Minute, false, nil)
	add("of a time to come", fresh, -6*time.Minute, false, nil)
	add("another body", fresh, 0, false, func(w *signedWebhook) { w.Body = strings.Replace(w.Body, "completed", "failed", 1) })
	add("another id", fresh, 0, false, func(w *signedWebhook) { w.Headers["webhook-id"] = "msg_2" })
	add("another time", fresh, time.Minute, false, func(w *signedWebhook) { w.Headers["webhook-timestamp"] = fmt.Sprint(time.Now().Unix()) })
	add("another signature", fresh, 0, false, func(w *signedWebhook) { w.Headers["webhook-signature"] = "v1,AAAA" })
	add("no signature", fresh, 0, false, func(w *signedWebhook) { delete(w.Headers, "webhook-signature") })
	return all
}

// What checks webhooks in other languages finds ours right, with the new secret and the
// one before it, and those wrong with which somebody has meddled.
func TestWebhookReceivers(t *testing.T) {
	cases, err := json.Marshal(signedWebhooks(t))
	if err != nil {
		t.Fatal(err)
	}
	for variable, script := range map[string]string{"AGENTFM_TEST_PYTHON": "python/webhook_verify.py", "AGENTFM_TEST_NODE": "node/webhook_verify.mjs"} {
		t.Run(script, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), need(t, variable), script)
			cmd.Stdin = bytes.NewReader(cases)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}
