// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"testing"
	"time"
)

func TestSubmit(t *testing.T) {
	var body string
	var header http.Header
	c := fake(t, routes{"POST /api/execute/async": func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		body, header = string(b), r.Header
		answer(202, `{"task_id":"task_1","status":"queued","message":"ok"}`)(w, r)
	}})
	ack, err := c.Tasks.Submit(t.Context(), SubmitRequest{Model: "m", Prompt: "p", WebhookURL: "https://x/y"},
		IdempotencyKey("k"), PinWorker("12D3"), ExcludeWorkers("A", "B"), ExcludeWorkers())
	if err != nil || ack.TaskID != "task_1" || ack.Status != TaskQueued {
		t.Fatal(ack, err)
	}
	if body != `{"model":"m","prompt":"p","webhook_url":"https://x/y"}` {
		t.Error(body)
	}
	if header.Get("Idempotency-Key") != "k" || header.Get("X-AgentFM-Worker") != "12D3" || header.Get("X-AgentFM-Exclude") != "A, B" || header.Get("Content-Type") != "application/json" {
		t.Error(header)
	}
	if _, err := c.Tasks.Submit(t.Context(), SubmitRequest{WorkerID: "w", Prompt: "p", MaxAttempts: 2, QueueTimeout: time.Millisecond, RunTimeout: time.Minute, Timeout: time.Hour}); err != nil ||
		body != `{"worker_id":"w","prompt":"p","max_attempts":2,"queue_timeout_seconds":1,"run_timeout_seconds":60,"timeout_seconds":3600}` {
		t.Error(body, err)
	}
	for _, r := range []SubmitRequest{{Prompt: "p"}, {Model: "m"}, {Model: "m", Prompt: "p", MaxAttempts: -1}, {Model: "m", Prompt: "p", RunTimeout: -1}} {
		if _, err := c.Tasks.Submit(t.Context(), r); !errors.Is(err, ErrInvalidRequest) {
			t.Error(err)
		}
	}
	odd := fake(t, routes{"/": answer(202, `{}`)})
	if _, err := odd.Tasks.Submit(t.Context(), SubmitRequest{Model: "m", Prompt: "p"}); !errors.Is(err, ErrProtocol) {
		t.Error(err)
	}
}

const taskJSON = `{"task_id":"task_1","status":"failed","reason":"oom_killed","message":"killed","worker_id":"12D3","attempts":2,"created_at":"2026-01-02T03:04:05.6Z","prompt_bytes":3,"output_bytes":4,"has_files":true,
"artifacts":{"bytes":9,"sha256":"ab","files":2},"usage":{"prompt_tokens":1,"agentfm_estimated":true},"late_results":[{"attempt":1,"status":"completed"}],
"webhook":{"url":"https://x","status":"pending","attempts":1,"last_status":500,"next_attempt_at":"2026-01-02T03:04:05Z","history":[{"error":"timeout","duration_seconds":1.5}]}}`

func TestTaskGet(t *testing.T) {
	c := fake(t, routes{
		"GET /api/tasks/task_1":          answer(200, taskJSON),
		"DELETE /api/tasks/task_1":       problem(409, CodeTaskEnded),
		"DELETE /api/tasks/task_2":       answer(200, `{"task_id":"task_2","status":"cancelled","reason":"cancelled"}`),
		"POST /api/tasks/task_1/webhook": answer(202, taskJSON),
		"POST /api/tasks/task_2/webhook": problem(409, CodeWebhookPending),
		"GET /":                          problem(404, CodeTaskNotFound),
	})
	if again, err := c.Tasks.RedeliverWebhook(t.Context(), "task_1"); err != nil || again.ID != "task_1" {
		t.Error(again, err)
	}
	for id, is := range map[string]error{"task_2": CodeWebhookPending, "": ErrInvalidRequest} {
		if _, err := c.Tasks.RedeliverWebhook(t.Context(), id); !errors.Is(err, is) {
			t.Error(err)
		}
	}
	got, err := c.Tasks.Get(t.Context(), "task_1")
	if err != nil || got.ID != "task_1" || got.Attempts != 2 || got.Created.Nanosecond() != 6e8 || got.Webhook.LastStatus != 500 || !got.HasFiles ||
		got.Artifact.Files != 2 || !got.Usage.Estimated || got.LateResults[0].Attempt != 1 || got.Webhook.History[0].Error != "timeout" {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := got.Err(); !errors.Is(err, ErrTaskFailed) || !errors.Is(err, ReasonOOMKilled) {
		t.Error(err)
	}
	if _, err := c.Tasks.Get(t.Context(), "a/../b?c"); !errors.Is(err, CodeTaskNotFound) || !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if _, err := c.Tasks.Cancel(t.Context(), "task_1"); !errors.Is(err, CodeTaskEnded) || !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
	cancelled, err := c.Tasks.Cancel(t.Context(), "task_2")
	if err != nil || cancelled.Status != TaskCancelled || !errors.Is(cancelled.Err(), ReasonCancelled) {
		t.Error(cancelled, err)
	}
	for _, id := range []string{"", ".", ".."} {
		if _, err := c.Tasks.Get(t.Context(), id); !errors.Is(err, ErrInvalidRequest) {
			t.Errorf("%q: %v", id, err)
		}
	}
	for status, want := range map[TaskStatus]bool{TaskQueued: false, TaskRunning: false, TaskCompleted: false, TaskFailed: true} {
		if task := (&Task{Status: status}); (task.Err() != nil) != want {
			t.Error(status)
		}
	}
}

func TestTaskList(t *testing.T) {
	var queries []string
	c := fake(t, routes{"GET /api/tasks": func(w http.ResponseWriter, r *http.Request) {
		queries = append(queries, r.URL.RawQuery)
		switch r.URL.Query().Get("before") {
		case "":
			answer(200, `{"tasks":[{"task_id":"c"},{"task_id":"b"}],"has_more":true}`)(w, r)
		case "b":
			answer(200, `{"tasks":[{"task_id":"a"}],"has_more":false}`)(w, r)
		default:
			problem(400, CodeInvalidRequest)(w, r)
		}
	}})
	read := func(q TaskQuery, limit int) (ids string, err error) {
		for task, e := range c.Tasks.List(t.Context(), q) {
			if ids, err = ids+task.ID, e; len(ids) == limit {
				break
			}
		}
		return ids, err
	}
	if ids, err := read(TaskQuery{Status: TaskQueued, Webhook: "x", PageSize: 2}, -1); ids != "cba" || err != nil || fmt.Sprint(queries) != "[limit=2&status=queued&webhook=x before=b&limit=2&status=queued&webhook=x]" {
		t.Error(ids, err, queries)
	}
	if ids, err := read(TaskQuery{}, 1); ids != "c" || err != nil {
		t.Error(ids, err)
	}
	if ids, err := read(TaskQuery{Before: "x"}, -1); ids != "" || !errors.Is(err, ErrInvalidRequest) {
		t.Error(ids, err)
	}
}

// taskEvents answers with the events after the one of the client, some of them at a time.
func taskEvents(w http.ResponseWriter, r *http.Request) {
	last, _ := strconv.Atoi(r.Header.Get("Last-Event-ID"))
	states := []TaskStatus{TaskQueued, TaskRunning, TaskQueued, TaskRunning, TaskCompleted, TaskCompleted}
	if last == len(states) {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	_, _ = io.WriteString(w, ":ready\n\n")
	for i := last; i < min(last+2, len(states)); i++ {
		fmt.Fprintf(w, ":heartbeat\n\nevent: %s\nid: %d\ndata: {\"task_id\":\"t\",\ndata: \"status\":%q}\n\n", states[i], i+1, states[i])
	}
	_, _ = io.WriteString(w, "event: half\ndata: {")
	if last == 0 {
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}

func TestTaskEvents(t *testing.T) {
	c := fake(t, routes{
		"GET /api/tasks/t/events":    taskEvents,
		"GET /api/tasks/none/events": problem(404, CodeTaskNotFound),
		"GET /api/tasks/odd/events":  answer(200, `{}`),
		"GET /api/tasks/bad/events": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: {\n\n")
		},
		"GET /api/tasks/dead/events": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	})
	read := func(id, after string) (names string, err error) {
		for ev, e := range c.Tasks.Events(t.Context(), id, after) {
			if err = e; e == nil {
				names += ev.ID + ev.Name[:1] + string(ev.Task.Status)[:1] + " "
			}
		}
		return names, err
	}
	if names, err := read("t", ""); names != "1qq 2rr 3qq 4rr 5cc 6cc " || err != nil {
		t.Error(names, err)
	}
	if names, err := read("t", "4"); names != "5cc 6cc " || err != nil {
		t.Error(names, err)
	}
	if names, err := read("t", "6"); names != "" || err != nil {
		t.Error(names, err)
	}
	for id, kind := range map[string]Kind{"none": ErrNotFound, "odd": ErrProtocol, "bad": ErrProtocol, "dead": ErrConnection, "": ErrInvalidRequest} {
		if _, err := read(id, ""); !errors.Is(err, kind) {
			t.Errorf("%s: %v", id, err)
		}
	}
	for range c.Tasks.Events(t.Context(), "t", "") { // break closes it
		break
	}
}

func TestTaskWait(t *testing.T) {
	n := 0
	c := fake(t, routes{
		"GET /api/tasks/t/events":   taskEvents,
		"GET /api/tasks/old/events": problem(404, CodeNotFound),
		"GET /api/tasks/old": func(w http.ResponseWriter, r *http.Request) {
			if n++; n < 3 {
				answer(200, `{"task_id":"old","status":"running"}`)(w, r)
				return
			}
			answer(200, `{"task_id":"old","status":"failed"}`)(w, r)
		},
		"GET /api/tasks/slow/events": problem(429, CodeRateLimited),
		"GET /api/tasks/slow":        answer(200, `{"task_id":"slow","status":"running"}`),
		"GET /":                      problem(404, CodeTaskNotFound),
	}, WithRetries(1))
	if task, err := c.Tasks.Wait(t.Context(), "t"); err != nil || task.Status != TaskCompleted {
		t.Error(task, err)
	}
	if task, err := c.Tasks.Wait(t.Context(), "old"); err != nil || task.Status != TaskFailed {
		t.Error(task, err)
	}
	if _, err := c.Tasks.Wait(t.Context(), "none"); !errors.Is(err, CodeTaskNotFound) {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := c.Tasks.Wait(ctx, "slow"); !errors.Is(err, ErrContext) {
		t.Error(err)
	}
}

func TestOutput(t *testing.T) {
	output := func(text string, status TaskStatus) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-AgentFM-Task-Status", string(status))
			_, _ = io.WriteString(w, text)
		}
	}
	c := fake(t, routes{
		"GET /api/tasks/t/output": output("hal\xe2\x82", TaskRunning),
		"GET /api/tasks/x/output": problem(410, CodeOutputExpired),
	})
	if out, err := c.Tasks.Output(t.Context(), "t"); err != nil || out.Text != "hal��" || out.Status != TaskRunning {
		t.Error(out, err)
	}
	if _, err := c.Tasks.Output(t.Context(), "x"); !errors.Is(err, ErrExpired) || !errors.Is(err, CodeOutputExpired) {
		t.Error(err)
	}
}

func TestFollow(t *testing.T) {
	const text = "one € two 😀 three"
	status := func(w http.ResponseWriter, s TaskStatus) { w.Header().Set("X-AgentFM-Task-Status", string(s)) }
	c := fake(t, routes{
		"GET /api/tasks/t/output": func(w http.ResponseWriter, r *http.Request) { // five bytes at a time
			q := r.URL.Query()
			from, _ := strconv.Atoi(q.Get("offset"))
			if q.Get("follow") != "true" || from > 0 && q.Get("run") != "1" {
				problem(400, CodeInvalidRequest)(w, r)
				return
			}
			w.Header().Set("Trailer", "X-AgentFM-Task-Status")
			w.Header().Set("X-AgentFM-Task-Run", "1")
			to := min(from+5, len(text))
			_, _ = io.WriteString(w, text[from:to])
			if to < len(text) {
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
			status(w, TaskCompleted)
		},
		"GET /api/tasks/new/output": func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("offset") != "" {
				problem(409, CodeOutputRestarted)(w, r)
				return
			}
			broken(w, r)
		},
		"GET /api/tasks/old/output": func(w http.ResponseWriter, _ *http.Request) {
			status(w, TaskRunning)
			_, _ = io.WriteString(w, "hal")
		},
		"GET /api/tasks/dead/output": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	})
	for id, want := range map[string]struct {
		text string
		is   error
	}{"t": {text, nil}, "new": {"hal", CodeOutputRestarted}, "old": {"hal", ErrProtocol}, "dead": {"", ErrConnection}, "": {"", ErrInvalidRequest}} {
		got, last := "", error(nil)
		for piece, err := range c.Tasks.Follow(t.Context(), id) {
			got, last = got+piece, err
		}
		if got != want.text || !errors.Is(last, want.is) {
			t.Errorf("%q: %q, %v", id, got, last)
		}
	}
	for range c.Tasks.Follow(t.Context(), "t") {
		break
	}
}
