// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// commandLine is a shell of somebody with a key.
type commandLine struct {
	dir string
	env []string
}

// run runs `agentfm agentfm` with arguments.
func (c commandLine) run(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, append([]string{"agentfm"}, args...)...)
	cmd.Dir, cmd.Env = c.dir, append([]string{"HOME=" + c.dir, "PATH=" + os.Getenv("PATH")}, c.env...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	_ = cmd.Run() // its status says how it went
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// ok runs a command that succeeds.
func (c commandLine) ok(t *testing.T, args ...string) string {
	t.Helper()
	out, notes, code := c.run(t, args...)
	if code != 0 {
		t.Fatalf("%q: status %d: %s", args, code, notes)
	}
	return out
}

// fails runs a command that fails, and says what.
func (c commandLine) fails(t *testing.T, want string, args ...string) {
	t.Helper()
	out, notes, code := c.run(t, args...)
	if code == 0 || !strings.Contains(notes, want) || strings.Contains(out+notes, aliceKey) {
		t.Errorf("%q: status %d: %s%s, want %s", args, code, out, notes, want)
	}
}

// The commands about tasks and webhooks do what they say, with the ready-made binary.
func TestTaskCommands(t *testing.T) {
	t.Parallel()
	var posts atomic.Int64
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		posts.Add(1)
		w.WriteHeader(http.StatusGone)
	}))
	t.Cleanup(sink.Close)
	dir := home(t)
	gate := filepath.Join(dir, "gate")
	writeFile(t, dir, "keys", keyFile)
	p := startWith(t, dir, caddyfile(localMesh, "agentfm {\n\t\tapi_keys "+testKey+"\n\t\tapi_keys_file "+dir+"/keys\n\t}",
		agent("tenant", "Tenant", "tenant", command(writeScript(t, tenantScript), "GATE", gate))), []string{"AGENTFM_WEBHOOK_ALLOW_PRIVATE=1"})
	p.awaitWorkers(1)
	worker := p.workerID("Tenant")
	c := commandLine{dir: t.TempDir(), env: []string{"AGENTFM_GATEWAY_URL=" + p.url, "AGENTFM_API_KEY=" + aliceKey}}
	done := p.submitAs(t, aliceKey, map[string]string{"worker_id": worker, "prompt": "one", "webhook_url": sink.URL})
	p.await("a webhook that is disabled", func() bool { return p.taskAs(t, aliceKey, done).Webhook.Status == "disabled" })

	if got := c.ok(t, "tasks", "list", "--status", "completed"); !strings.HasPrefix(got, done+"\tcompleted\t\tTenant\ttenant\t") || strings.Count(got, "\n") != 1 {
		t.Errorf("list: %q", got)
	}
	if got := c.ok(t, "tasks", "show", done); !strings.Contains(got, "\nfiles\tyes\n") || !strings.Contains(got, " 410 after ") {
		t.Errorf("show: %s", got)
	}
	var v taskView
	if err := json.Unmarshal([]byte(c.ok(t, "tasks", "show", done, "--json")), &v); err != nil || v.ID != done {
		t.Errorf("show: %+v, %v", v, err)
	}
	if got := c.ok(t, "tasks", "logs", done); got != "said one\n" {
		t.Errorf("logs: %q", got)
	}
	if got := c.ok(t, "tasks", "logs", "-f", done); got != "said one\n" {
		t.Errorf("logs -f: %q", got)
	}
	if got := c.ok(t, "tasks", "artifacts", done); got != done+".zip\n" {
		t.Errorf("artifacts: %q", got)
	}
	r, err := zip.OpenReader(filepath.Join(c.dir, done+".zip"))
	if err != nil || len(r.File) != 1 || r.File[0].Name != "marked.txt" {
		t.Errorf("artifacts: %v", err)
	}
	r.Close()
	c.fails(t, "is there already", "tasks", "artifacts", done)

	if got := c.ok(t, "webhooks", "list", "--status", "disabled"); !strings.HasPrefix(got, done+"\tdisabled\t1\t410\t") {
		t.Errorf("webhooks: %q", got)
	}
	p.await("a webhook to be sent again", func() bool {
		_, _, code := c.run(t, "webhooks", "redeliver", done) // not at once: 429
		return code == 0
	})
	p.await("another attempt", func() bool { return posts.Load() == 2 })

	runs := p.submitAs(t, aliceKey, map[string]string{"worker_id": worker, "prompt": "wait"})
	follow := make(chan string)
	go func() {
		out, notes, code := c.run(t, "tasks", "logs", "-f", runs)
		if code == 0 || !strings.Contains(notes, "cancelled") {
			t.Errorf("logs -f of a task that is cancelled: status %d: %s", code, notes)
		}
		follow <- out
	}()
	p.await("a task that runs", func() bool { return p.taskAs(t, aliceKey, runs).Status == "running" })
	p.await("its output", func() bool { return c.ok(t, "tasks", "logs", runs) == "said wait\n" })
	if got := c.ok(t, "tasks", "cancel", runs); !strings.Contains(got, "\nstatus\tcancelled\n") {
		t.Errorf("cancel: %s", got)
	}
	if got := <-follow; got != "said wait\n" {
		t.Errorf("logs -f: %q", got)
	}
	c.fails(t, "task_ended, status 409", "tasks", "cancel", done)
	c.fails(t, "task_not_found, status 404", "tasks", "show", "task_"+strings.Repeat("0", 36))
	c.fails(t, "accepts 1 arg(s), received 2", "tasks", "show", done, runs)
	reader := commandLine{dir: c.dir, env: []string{"AGENTFM_GATEWAY_URL=" + p.url, "AGENTFM_API_KEY=" + readerKey}}
	if got := reader.ok(t, "tasks", "list"); got != "" {
		t.Errorf("of another: %q", got)
	}
	reader.fails(t, "insufficient_scope, status 403", "tasks", "cancel", done)
	nobody := commandLine{dir: c.dir, env: []string{"AGENTFM_GATEWAY_URL=" + p.url}}
	nobody.fails(t, "AGENTFM_API_KEY", "tasks", "list")
	nowhere := commandLine{dir: c.dir, env: []string{"AGENTFM_GATEWAY_URL=http://127.0.0.1:" + freePorts(t, 1)[0]}}
	nowhere.fails(t, "--gateway", "tasks", "list")
}
