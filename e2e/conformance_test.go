// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// lab is an agent that does what its prompt says, and notes its runs in the
// folder state, as those of the key up to its first hyphen. See testdata/lab.sh.
func lab(t *testing.T, key, name, model, state string, maxTasks int, lines ...string) string {
	t.Helper()
	script, err := filepath.Abs("testdata/lab.sh")
	if err != nil {
		t.Fatal(err)
	}
	worker, _, _ := strings.Cut(key, "-")
	block := agent(key, name, model, command(script, "STATE", state, "WORKER", worker))
	more := strings.Join(append([]string{fmt.Sprintf("max_tasks %d", maxTasks)}, lines...), "\n\t\t\t")
	return replaceOnce(t, block, "max_tasks 4", more)
}

// withKey is the block of a site that wants testKey.
const withKey = "agentfm {\n\t\tapi_keys " + testKey + "\n\t}"

// labRequest is a chat with a lab agent.
func labRequest(model, command, token string, words ...any) map[string]any {
	return chatRequest(model, fmt.Sprintln(append([]any{"lab:", command, token}, words...)...), true)
}

// runsOf returns the lines "PID WORKER" of the runs whose token matches.
func runsOf(t *testing.T, state, pattern string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(state, pattern))
	if err != nil {
		t.Fatal(err)
	}
	var runs []string
	for _, file := range files {
		if filepath.Ext(file) != "" { // no runs are in it
			continue
		}
		notes, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(notes)) {
			runs = append(runs, strings.TrimSpace(line))
		}
	}
	return runs
}

// Every client against a gateway in the state of everyday.
func TestConformance(t *testing.T) {
	state := t.TempDir()
	agents := []string{lab(t, "lab", "acme/lab", "lab", state, 64), lab(t, "full", "Full", "full", state, 1)}
	for _, kind := range clientKinds {
		name := clientName(kind.name)
		agents = append(agents,
			lab(t, "one-"+name, "one/"+name, "pair/"+name, state, 4),
			lab(t, "two-"+name, "two/"+name, "pair/"+name, state, 4))
	}
	p := start(t, home(t), caddyfile(localMesh, withKey, agents...))
	p.awaitWorkers(len(agents))
	newEvents(p.post("/v1/chat/completions", labRequest("full", "drip", "full"))).nextText(t)
	cs := startClients(t, p, testKey, state, 0)
	cs.ask("models", "whole", "stream", "usage", "completions", "while_it_runs", "choices", "stop", "max_tokens", "parts",
		"roles", "fields", "errors", "responses", "dies", "failover", "big_line", "no_second_run", "keyed", "hang_up", "responses_die")
	cs.check()

	// What no client shows: how long the lines are.
	body, err := io.ReadAll(p.post("/v1/chat/completions", labRequest("lab", "line", "raw", 200<<10)).Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(body) {
		if len(line) >= 64<<10 {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
}

// An agent that is silent for long does not make a client, or a proxy between,
// think that the answer is lost.
func TestConformanceSilence(t *testing.T) {
	t.Parallel() // it waits
	silence := scaled(3*time.Second, time.Minute)
	state := t.TempDir()
	site := replaceOnce(t, withKey, "\n\t}", fmt.Sprintf("\n\t\theartbeat %v\n\t}", silence/5))
	p := start(t, home(t), caddyfile(localMesh, site, lab(t, "lab", "acme/lab", "lab", state, 64)))
	p.awaitWorkers(1)
	cs := startClients(t, p, testKey, state, silence)
	cs.ask("silence")

	resp := p.post("/v1/chat/completions", labRequest("lab", "silence", "raw", silence.Seconds()))
	if _, err := os.Stat(filepath.Join(state, "raw.said")); err == nil {
		t.Error("the head waited for the text")
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	comments, after := 0, false
	for line := range bytes.Lines(body) {
		if after && len(line) == 1 { // an empty event: openai-go before 3.43 ends at one
			t.Errorf("an empty line after a comment: %q", body)
		}
		if after = line[0] == ':'; after {
			comments++
		}
	}
	if comments < 6 {
		t.Errorf("%d comments in %q", comments, body)
	}
	cs.check()
}

// A wrong key is refused, and soon not even looked at.
func TestConformanceLogins(t *testing.T) {
	p := start(t, home(t), caddyfile(localMesh, withKey))
	p.awaitWorkers(0)
	cs := startClients(t, p, testKey, t.TempDir(), 0)
	cs.ask("logins")
	cs.check()
}

// A key for some models does not see the others.
func TestConformanceAccess(t *testing.T) {
	const limited = "a-key-for-one-model"
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte("all "+testKey+"\nlimited "+limited+" models=other\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	p := start(t, home(t), caddyfile(localMesh, "agentfm {\n\t\tapi_keys_file "+keys+"\n\t}",
		lab(t, "lab", "acme/lab", "lab", state, 64),
		lab(t, "other", "Other", "other", state, 64)))
	p.awaitWorkers(2)
	cs := startClients(t, p, limited, state, 0)
	cs.ask("no_access")
	cs.check()
	if runs := runsOf(t, state, "no_access-*"); len(runs) != cs.count("no_access") {
		t.Errorf("%d runs: %q", len(runs), runs)
	}
}

// A stream goes on when the configuration is replaced.
func TestConformanceReload(t *testing.T) {
	state := t.TempDir()
	p := start(t, home(t), caddyfile(localMesh, withKey, lab(t, "lab", "acme/lab", "lab", state, 64)))
	p.awaitWorkers(1)
	cs := startClients(t, p, testKey, state, 0)
	cs.ask("reload")
	p.await("all streams", func() bool { return len(runsOf(t, state, "reload-*")) == cs.count("reload") })
	p.reload(func(caddyfile string) string {
		return replaceOnce(t, caddyfile, "\tagentfm {\n\t\tapi_keys", "\theader X-Config second\n\tagentfm {\n\t\tapi_keys")
	})
	resp, err := p.send(t.Context(), http.MethodGet, "/health", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Header.Get("X-Config") != "second" {
		t.Error("the second configuration does not serve")
	}
	writeFile(t, state, "reloaded", "")
	cs.check()
}

// A worker that is killed takes no answer with it that had not begun, and ends
// those that had with an error.
func TestConformanceKill(t *testing.T) {
	state := t.TempDir()
	m := newMesh(t, withKey)
	worker := func(key string) *process { return m.worker(lab(t, key, "acme/lab", "lab", state, 64)) }
	first := worker("first")
	m.gateway.awaitWorkers(1)
	cs := startClients(t, m.gateway, testKey, state, 0)

	cs.ask("moved")
	m.gateway.await("all tasks", func() bool { return len(runsOf(t, state, "moved-*")) == cs.count("moved") })
	second := worker("second")
	m.gateway.awaitWorkers(2)
	first.kill()
	m.gateway.await("all tasks elsewhere", func() bool { return len(runsOf(t, state, "moved-*")) == 2*cs.count("moved") })
	writeFile(t, state, "moved", "")
	cs.check()

	cs.ask("killed")
	m.gateway.await("text of all streams", func() bool {
		begun, _ := filepath.Glob(filepath.Join(state, "killed-*.begun")) // the pattern is well formed
		return len(begun) == cs.count("killed")
	})
	second.kill()
	cs.check()
}
