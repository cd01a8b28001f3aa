// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// pipeRun is a task whose output the test writes.
type pipeRun struct {
	fakeRun
	*io.PipeReader
}

// Read implements run.
func (r *pipeRun) Read(p []byte) (int, error) { return r.PipeReader.Read(p) }

// Close implements run.
func (r *pipeRun) Close() error { return r.PipeReader.Close() }

// servePiped serves tasks whose output is what the test writes.
func servePiped(t *testing.T, settings ...setting) (*gate, *io.PipeWriter) {
	t.Helper()
	r, w := io.Pipe()
	t.Cleanup(func() { w.Close() })
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}}
	f.dispatch = asking(func(ctx context.Context, c mesh.Call) (run, error) {
		context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()) })
		return &pipeRun{fakeRun{ctx: ctx, served: mesh.Served{Peer: peerA, TaskID: c.TaskID}}, r}, nil
	})
	return serveTasks(t, f, tasks.Options{}, settings...), w
}

// toldStatus is what an event of a task says.
func toldStatus(t *testing.T, block string) string {
	t.Helper()
	var v struct {
		ID     string `json:"task_id"`
		Status string `json:"status"`
		Worker string `json:"worker_id"`
	}
	if err := json.Unmarshal([]byte(field(block, "data")), &v); err != nil || !tasks.ValidID(v.ID) || v.Worker != peerA {
		t.Fatalf("%v in %q", err, block)
	}
	return field(block, "id") + " " + field(block, "event") + " " + v.Status
}

func TestTaskEvents(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %v", http2), func(t *testing.T) {
			g, w := servePiped(t, func(_ *gate, s *serverSettings) { s.http2 = http2 })
			id := g.submitTask(t, taskBody)
			path := "/api/tasks/" + id + "/events"
			s := g.openStream(t, path)
			for _, want := range []string{"1 queued queued", "2 running running"} {
				if got := toldStatus(t, s.next()); got != want {
					t.Errorf("got %s, want %s", got, want)
				}
			}
			w.Close()
			last := s.next()
			if got := toldStatus(t, last); got != "3 completed completed" {
				t.Errorf("got %s", got)
			}
			if field(last, "data") != g.do(t, "GET", "/api/tasks/"+id, "").body {
				t.Errorf("got %s", last)
			}
			if got := s.next(); got != "" {
				t.Errorf("after the end: %q", got)
			}
			if got := toldStatus(t, g.openStream(t, path, "Last-Event-ID", "1").next()); got != "2 running running" {
				t.Errorf("after the first: %s", got)
			}
			for _, id := range []string{"", "of-another", "99", "-1"} {
				if got := toldStatus(t, g.openStream(t, path, "Last-Event-ID", id).next()); got != "1 queued queued" {
					t.Errorf("after %q: %s", id, got)
				}
			}
			if a := g.do(t, "GET", path, "", "Last-Event-ID", "3"); a.status != http.StatusNoContent || a.body != "" {
				t.Errorf("after the last: %d %s", a.status, a.body)
			}
			if a := g.do(t, "HEAD", path, ""); a.status != 200 || a.header.Get("Content-Type") != "text/event-stream" {
				t.Errorf("HEAD: %+v", a)
			}
			g.do(t, "GET", "/api/tasks/task_"+strings.Repeat("0", 36)+"/events", "").failed(t, 404, "task_not_found")
		})
	}
}

// TestTaskEventsBounded wants a client to follow so many tasks and no more.
func TestTaskEventsBounded(t *testing.T) {
	g, _ := servePiped(t)
	path := "/api/tasks/" + g.submitTask(t, taskBody) + "/events"
	var last *eventStream
	for range 64 {
		last = g.openStream(t, path)
	}
	a := g.do(t, "GET", path, "")
	if a.failed(t, http.StatusTooManyRequests, "rate_limited"); a.header.Get("Retry-After") != "10" {
		t.Errorf("got %v", a.header)
	}
	last.cancel()
	await.Until(t, "a place", func() bool { return g.do(t, "HEAD", path, "").status == 200 })
	g.h.tasks.EndFollowing() // as at the end of Caddy
	for range 2 {
		for last = g.openStream(t, path); last.next() != ""; {
		}
	}
}

func TestFollowOutput(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %v", http2), func(t *testing.T) {
			g, w := servePiped(t, func(_ *gate, s *serverSettings) { s.http2 = http2 })
			id := g.submitTask(t, taskBody)
			path := "/api/tasks/" + id + "/output"
			resp := g.get(t, path+"?follow=true")
			run := resp.Header.Get("X-AgentFM-Task-Run")
			if resp.StatusCode != 200 || run != id || resp.Header.Get("Content-Security-Policy") == "" || resp.Header.Get("X-AgentFM-Task-Status") != "" {
				t.Fatalf("got %s %v", resp.Status, resp.Header)
			}
			said := make([]byte, 6)
			for _, text := range []string{"first ", "second"} {
				_, _ = io.WriteString(w, text)
				if _, err := io.ReadFull(resp.Body, said); err != nil || string(said) != text {
					t.Fatalf("got %q, %v", said, err)
				}
			}
			resp.Body.Close()
			resp = g.get(t, path+"?follow=true&offset=4&run="+run)
			_, _ = io.WriteString(w, " third")
			w.Close()
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "t second third" || resp.Trailer.Get("X-AgentFM-Task-Status") != "completed" {
				t.Errorf("got %q, %v, %v", b, err, resp.Trailer)
			}
			a := g.do(t, "GET", path+"?offset=13&run="+run, "")
			if a.status != 200 || a.body != "third" || a.header.Get("Content-Length") != "5" || a.header.Get("X-AgentFM-Task-Status") != "completed" {
				t.Errorf("got %+v", a)
			}
			if a := g.do(t, "GET", path+"?offset=18", ""); a.status != 200 || a.body != "" {
				t.Errorf("at the end: %+v", a)
			}
			for query, want := range map[string]int{
				"offset=19": 416, "offset=-1": 400, "offset=x": 400, "follow=1": 400, "run=x": 409,
				"offset=19&follow=true": 416, "run=x&follow=true": 409,
			} {
				if a := g.do(t, "GET", path+"?"+query, ""); a.status != want {
					t.Errorf("%s: got %d %s", query, a.status, a.body)
				}
			}
		})
	}
}

// TestFollowLost wants a follower to be broken off when the output begins anew, and to be
// told so when it comes back for the rest.
func TestFollowLost(t *testing.T) {
	g, w := servePiped(t)
	id := g.submitTask(t, taskBody)
	path := "/api/tasks/" + id + "/output?follow=true"
	resp := g.get(t, path)
	_, _ = io.WriteString(w, "half")
	w.CloseWithError(mesh.ErrStream)
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("got %q and an end", b)
	}
	g.do(t, "GET", path+"&offset=4&run="+resp.Header.Get("X-AgentFM-Task-Run"), "").failed(t, 409, "output_restarted")
	v := g.task(t, id)
	if v["status"] == "queued" && v["reason"] != "worker_stream_failed" {
		t.Errorf("got %v", v)
	}
}
