// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// serveTasks is serve, with a store of tasks.
func serveTasks(t *testing.T, f *fakeMesh, o tasks.Options, settings ...setting) *gate {
	t.Helper()
	o.Dir, o.Logger = t.TempDir(), nopLogger
	part, err := tasks.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if f.dir == "" {
		f.dir = t.TempDir()
	}
	g := serve(t, f, append(settings, func(g *gate, _ *serverSettings) { g.h.tasks = part })...)
	if err := part.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = part.Cleanup() })
	return g
}

// asking makes answers call the Begin of their calls, as the mesh does.
func asking(dispatch func(context.Context, mesh.Call) (run, error)) func(context.Context, mesh.Call) (run, error) {
	return func(ctx context.Context, c mesh.Call) (run, error) {
		if err := c.Begin(mesh.Served{Peer: peerA, Agent: "HR", Model: "llama3.2", TaskID: c.TaskID}); err != nil {
			return nil, err
		}
		return dispatch(ctx, c)
	}
}

// submitTask submits a task and returns its id.
func (g *gate) submitTask(t *testing.T, body string, headers ...string) string {
	t.Helper()
	a := g.do(t, "POST", "/api/execute/async", body, headers...)
	var v struct {
		TaskID  string `json:"task_id"`
		Status  string `json:"status"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal([]byte(a.body), &v); err != nil || a.status != http.StatusAccepted || v.Status != "queued" ||
		!tasks.ValidID(v.TaskID) || v.Message == "" || a.header.Get("Location") != "/api/tasks/"+v.TaskID {
		t.Fatalf("got %d %s", a.status, a.body)
	}
	a.hasRequestID(t)
	return v.TaskID
}

// task returns a task as a client sees it.
func (g *gate) task(t *testing.T, id string, headers ...string) map[string]any {
	t.Helper()
	a := g.do(t, "GET", "/api/tasks/"+id, "", headers...)
	var v map[string]any
	if err := json.Unmarshal([]byte(a.body), &v); err != nil || a.status != http.StatusOK {
		t.Fatalf("got %d %s", a.status, a.body)
	}
	return v
}

// endedTask waits for the end of a task.
func (g *gate) endedTask(t *testing.T, id string, headers ...string) map[string]any {
	t.Helper()
	var v map[string]any
	await.Until(t, "the end of a task", func() bool {
		v = g.task(t, id, headers...)
		return tasks.State(v["status"].(string)).Ended()
	})
	return v
}

// TestRedeliver wants the history of a webhook in the task, and it to be sent again.
func TestRedeliver(t *testing.T) {
	t.Setenv("AGENTFM_WEBHOOK_ALLOW_PRIVATE", "1")
	var posts atomic.Int64
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		posts.Add(1)
		w.WriteHeader(http.StatusGone)
	}))
	defer sink.Close()
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}, dispatch: asking(answers(script{output: []string{"x"}}))}
	g := serveTasks(t, f, tasks.Options{})
	id := g.submitTask(t, `{"worker_id":"`+peerA+`","prompt":"x","webhook_url":"`+sink.URL+`"}`)
	var w map[string]any
	await.Until(t, "an attempt", func() bool {
		w = g.task(t, id)["webhook"].(map[string]any)
		return w["status"] == "disabled"
	})
	history := w["history"].([]any)
	if first := history[0].(map[string]any); len(history) != 1 || first["status"] != 410.0 || first["at"] == nil || first["duration_seconds"] == nil || first["error"] != nil {
		t.Errorf("got %v", history)
	}
	if a := g.do(t, "GET", "/api/tasks?webhook=disabled", ""); !strings.Contains(a.body, id) || strings.Contains(a.body, "history") {
		t.Errorf("got %s", a.body)
	}
	if a := g.do(t, "GET", "/api/tasks?webhook=delivered", ""); a.body != `{"tasks":[],"has_more":false}` {
		t.Errorf("got %s", a.body)
	}
	g.do(t, "GET", "/api/tasks?webhook=lost", "").failed(t, http.StatusBadRequest, "invalid_request_error")
	if a := g.do(t, "POST", "/api/tasks/"+id+"/webhook", ""); a.status != http.StatusTooManyRequests || a.header.Get("Retry-After") != "10" {
		t.Errorf("got %+v", a)
	}
	g.do(t, "POST", "/api/tasks/task_"+strings.Repeat("0", 36)+"/webhook", "").failed(t, http.StatusNotFound, "task_not_found")
	g.do(t, "POST", "/api/tasks/"+g.submitTask(t, taskBody)+"/webhook", "").failed(t, http.StatusNotFound, "webhook_not_found")
	if posts.Load() != 1 {
		t.Errorf("%d came", posts.Load())
	}
}

const taskBody = `{"worker_id":"` + peerA + `","prompt":"hello"}`

func TestAsync(t *testing.T) {
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}, dir: t.TempDir()}
	f.dispatch = asking(func(ctx context.Context, c mesh.Call) (run, error) {
		if err := os.WriteFile(filepath.Join(f.dir, c.TaskID+".zip"), []byte("zip"), 0o600); err != nil {
			return nil, err
		}
		return answers(script{output: []string{"one ", "two"}, files: true})(ctx, c)
	})
	const (
		artifacts = `"artifacts":{"bytes":3,"sha256":"` + zipSum + `","files":2}`
		usage     = `"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"agentfm_estimated":true}`
	)
	g := serveTasks(t, f, tasks.Options{})
	id := g.submitTask(t, taskBody)
	v := g.endedTask(t, id)
	for key, want := range map[string]any{
		"status": "completed", "worker_id": peerA, "agent_name": "HR", "model": "llama3.2", "attempts": 1.0,
		"prompt_bytes": 5.0, "output_bytes": 7.0, "has_files": true, "reason": nil, "webhook": nil,
	} {
		if v[key] != want {
			t.Errorf("%s: got %v, want %v", key, v[key], want)
		}
	}
	if a := g.do(t, "GET", "/api/tasks/"+id+"/output", ""); a.status != 200 || a.body != "one two" ||
		a.header.Get("X-AgentFM-Task-Status") != "completed" || a.header.Get("Content-Length") != "7" {
		t.Errorf("got %+v", a)
	}
	if a := g.do(t, "HEAD", "/api/tasks/"+id+"/output", ""); a.status != 200 || a.body != "" {
		t.Errorf("got %+v", a)
	}
	if a := g.do(t, "GET", "/api/tasks/"+id+"/artifacts", ""); a.status != 200 || a.body != "zip" {
		t.Errorf("got %+v", a)
	}
	if a := g.do(t, "GET", "/api/tasks/"+id, ""); !strings.Contains(a.body, artifacts) || !strings.Contains(a.body, usage) {
		t.Errorf("got %s", a.body)
	}
	a := g.do(t, "GET", "/api/tasks/"+id+"/artifacts", "", "Range", "bytes=1-", "If-Range", `"`+zipSum+`"`)
	if a.status != 206 || a.body != "ip" || a.header.Get("ETag") != `"`+zipSum+`"` || !strings.HasPrefix(a.header.Get("Repr-Digest"), "sha-256=:SnD+") {
		t.Errorf("got %+v", a)
	}
	if a := g.do(t, "GET", "/api/tasks/"+id+"/artifacts", "", "If-None-Match", `"`+zipSum+`"`); a.status != 304 {
		t.Errorf("got %+v", a)
	}
	if err := os.Remove(filepath.Join(f.dir, id+".zip")); err != nil {
		t.Fatal(err)
	}
	g.do(t, "GET", "/api/tasks/"+id+"/artifacts", "").failed(t, http.StatusGone, "artifacts_expired")
	g.do(t, "DELETE", "/api/tasks/"+id, "").failed(t, http.StatusConflict, "task_ended")
	call := f.seen()[0]
	if call.TaskID != id || call.Prompt != "hello" || call.Target.Peer != peerA || call.Retries != defaultRetries {
		t.Errorf("got %+v", call)
	}

	f.dispatch = asking(answers(script{output: []string{"x"}, usage: &wire.Usage{Prompt: 7, Completion: 5}}))
	byModel := g.submitTask(t, `{"model":" LLAMA3.2 ","prompt":"x"}`)
	if got := fmt.Sprint(g.endedTask(t, byModel)["usage"]); got != "map[completion_tokens:5 prompt_tokens:7 total_tokens:12]" {
		t.Errorf("got %s", got)
	}
	if a := g.do(t, "GET", "/api/tasks/"+byModel+"/artifacts", ""); a.status != 404 || !strings.Contains(a.body, "the task left no files") {
		t.Errorf("got %+v", a)
	}
	var list struct {
		Tasks []struct {
			ID string `json:"task_id"`
		} `json:"tasks"`
		More bool `json:"has_more"`
	}
	a = g.do(t, "GET", "/api/tasks?limit=1&status=completed", "")
	if err := json.Unmarshal([]byte(a.body), &list); err != nil || len(list.Tasks) != 1 || list.Tasks[0].ID != byModel || !list.More {
		t.Errorf("got %d %s", a.status, a.body)
	}
	if a := g.do(t, "GET", "/api/tasks?status=failed", ""); a.body != `{"tasks":[],"has_more":false}` {
		t.Errorf("got %d %s", a.status, a.body)
	}
	for _, query := range []string{"status=done", "limit=0", "limit=201", "limit=x", "before=.x"} {
		g.do(t, "GET", "/api/tasks?"+query, "").failed(t, http.StatusBadRequest, "invalid_request_error")
	}
}

func TestAsyncRefused(t *testing.T) {
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}}
	g := serveTasks(t, f, tasks.Options{})
	long := strings.Repeat("x", wire.MaxTaskFrame)
	for _, c := range []struct {
		body   string
		status int
		code   string
	}{
		{`{`, 400, "invalid_request_error"},
		{`{"prompt":"x"}`, 400, "invalid_request_error"},
		{`{"worker_id":"nobody","prompt":"x"}`, 400, "invalid_request_error"},
		{`{"worker_id":"` + peerA + `","model":"x","prompt":"x"}`, 400, "invalid_request_error"},
		{`{"model":"` + strings.Repeat("m", 257) + `","prompt":"x"}`, 400, "invalid_request_error"},
		{`{"worker_id":"` + peerA + `"}`, 400, "prompt_required"},
		{`{"worker_id":"` + peerA + `","prompt":"a\u0000b"}`, 400, "invalid_request_error"},
		{`{"worker_id":"` + peerA + `","prompt":"x","webhook_url":"http://127.0.0.1/"}`, 400, "url_not_allowed"},
		{`{"worker_id":"` + peerB + `","prompt":"x"}`, 404, "worker_not_found"},
		{`{"model":"gpt","prompt":"x"}`, 404, "model_not_found"},
		{`{"model":"HR","prompt":"` + long + `"}`, 400, "context_length_exceeded"},
	} {
		g.do(t, "POST", "/api/execute/async", c.body).failed(t, c.status, c.code)
	}
	g.do(t, "POST", "/api/execute/async", taskBody, "X-AgentFM-Worker", peerB).failed(t, 404, "worker_not_found")
	g.do(t, "POST", "/api/execute", `{"worker_id":"`+peerA+`","prompt":"x","task_id":"task_`+strings.Repeat("0", 36)+`"}`).
		failed(t, 400, "invalid_request_error")
	for _, id := range []string{"x", "task_" + strings.Repeat("0", 36)} {
		g.do(t, "GET", "/api/tasks/"+id, "").failed(t, 404, "task_not_found")
		g.do(t, "DELETE", "/api/tasks/"+id, "").failed(t, 404, "task_not_found")
		g.do(t, "GET", "/api/tasks/"+id+"/output", "").failed(t, 404, "task_not_found")
		g.do(t, "GET", "/api/tasks/"+id+"/artifacts", "").failed(t, 404, "task_not_found")
	}
	if n := len(f.seen()); n > 0 {
		t.Errorf("%d tasks were run", n)
	}
}

func TestAsyncFull(t *testing.T) {
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}, dispatch: asking(answers(script{hang: true}))}
	g := serveTasks(t, f, tasks.Options{InFlight: 1})
	id := g.submitTask(t, taskBody)
	a := g.do(t, "POST", "/api/execute/async", taskBody)
	a.failed(t, http.StatusServiceUnavailable, "async_capacity_exhausted")
	if a.header.Get("Retry-After") != "5" {
		t.Errorf("got %v", a.header)
	}
	await.Until(t, "a task that runs", func() bool { return g.task(t, id)["status"] == "running" })
	for range 2 { // the second changes nothing
		if a := g.do(t, "DELETE", "/api/tasks/"+id, ""); a.status != 200 || !strings.Contains(a.body, `"status":"cancelled","reason":"cancelled"`) {
			t.Errorf("got %d %s", a.status, a.body)
		}
	}
}

// TestAsyncShare wants the last places to be for others than the client that has the rest.
func TestAsyncShare(t *testing.T) {
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}, dispatch: asking(answers(script{hang: true}))}
	g := serveTasks(t, f, tasks.Options{InFlight: 16}, withKeys(keyOne, keyTwo))
	for range 14 {
		g.submitTask(t, taskBody, "Authorization", "Bearer "+keyOne)
	}
	a := g.do(t, "POST", "/api/execute/async", taskBody, "Authorization", "Bearer "+keyOne)
	a.failed(t, http.StatusServiceUnavailable, "async_capacity_exhausted")
	if !strings.Contains(a.body, "many of your tasks") || a.header.Get("Retry-After") != "5" {
		t.Errorf("got %s %v", a.body, a.header)
	}
	g.submitTask(t, taskBody, "Authorization", "Bearer "+keyTwo)
}

// TestAsyncOwner wants a task to be its owner's alone, and to be run with its rights.
func TestAsyncOwner(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	keys := "ann key-of-ann-0123456789 models=HR\nbob key-of-bob-0123456789\nreader key-of-reader-0123456 scope=read\nrunner key-of-runner-0123456 scope=run\n"
	if err := os.WriteFile(file, []byte(keys), 0o600); err != nil {
		t.Fatal(err)
	}
	f := &fakeMesh{
		workers:  []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2"), worker(peerB, "Other", "llama3.2")},
		dispatch: asking(answers(script{output: []string{"secret"}, files: true})), dir: t.TempDir(),
	}
	g := serveTasks(t, f, tasks.Options{}, func(g *gate, _ *serverSettings) { g.h.APIKeysFile = file })
	bearer := func(name string) []string {
		return []string{"Authorization", "Bearer " + map[string]string{
			"ann": "key-of-ann-0123456789", "bob": "key-of-bob-0123456789", "reader": "key-of-reader-0123456", "runner": "key-of-runner-0123456",
		}[name]}
	}
	id := g.submitTask(t, `{"model":"llama3.2","prompt":"x"}`, bearer("ann")...)
	g.endedTask(t, id, bearer("ann")...)
	if may := f.seen()[0].Target.May; may == nil || !may(peerA, "HR", "llama3.2") || may(peerB, "Other", "llama3.2") {
		t.Error("the task has more rights than its key")
	}
	if err := os.WriteFile(filepath.Join(f.dir, id+".zip"), []byte("zip"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.dir, id+".1.zip"), []byte("zip"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, who := range []string{"bob", "reader", "runner"} {
		for _, path := range []string{"", "/output", "/artifacts"} {
			g.do(t, "GET", "/api/tasks/"+id+path, "", bearer(who)...).failed(t, 404, "task_not_found")
		}
		g.do(t, "GET", "/api/tasks/"+id+".1/artifacts", "", bearer(who)...).failed(t, 404, "task_not_found")
		if a := g.do(t, "GET", "/api/tasks", "", bearer(who)...); a.body != `{"tasks":[],"has_more":false}` {
			t.Errorf("%s sees %s", who, a.body)
		}
		want, code := 404, "task_not_found"
		if who == "reader" {
			want, code = 403, "insufficient_scope"
		}
		g.do(t, "DELETE", "/api/tasks/"+id, "", bearer(who)...).failed(t, want, code)
	}
	g.do(t, "GET", "/api/tasks/"+id, "").failed(t, 401, "unauthorized")
	g.do(t, "POST", "/api/execute/async", taskBody, bearer("reader")...).failed(t, 403, "insufficient_scope")
	g.do(t, "POST", "/api/execute/async", `{"worker_id":"`+peerB+`","prompt":"x"}`, bearer("ann")...).failed(t, 404, "worker_not_found")
	if a := g.do(t, "GET", "/api/tasks/"+id+"/artifacts", "", bearer("ann")...); a.body != "zip" {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

// TestTaskFailures wants each failure of a dispatch to end a task, or to have it run again.
func TestTaskFailures(t *testing.T) {
	for err, want := range map[error]string{
		router.ErrBusy:                        "1 ",
		router.ErrQueueFull:                   "1 ",
		wire.ErrCapacity:                      "1 ",
		router.ErrNoMatch:                     "2 ",
		mesh.ErrNotRunning:                    "2 ",
		mesh.ErrUnreachable:                   "2 worker_unreachable",
		mesh.ErrStream:                        "3 worker_stream_failed",
		wire.ErrTruncated:                     "3 worker_stream_failed",
		mesh.ErrArtifact:                      "3 worker_stream_failed",
		mesh.ErrNoRoom:                        "0 artifact_storage_full",
		mesh.ErrArtifactSize:                  "0 artifact_too_large",
		wire.ErrAgentFailed:                   "0 worker_stream_failed",
		router.ErrPromptTooLong:               "0 context_length_exceeded",
		os.ErrDeadlineExceeded:                "0 deadline",
		errors.New("internal"):                "0 internal_error",
		&wire.AgentError{Cause: "oom_killed"}: "0 oom_killed",
		fmt.Errorf("%w: %w", mesh.ErrStream, os.ErrDeadlineExceeded): "0 deadline",
	} {
		f := taskRunner{}.Failure(&mesh.AttemptError{Err: err})
		if got := fmt.Sprintf("%d %s", f.Kind, f.Reason); got != want {
			t.Errorf("%v: got %s, want %s", err, got, want)
		}
	}
}

// TestNoRoom wants no task to be taken while there is no room for its files, and the
// health to say so.
func TestNoRoom(t *testing.T) {
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}, dispatch: answers(script{})}
	g := serveTasks(t, f, tasks.Options{})
	f.full = mesh.ErrNoRoom
	for _, a := range []answer{
		g.do(t, "POST", "/api/execute/async", taskBody), g.do(t, "POST", "/api/execute", taskBody), g.do(t, "GET", "/health", ""),
	} {
		a.failed(t, http.StatusServiceUnavailable, "artifact_storage_full")
		if a.header.Get("Retry-After") != "5" {
			t.Errorf("got %v", a.header)
		}
	}
	f.full = nil
	if a := g.do(t, "POST", "/api/execute", taskBody); a.status != 200 {
		t.Errorf("got %d %s", a.status, a.body)
	}
}

// TestTaskStoreMissing wants an answer before the store is open.
func TestTaskStoreMissing(t *testing.T) {
	g := serve(t, &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}})
	for _, a := range []answer{
		g.do(t, "POST", "/api/execute/async", taskBody), g.do(t, "GET", "/api/tasks", ""), g.do(t, "GET", "/api/tasks/x", ""),
		g.do(t, "DELETE", "/api/tasks/x", ""), g.do(t, "GET", "/api/tasks/x/output", ""),
	} {
		a.failed(t, http.StatusServiceUnavailable, "task_store_unavailable")
	}
}

// TestSiteName wants the name to stand for the settings.
func TestSiteName(t *testing.T) {
	name := func(change func(*Handler)) string {
		h := new(Handler)
		change(h)
		if err := h.setUp(&fakeMesh{}, nopLogger); err != nil {
			t.Fatal(err)
		}
		return h.siteName()
	}
	plain := name(func(*Handler) {})
	if plain != name(func(*Handler) {}) {
		t.Error("the name changes")
	}
	if plain == name(func(h *Handler) { h.Queue = new(Queue) }) || plain == name(func(h *Handler) { h.TaskTimeout = 1 << 40 }) {
		t.Error("other settings have the same name")
	}
}

// TestTaskBounds wants a submission to have the bounds that it asks for, within those of the
// operator and of the site.
func TestTaskBounds(t *testing.T) {
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}}
	calls := make(chan mesh.Call, 9)
	f.dispatch = asking(func(ctx context.Context, c mesh.Call) (run, error) {
		calls <- c
		return answers(script{output: []string{"x"}})(ctx, c)
	})
	g := serveTasks(t, f, tasks.Options{Bounds: tasks.Bounds{Total: time.Hour}})
	for _, c := range []struct {
		asked string
		want  time.Duration
	}{{"", mesh.TaskTimeout}, {`,"run_timeout_seconds":30,"max_attempts":1,"queue_timeout_seconds":5,"timeout_seconds":3600`, 30 * time.Second}} {
		g.endedTask(t, g.submitTask(t, strings.TrimSuffix(taskBody, "}")+c.asked+"}"))
		if call := <-calls; call.Timeout != c.want || call.Queue.Wait > defaultQueueWait {
			t.Errorf("%s: got %s and %s", c.asked, call.Timeout, call.Queue.Wait)
		}
	}
	for name, value := range map[string]string{
		"max_attempts": "6", "queue_timeout_seconds": "86401", "run_timeout_seconds": "601", "timeout_seconds": "3601", "timeout_seconds ": "0",
	} {
		name = strings.TrimSpace(name)
		a := g.do(t, "POST", "/api/execute/async", strings.TrimSuffix(taskBody, "}")+`,"`+name+`":`+value+"}")
		a.failed(t, 400, invalidRequest)
		if !strings.Contains(a.body, name) {
			t.Errorf("got %s", a.body)
		}
	}
}

// TestStopped wants a task whose agent was stopped with its worker to be run again.
func TestStopped(t *testing.T) {
	for cause, want := range map[wire.Cause]tasks.Kind{wire.CauseCancelled: tasks.Broken, wire.CauseExitCode: tasks.Final, "": tasks.Final} {
		err := fmt.Errorf("attempt 1: %w", &wire.AgentError{Cause: cause, Reason: "the worker is shutting down"})
		if got := (taskRunner{}).Failure(err); got.Kind != want {
			t.Errorf("%q: got %+v", cause, got)
		}
	}
}
