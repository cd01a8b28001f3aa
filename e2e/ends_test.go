// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// Rows F15 and F16: however a container ends, the client learns how, and an agent
// without an image is no matter for another one.
func TestDockerEnds(t *testing.T) {
	engine := newEngine(t)
	image := t.TempDir()
	writeFile(t, image, "Dockerfile", "FROM "+baseImage+"\nENTRYPOINT [\"sh\", \"-c\", \"eval \\\"$0\\\"\"]\n")
	docker := func(settings string) string {
		return fmt.Sprintf("docker {\n\t\t\t\thost %s\n\t\t\t\t%s\n\t\t\t}\n\t\t\ttimeout 5s", engine.host, settings)
	}
	dir := home(t)
	p := start(t, dir, caddyfile(localMesh, withKey,
		agent("ends", "Ends", "ends", docker("build "+image+"\n\t\t\t\tmemory 16MiB\n\t\t\t\toutput 64KiB\n\t\t\t\tgrace 1s")),
		agent("gone", "Gone", "gone", docker("image agentfm-test/gone:v1"))))
	p.awaitWorkers(1)
	worker := p.workerID("Ends")

	send := func(model, prompt string) *http.Response {
		resp, err := p.send(t.Context(), http.MethodPost, "/v1/completions", map[string]any{"model": model, "prompt": prompt})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	for prompt, cause := range map[string]string{
		"echo half; exit 3":                 "exit_code",
		"kill -SEGV $$":                     "signal",
		"kill -9 $$":                        "signal",
		"x=xxxx; while :; do x=$x$x; done":  "oom_killed",
		"sleep 100":                         "deadline",
		"while :; do echo 0123456789; done": "output_limit",
	} {
		var answer struct {
			Error struct{ Message, Code, Cause string }
		}
		resp := send("ends", prompt)
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusBadGateway || answer.Error.Code != "worker_stream_failed" || answer.Error.Cause != cause {
			t.Errorf("%s: got %d %+v, want %s", prompt, resp.StatusCode, answer.Error, cause)
		}
	}
	engine.awaitNoContainers(p, worker)

	if resp := send("gone", "x"); resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("without an image: got %d", resp.StatusCode)
	}
	var answer struct {
		Choices []struct {
			Text         string
			FinishReason string `json:"finish_reason"`
		}
	}
	p.decode(p.post("/v1/completions", map[string]any{"model": "ends", "prompt": "id -u; cat $AGENTFM_REQUEST", "temperature": 0.5}), &answer)
	if len(answer.Choices) != 1 || !strings.HasPrefix(answer.Choices[0].Text, "65534\n") || !strings.Contains(answer.Choices[0].Text, `"temperature":0.5`) {
		t.Errorf("got %+v", answer)
	}
	engine.awaitNoContainers(p, worker)
}
