// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// reportScript is the example agent, from the working folder of a process.
const reportScript = "examples/agents/report/report.sh"

const (
	noFiles       = "\n[AGENTFM: NO_FILES]\n"
	filesIncoming = "\n[AGENTFM: FILES_INCOMING]\n"
)

func chatRequest(model, text string, stream bool) map[string]any {
	return map[string]any{
		"model":    model,
		"messages": []map[string]string{{"role": "user", "content": text}},
		"stream":   stream,
	}
}

// startQuickstart starts the committed Caddyfile of the quickstart, with nothing
// changed but its addresses.
func startQuickstart(t *testing.T) (p *process, dir string) {
	t.Helper()
	committed, err := os.ReadFile(filepath.Join(root, "examples/quickstart/Caddyfile"))
	if err != nil {
		t.Fatal(err)
	}
	text := replaceOnce(t, string(committed), "\n{\n", "\n{\n\tadmin ADMIN\n")
	text = replaceOnce(t, text, "\n:8080 {\n", "\nSITE {\n")
	dir = home(t)
	p = start(t, dir, text)
	p.awaitWorkers(1)
	return p, dir
}

func TestQuickstart(t *testing.T) {
	p, dir := startQuickstart(t)

	var health map[string]any
	p.decode(p.get("/health"), &health)
	if health["status"] != "ok" || health["online_workers"] != 1.0 {
		t.Errorf("health: %v", health)
	}

	const prompt = "To be, or not to be."
	const words = "- Words: 6, of them 4 different\n"

	chunks := chatChunks(t, p.post("/v1/chat/completions", chatRequest("text-report", prompt, true)))
	if got := strings.Join(chunks, ""); !strings.Contains(got, words) {
		t.Errorf("chat: %q", got)
	}

	resp := p.post("/api/execute", map[string]any{
		"worker_id": p.workerID("Text report"), "prompt": prompt, "task_id": "task_quickstart",
	})
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	report, found := strings.CutSuffix(string(body), filesIncoming)
	if !found || !strings.Contains(report, words) {
		t.Errorf("execute: %q", body)
	}
	if got := resp.Trailer.Get("X-AgentFM-Status"); got != "ok" {
		t.Errorf("X-AgentFM-Status %q", got)
	}

	fetched, err := io.ReadAll(p.get("/api/tasks/task_quickstart/artifacts").Body)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := os.ReadFile(filepath.Join(dir, "agentfm_artifacts/task_quickstart.zip"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(fetched, stored) {
		t.Error("the zip that was fetched is not the one in the folder")
	}
	files := unzip(t, fetched)
	if len(files) != 1 || strings.TrimRight(files["report.md"], "\n") != strings.TrimRight(report, "\n") {
		t.Errorf("artifacts: %q, want report.md with %q", files, report)
	}
}

// Text reaches the client while the agent runs: the agent does not go on
// before its first line has arrived here.
func TestStreaming(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	p := start(t, home(t), caddyfile(localMesh, "agentfm",
		agent("gated", "Gated", "gated", command(writeScript(t, gatedScript), "GATE", gate))))
	p.awaitWorkers(1)
	open := func(t *testing.T) {
		if err := os.WriteFile(gate, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("chat", func(t *testing.T) {
		p := p.in(t)
		defer os.Remove(gate)
		events := newEvents(p.post("/v1/chat/completions", chatRequest("gated", "", true)))
		got := events.nextText(t)
		if !strings.HasPrefix("first line\n", got) {
			t.Errorf("first text %q", got)
		}
		open(t)
		for text := events.nextText(t); text != ""; text = events.nextText(t) {
			got += text
		}
		if got != "first line\nsecond line\n" {
			t.Errorf("text %q", got)
		}
	})
	t.Run("execute", func(t *testing.T) {
		p := p.in(t)
		defer os.Remove(gate)
		resp := p.post("/api/execute", map[string]any{"worker_id": p.workerID("Gated"), "prompt": "go"})
		body := bufio.NewReader(resp.Body)
		if line, err := body.ReadString('\n'); line != "first line\n" {
			t.Fatalf("first line %q: %v", line, err)
		}
		open(t)
		rest, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		if line, found := strings.CutSuffix(string(rest), noFiles); !found || strings.TrimRight(line, "\n") != "second line" {
			t.Errorf("rest %q", rest)
		}
	})
}

// A process that is told to end leaves none of its agents behind.
func TestSigterm(t *testing.T) {
	script := writeScript(t, "sleep 600 & echo $$ $!\nwait\n")
	p := start(t, home(t), caddyfile(localMesh, "agentfm", agent("sleeper", "Sleeper", "sleeper", command(script))))
	p.awaitWorkers(1)
	resp := p.post("/api/execute", map[string]any{"worker_id": p.workerID("Sleeper"), "prompt": "go"})
	var shell, child int
	if _, err := fmt.Fscanln(resp.Body, &shell, &child); err != nil {
		t.Fatal(err)
	}
	p.stop()
	for _, pid := range []int{shell, child} {
		await(t, fmt.Sprintf("end of process %d", pid), func() bool { return ended(pid) })
	}
}

// A client that goes away takes its agent with it.
func TestHangUp(t *testing.T) {
	script := writeScript(t, "sleep 600 & echo $$ $!\nwait\n")
	p := start(t, home(t), caddyfile(localMesh, "agentfm", agent("sleeper", "Sleeper", "sleeper", command(script))))
	p.awaitWorkers(1)
	ctx, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	resp := p.do(ctx, http.MethodPost, "/v1/chat/completions", chatRequest("sleeper", "", true))
	var shell, child int
	if _, err := fmt.Sscan(newEvents(resp).nextText(t), &shell, &child); err != nil {
		t.Fatal(err)
	}
	hangUp()
	for _, pid := range []int{shell, child} {
		p.await(fmt.Sprintf("end of process %d", pid), func() bool { return ended(pid) })
	}
}

// events reads the server-sent events of a chat.
type events struct{ lines *bufio.Scanner }

func newEvents(resp *http.Response) events {
	return events{bufio.NewScanner(resp.Body)}
}

// nextText returns the next piece of text, and "" at the end of the chat.
func (e events) nextText(t *testing.T) string {
	t.Helper()
	for e.lines.Scan() {
		data, found := strings.CutPrefix(e.lines.Text(), "data: ")
		if !found {
			continue
		}
		if data == "[DONE]" {
			return ""
		}
		var chunk struct {
			Choices []struct {
				Delta struct {
					Content string `json:"content"`
				} `json:"delta"`
			} `json:"choices"`
			Error json.RawMessage `json:"error"`
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil || chunk.Error != nil {
			t.Fatalf("event %q: %v", data, err)
		}
		if len(chunk.Choices) > 0 && chunk.Choices[0].Delta.Content != "" {
			return chunk.Choices[0].Delta.Content
		}
	}
	t.Fatalf("the chat ended without [DONE]: %v", e.lines.Err())
	return ""
}

// chatChunks reads a chat to its end: all its pieces of text.
func chatChunks(t *testing.T, resp *http.Response) []string {
	t.Helper()
	var chunks []string
	e := newEvents(resp)
	for text := e.nextText(t); text != ""; text = e.nextText(t) {
		chunks = append(chunks, text)
	}
	return chunks
}

func unzip(t *testing.T, data []byte) map[string]string {
	t.Helper()
	archive, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]string)
	for _, f := range archive.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[f.Name] = string(content)
	}
	return files
}

func replaceOnce(t *testing.T, text, old, new string) string {
	t.Helper()
	if n := strings.Count(text, old); n != 1 {
		t.Fatalf("%q is there %d times", old, n)
	}
	return strings.Replace(text, old, new, 1)
}
