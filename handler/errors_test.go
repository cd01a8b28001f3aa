// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// secretAddress must not get to clients.
const secretAddress = "/ip4/10.1.2.3/tcp/4001"

// dispatchErrors are the errors that a task can end with, and their answers.
var dispatchErrors = []struct {
	err     error
	status  int
	code    string // a "%" stands for what differs on the native route
	text    string
	retry   string // Retry-After
	noRetry bool   // X-Should-Retry: false
}{
	{router.ErrNoMatch, 404, "%_not_found", "", "", false},
	{router.ErrBusy, 503, "mesh_overloaded", "capacity", "1", false},
	{fmt.Errorf("%w: %s", wire.ErrCapacity, "Worker is at max capacity (4/4). Try another worker."), 503, "mesh_overloaded", "capacity", "1", false},
	{router.ErrPromptTooLong, 400, "context_length_exceeded", "bytes", "", false},
	{fmt.Errorf("%w: 2000000 bytes", wire.ErrFrameTooLarge), 400, "context_length_exceeded", "shorten", "", false},
	{router.ErrExcluded, 404, "%_not_found", "X-AgentFM-Exclude", "", false},
	{router.ErrQueueFull, 503, "mesh_overloaded", "wait", "2", false},
	{router.ErrCrowdedOut, 429, "rate_limit_exceeded", "your requests", "2", false},
	{fmt.Errorf("%w: dialling %s: %w", mesh.ErrUnreachable, secretAddress, context.DeadlineExceeded), 502, "worker_unreachable", "reached", "", false},
	{fmt.Errorf("%w: stream reset by %s", mesh.ErrStream, secretAddress), 502, "worker_stream_failed", "connection", "", true},
	{fmt.Errorf("%w: %w", mesh.ErrStream, io.ErrUnexpectedEOF), 502, "worker_stream_failed", "connection", "", true},
	{fmt.Errorf("%w: %w", mesh.ErrStream, os.ErrDeadlineExceeded), 502, "worker_stream_failed", "too long", "", true},
	{fmt.Errorf("%w: %s", wire.ErrRefused, "Version mismatch! Worker is running v1.2.0."), 502, "worker_stream_failed", "Version mismatch! Worker is running v1.2.0.", "", false},
	{fmt.Errorf("%w: %s", mesh.ErrNoModel, "this worker does not have it"), 404, "model_not_found", "no such model: this worker", "", false},
	{fmt.Errorf("attempt 1: %w: exit status 3\x1b]52;c;x\x07", wire.ErrAgentFailed), 502, "worker_stream_failed", "agent failed: exit status 3 ]52;c;x", "", true},
	{wire.ErrTruncated, 502, "worker_stream_failed", "ended early", "", true},
	{fmt.Errorf("%w: disk full", mesh.ErrArtifact), 502, "worker_stream_failed", "files", "", true},
	{mesh.ErrNotRunning, 503, "mesh_overloaded", "the gateway is starting", "1", false},
	{mesh.ErrTaskID, 409, "task_id_in_use", "id", "", true},
	{context.DeadlineExceeded, 502, "worker_stream_failed", "too long", "", true},
	{errors.New("open /var/lib/secret: no"), 500, "internal_error", "internal error", "", false},
}

func TestDispatchErrors(t *testing.T) {
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}}
	g := serve(t, f)
	for _, e := range dispatchErrors {
		for route, body := range taskRoutes {
			for _, stream := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/%t", e.err, route[1:], stream), func(t *testing.T) {
					f.dispatch = fails(e.err)
					if stream {
						body = strings.Replace(body, "{", `{"stream":true,`, 1)
					}
					noun := "model"
					if strings.HasPrefix(route, "/api") {
						noun = "worker"
					}
					a := g.do(t, "POST", route, body)
					a.failed(t, e.status, strings.Replace(e.code, "%", noun, 1))
					if !strings.Contains(a.message(), e.text) || strings.ContainsAny(a.message(), "\x1b\x07") ||
						strings.Contains(a.body, secretAddress) || strings.Contains(a.body, "/var/lib") {
						t.Errorf("message %q", a.message())
					}
					if got := a.header.Get("Retry-After"); got != e.retry {
						t.Errorf("Retry-After %q", got)
					}
					if got := a.header.Get("X-Should-Retry") == "false"; got != e.noRetry {
						t.Errorf("X-Should-Retry %q", a.header.Get("X-Should-Retry"))
					}
				})
			}
		}
	}
}

// TestFailedAttempts wants an answer to name the worker that failed before anyone
// served, and how many were tried.
func TestFailedAttempts(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	f := &fakeMesh{dispatch: fails(&mesh.AttemptError{
		Served: mesh.Served{Peer: peerB, Agent: "Legal", Model: "big", TaskID: "task_1", Tier: router.TierModel, Attempts: 3},
		Err:    fmt.Errorf("%w: exit status 3", wire.ErrAgentFailed),
	})}
	g := serve(t, f, func(_ *gate, s *serverSettings) { s.logger = zap.New(core) })
	for route, body := range taskRoutes {
		for _, b := range []string{body, strings.Replace(body, "{", `{"stream":true,`, 1)} {
			a := g.do(t, "POST", route, b)
			a.failed(t, 502, "worker_stream_failed")
			repl := <-g.repl
			task, _ := repl.GetString("http.agentfm.task")
			if a.header.Get("X-AgentFM-Peer") != peerB || a.header.Get("X-AgentFM-Attempts") != "3" || task != "task_1" ||
				a.header.Get("X-Should-Retry") != "false" {
				t.Errorf("%s: %v, task %q", route, a.header, task)
			}
		}
	}
	for _, e := range logs.All() {
		if e.ContextMap()["peer"] != peerB {
			t.Errorf("logged %v", e.ContextMap())
		}
	}
	if logs.Len() != 2*len(taskRoutes) {
		t.Errorf("%d lines", logs.Len())
	}
}

// A task that fails before its first byte is answered like one that was never
// taken.
func TestFailureBeforeOutput(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{end: fmt.Errorf("%w: exit status 3", wire.ErrAgentFailed)})}
	g := serve(t, f)
	for route, body := range taskRoutes {
		for _, b := range []string{body, strings.Replace(body, "{", `{"stream":true,`, 1)} {
			a := g.do(t, "POST", route, b)
			a.failed(t, 502, "worker_stream_failed")
			if a.message() != "agent failed: exit status 3" || a.header.Get("X-AgentFM-Peer") != peerA || a.header.Get("Trailer") != "" {
				t.Errorf("%s: %s, %v", route, a.body, a.header)
			}
		}
	}
}

func TestNotRunning(t *testing.T) {
	g := serve(t, &fakeMesh{off: true})
	for path, body := range taskRoutes {
		g.do(t, "POST", path, body).failed(t, 503, "mesh_overloaded")
	}
	for _, path := range []string{"/health", "/api/workers", "/v1/models", "/v1/models/x", "/api/tasks/x/artifacts"} {
		a := g.do(t, "GET", path, "")
		a.failed(t, 503, "mesh_overloaded")
		if a.message() != "the gateway is starting" || a.header.Get("Retry-After") != "1" {
			t.Errorf("%s: %s", path, a.body)
		}
	}
}

func TestPromptTooLong(t *testing.T) {
	small, large := worker(peerA, "HR", "llama3.2"), worker(peerB, "Legal", "big")
	large.MaxPrompt = 500_000
	f := &fakeMesh{workers: []mesh.WorkerInfo{small, large}}
	g := serve(t, f)
	completion := func(model string, size int) string {
		return `{"model":"` + model + `","prompt":"` + strings.Repeat("x", size) + `"}`
	}
	for _, r := range []struct {
		name, route, body string
		err               error
		want              []string
		param             string
	}{
		{"argument", "/v1/completions", completion("llama3.2", 131_072), router.ErrPromptTooLong,
			[]string{"131072 bytes", "at most 131071", "prompt stdin"}, "prompt"},
		{"chat, with its frame", "/v1/chat/completions", `{"model":"hr","messages":[{"role":"user","content":"` + strings.Repeat("x", 131_072) + `"}]}`, router.ErrPromptTooLong,
			[]string{"131090 bytes", "at most 131071", "prompt stdin"}, "messages"},
		{"native", "/api/execute", `{"worker_id":"` + peerA + `","prompt":"` + strings.Repeat("x", 200_000) + `"}`, router.ErrPromptTooLong,
			[]string{"200000 bytes", "at most 131071", "prompt stdin"}, "prompt"},
		{"an agent with a limit of its own", "/v1/completions", completion("big", 600_000), router.ErrPromptTooLong,
			[]string{"600000 bytes", "at most 500000", "shorten it"}, "prompt"},
		{"over the frame", "/v1/completions", completion("big", 2<<20), wire.ErrFrameTooLarge,
			[]string{"2097152 bytes", "at most 500000"}, "prompt"},
		{"over the frame once encoded", "/v1/completions", completion("nobody", 1<<19), wire.ErrFrameTooLarge,
			[]string{"524288 bytes", "encoded", "1048576"}, "prompt"},
		{"8 MiB", "/api/execute", `{"worker_id":"` + peerB + `","prompt":"` + strings.Repeat("x", 8<<20) + `"}`, wire.ErrFrameTooLarge,
			[]string{"8388608 bytes"}, "prompt"},
	} {
		t.Run(r.name, func(t *testing.T) {
			f.dispatch = fails(r.err)
			a := g.do(t, "POST", r.route, r.body)
			a.failed(t, 400, "context_length_exceeded")
			for _, text := range r.want {
				if !strings.Contains(a.message(), text) {
					t.Errorf("message %q does not contain %q", a.message(), text)
				}
			}
			if !strings.Contains(a.body, `"param":"`+r.param+`"`) {
				t.Errorf("got %s", a.body)
			}
		})
	}
}

func TestReason(t *testing.T) {
	for _, err := range []error{
		fmt.Errorf("%w: at\r\n\x00x", wire.ErrAgentFailed),
		fmt.Errorf("task_1 on 12D3: %w: at\u202e\u0007\nx", wire.ErrAgentFailed),
	} {
		if got := reason(err, wire.ErrAgentFailed); got != "agent failed: at   x" {
			t.Errorf("got %q", got)
		}
	}
}

// TestOffline wants a model whose workers have just gone to be worth another try,
// and one that nobody has not to be. A key learns nothing of workers that are not
// its own.
func TestOffline(t *testing.T) {
	gone := worker(peerA, "HR", "llama3.2")
	gone.Online, gone.LastSeen = false, time.Now().Add(-time.Minute)
	f := &fakeMesh{workers: []mesh.WorkerInfo{gone}, dispatch: fails(router.ErrNoMatch)}
	g := serve(t, f)
	a := g.do(t, "POST", "/v1/chat/completions", chatBody)
	a.failed(t, 503, "no_worker_online")
	if a.header.Get("Retry-After") != "5" || a.header.Get("X-Should-Retry") == "false" {
		t.Errorf("got %v", a.header)
	}
	g.do(t, "POST", "/v1/chat/completions", strings.Replace(chatBody, "llama3.2", "nobody", 1)).failed(t, 404, "model_not_found")
	g.do(t, "POST", "/v1/chat/completions", chatBody, "X-AgentFM-Worker", peerB).failed(t, 404, "model_not_found")
	g.do(t, "POST", "/api/execute", executeBody).failed(t, 404, "worker_not_found")
	f.workers[0].LastSeen = time.Now().Add(-time.Hour)
	g.do(t, "POST", "/v1/chat/completions", chatBody).failed(t, 404, "model_not_found")
}
