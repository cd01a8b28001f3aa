// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// callBody is a task for POST /api/execute with an id.
func callBody(id string) string {
	return `{"worker_id":"` + peerA + `","prompt":"hello","task_id":"` + id + `"}`
}

// TestExecuteListed wants what a client waits for to be seen like other tasks, by it alone.
func TestExecuteListed(t *testing.T) {
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}, dir: t.TempDir()}
	file := withKeyFile(t, "ann the-key-of-ann-123\nbob the-key-of-bob-123\n")
	g := serveTasks(t, f, tasks.Options{}, file)
	ann, bob := []string{"Authorization", "Bearer the-key-of-ann-123"}, []string{"Authorization", "Bearer the-key-of-bob-123"}
	f.dispatch = asking(func(ctx context.Context, c mesh.Call) (run, error) {
		if err := os.WriteFile(filepath.Join(f.dir, c.TaskID+".zip"), []byte("zip"), 0o600); err != nil {
			return nil, err
		}
		return answers(script{output: []string{"one ", "two"}, files: true, usage: &wire.Usage{Prompt: 3, Completion: 2}})(ctx, c)
	})
	if a := g.do(t, "POST", "/api/execute", callBody("job.1"), ann...); a.status != 200 || !strings.Contains(a.body, wire.MarkerFiles) {
		t.Fatalf("got %d %s", a.status, a.body)
	}
	v := g.endedTask(t, "job.1", ann...)
	for key, want := range map[string]any{
		"mode": "sync", "status": "completed", "worker_id": peerA, "agent_name": "HR", "attempts": 1.0, "prompt_bytes": 5.0,
		"output_bytes": 7.0, "has_files": true, "reason": nil,
	} {
		if v[key] != want {
			t.Errorf("%s: got %v, want %v", key, v[key], want)
		}
	}
	a := g.do(t, "GET", "/api/tasks/job.1/artifacts", "", ann...)
	if a.body != "zip" || a.header.Get("ETag") != `"`+zipSum+`"` {
		t.Errorf("got %+v", a)
	}
	g.do(t, "GET", "/api/tasks/job.1/output", "", ann...).failed(t, 404, "output_not_kept")
	g.do(t, "GET", "/api/tasks/job.1/output?follow=true", "", ann...).failed(t, 404, "output_not_kept")
	g.do(t, "DELETE", "/api/tasks/job.1", "", ann...).failed(t, 409, "task_ended")
	g.do(t, "POST", "/api/tasks/job.1/webhook", "", ann...).failed(t, 404, "task_not_found")
	for _, path := range []string{"", "/artifacts", "/events", "/output"} {
		g.do(t, "GET", "/api/tasks/job.1"+path, "", bob...).failed(t, 404, "task_not_found")
	}
	if a := g.do(t, "GET", "/api/tasks", "", bob...); a.body != `{"tasks":[],"has_more":false}` {
		t.Errorf("bob sees %s", a.body)
	}

	f.dispatch = asking(answers(script{output: []string{"half"}, end: &wire.AgentError{Cause: "exit_code"}}))
	g.do(t, "POST", "/api/execute", callBody("job.2"), ann...)
	if v := g.endedTask(t, "job.2", ann...); v["status"] != "failed" || v["reason"] != "exit_code" || v["output_bytes"] != 4.0 {
		t.Errorf("got %v", v)
	}
	f.dispatch = asking(fails(&mesh.AttemptError{Err: mesh.ErrUnreachable}))
	g.do(t, "POST", "/api/execute", callBody("job.3"), ann...).failed(t, 502, "worker_unreachable")
	if v := g.endedTask(t, "job.3", ann...); v["status"] != "failed" || v["reason"] != "worker_unreachable" {
		t.Errorf("got %v", v)
	}
	if err := os.Remove(filepath.Join(f.dir, "job.1.zip")); err != nil {
		t.Fatal(err)
	}
	g.do(t, "GET", "/api/tasks/job.1/artifacts", "", ann...).failed(t, 410, "artifacts_expired")
	var list struct {
		Tasks []struct {
			ID string `json:"task_id"`
		} `json:"tasks"`
	}
	if err := json.Unmarshal([]byte(g.do(t, "GET", "/api/tasks?before=job.3", "", ann...).body), &list); err != nil || len(list.Tasks) < 1 {
		t.Errorf("got %+v, %v", list, err)
	}
	g.do(t, "GET", "/api/tasks?before=job.4", "", ann...).failed(t, 404, "task_not_found")
	g.do(t, "GET", "/api/tasks?before=.", "", ann...).failed(t, 400, invalidRequest)
}

// TestExecuteCancelled wants a task for which a client waits to be cancelled, also by the
// client's going away.
func TestExecuteCancelled(t *testing.T) {
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}}
	g := serveTasks(t, f, tasks.Options{})
	for _, output := range []string{"", "half"} {
		sc := script{hang: true}
		if output != "" {
			sc.output = []string{output}
		}
		f.dispatch = asking(func(ctx context.Context, c mesh.Call) (run, error) {
			r, err := answers(sc)(ctx, c)
			return &causeRun{r.(*fakeRun)}, err
		})
		id := "cancelled" + output
		answered := make(chan string, 1)
		client := &http.Client{Transport: g.Client().Transport} // g.do sets up the other one
		go func() {
			resp, err := client.Post(g.URL+"/api/execute", "application/json", strings.NewReader(callBody(id)))
			if err != nil {
				answered <- err.Error()
				return
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			answered <- resp.Status + " " + string(b)
		}()
		await.Until(t, "a task that runs", func() bool { return g.do(t, "GET", "/api/tasks/"+id, "").status == 200 })
		if a := g.do(t, "DELETE", "/api/tasks/"+id, ""); a.status != 200 || !strings.Contains(a.body, `"status":"cancelled","reason":"cancelled"`) {
			t.Errorf("got %d %s", a.status, a.body)
		}
		want := "200 OK half\n[AGENTFM: ERROR task_cancelled]\n"
		if output == "" {
			want = `409 Conflict {"error":{"message":"the task was cancelled","type":"invalid_request_error","code":"task_cancelled","param":null}}`
		}
		if got := <-answered; got != want {
			t.Errorf("got %q", got)
		}
	}

	f.dispatch = asking(answers(script{output: []string{"half"}, hang: true}))
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", g.URL+"/api/execute", strings.NewReader(callBody("gone")))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := g.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(resp.Body, make([]byte, 4))
	await.Until(t, "a task that runs", func() bool { return g.do(t, "GET", "/api/tasks/gone", "").status == 200 })
	cancel()
	resp.Body.Close()
	if v := g.endedTask(t, "gone"); v["status"] != "cancelled" || v["reason"] != "client_gone" {
		t.Errorf("got %v", v)
	}
}

// causeRun is a run that says why its context ended, as those of the mesh do.
type causeRun struct{ *fakeRun }

// Read implements run.
func (r *causeRun) Read(p []byte) (int, error) {
	n, err := r.fakeRun.Read(p)
	if r.ctx.Err() != nil {
		err = context.Cause(r.ctx)
	}
	return n, err
}
