// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
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
	config := caddyfile(localMesh, withKey,
		agent("ends", "Ends", "ends", docker("build "+image+"\n\t\t\t\tmemory 16MiB\n\t\t\t\toutput 64KiB\n\t\t\t\tgrace 1s")),
		agent("gone", "Gone", "gone", docker("image agentfm-test/gone:v1")))
	p := start(t, dir, config)
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
		"true":                              "empty",
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

// Row F8: a worker is killed while its containers run. The client learns that the answer
// has broken off, or that there was none, and the worker removes what it left when it is
// back.
func TestF8WorkerKilled(t *testing.T) {
	engine := newEngine(t)
	image := t.TempDir()
	writeFile(t, image, "Dockerfile", "FROM "+baseImage+"\nENTRYPOINT [\"sh\", \"-c\", \"echo here; echo file >$AGENTFM_OUTPUT/f; exec sleep 600\"]\n")
	m := newMesh(t, withKey)
	stay := agent("stay", "Stay", "stay", fmt.Sprintf("docker {\n\t\t\t\thost %s\n\t\t\t\tbuild %s\n\t\t\t\tmemory 64MiB\n\t\t\t}", engine.host, image))
	w := m.worker(stay)
	m.gateway.awaitWorkers(1)
	id := m.gateway.workerID("Stay")
	left := 0
	for i := range scaled(4, 200) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		resp, err := m.gateway.send(ctx, http.MethodPost, "/v1/chat/completions", chatRequest("stay", "", true))
		if err == nil && i%2 == 0 { // else it is killed before the first byte, or about then
			newEvents(resp).nextText(t)
		}
		w.kill()
		if err == nil {
			rest, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if said := string(rest); resp.StatusCode == http.StatusOK && (!strings.Contains(said, `"error"`) || strings.Contains(said, "[DONE]")) {
				t.Errorf("round %d: the answer ends with %.300q", i, said)
			}
		}
		if ctx.Err() != nil {
			t.Errorf("round %d: the client waited for a minute", i)
		}
		cancel()
		left += engine.containers(t, id)
		w = start(t, w.cmd.Dir, w.config)
		w.awaitLog("agent is ready")
		engine.awaitNoContainers(m.gateway.in(t), id)
		if files := w.taskFiles(t); len(files) > 0 {
			t.Errorf("round %d: left behind are %v", i, files)
		}
		m.gateway.awaitWorkers(1)
	}
	t.Logf("%d containers were left, and removed", left)
}
