// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	common "github.com/Agent-FM/caddy-agentfm/internal/await"
)

// kills is how often the gateway is killed: as AGENTFM_TEST_KILLS says, or every day.
func kills(t *testing.T, everyday int) int {
	t.Helper()
	return common.Times(t, "AGENTFM_TEST_KILLS", everyday)
}

// counted is an agent whose answers can be counted.
func counted(t *testing.T) agent {
	t.Helper()
	script, err := filepath.Abs("testdata/counted.sh")
	if err != nil {
		t.Fatal(err)
	}
	return agent{key: "counted", runtime: "process {\n\t\t\t\tcommand sh " + script + "\n\t\t\t}"}
}

// quick is an agent that is as fast as its gateway: a model server, which says what counted
// says.
func quick(t *testing.T) agent {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/models" {
			_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"quick","object":"model"}]}`)
			return
		}
		var body struct{ Messages []struct{ Content string } }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil || len(body.Messages) == 0 {
			http.Error(w, "want messages", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		say := func(word, end string) {
			text, _ := json.Marshal(word + " " + body.Messages[len(body.Messages)-1].Content + "\n")
			fmt.Fprintf(w, `data: {"object":"chat.completion.chunk","model":"quick","choices":[{"index":0,"delta":{"content":%s},"finish_reason":%s}]}`+"\n\n", text, end)
		}
		say("begun", "null")
		say("done", `"stop"`)
		_, _ = io.WriteString(w, "data: [DONE]\n\n")
	}))
	t.Cleanup(server.Close)
	return agent{key: "quick", runtime: "openai {\n\t\t\t\tbase_url " + server.URL + "/v1\n\t\t\t\troutes /v1/chat/completions\n\t\t\t}"}
}

// A gateway that is killed while tasks come at 200 a second loses none that it has accepted,
// and tells of each end. It has accepted 100 more before each of many kills.
func TestKillTasks(t *testing.T) {
	c := config{
		name: "run", app: "tasks {\n\t\t\tin_flight 5000\n\t\t}", env: []string{"AGENTFM_WEBHOOK_ALLOW_PRIVATE=1"},
		agents: []agent{counted(t), quick(t)},
	}
	at, a := newPlace(t), newAccountant(t)
	p := start(t, at, c)
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	clients.Go(func() { a.submit(ctx, p.gateway, 0) })
	tick := time.NewTicker(time.Second / 200)
	defer tick.Stop()
	for client := range 16 {
		clients.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				select {
				case <-tick.C:
					a.submitOne(ctx, p.gateway, "quick", fmt.Sprintf("quick-%d-%d", client, n))
				case <-ctx.Done():
				}
			}
		})
	}
	n, least := kills(t, 50), 20
	if n >= 500 {
		least = 100
	}
	for i := range n {
		p.awaitWorker("counted")
		sleep(ctx, time.Duration(100+rand.N(1500))*time.Millisecond)
		await(t, "tasks are accepted", func() bool { return a.count() >= least*(i+1) })
		p.kill()
		p = start(t, at, c)
		a.look(ctx, p.gateway, a.some(50, false))
	}
	stop()
	clients.Wait()
	p.awaitWorker("counted")
	a.settle(p.gateway)
	a.verdict(p.gateway)
	p.terminate()
	p.awaitExit()
}

// A second process on the same store is refused, soon and clearly.
func TestSecondTaskStore(t *testing.T) {
	shared := filepath.Join(t.TempDir(), "store")
	c := config{name: "first", app: "tasks {\n\t\t\tstore " + shared + "\n\t\t}"}
	first := start(t, newPlace(t), c)
	begun := time.Now()
	out, err := newPlace(t).command(t, "run", c.with("second"), "off").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "another process has it open; give each process a store of its own") ||
		!strings.Contains(string(out), shared) {
		t.Errorf("%v\n%s", err, out)
	}
	if took := time.Since(begun); took > 10*time.Second { // with the start of the process
		t.Errorf("it took %s", took)
	}
	if got := first.get("/api/tasks"); got != `{"tasks":[],"has_more":false}` {
		t.Errorf("got %s", got)
	}
	first.terminate()
	first.awaitExit()
}

// A task that was submitted runs on through reloads, and through one that fails.
func TestReloadTask(t *testing.T) {
	s := newServer(t)
	c := oneAgent("hello")
	s.load(c.with("zero"))
	echo := s.awaitWorker("echo")
	k, a := newTask(t), newAccountant(t)
	var v taskReport
	if status := a.call(t.Context(), s.gateway, "POST", "/api/execute/async", map[string]string{"worker_id": echo, "prompt": k.prompt}, &v); status != 202 {
		t.Fatalf("got %d", status)
	}
	path := "/api/tasks/" + v.ID
	await(t, "the output comes", func() bool { return s.get(path+"/output") == "hello\n" })
	for _, name := range []string{"one", "two"} {
		s.load(c.with(name))
		k.say("after " + name)
		await(t, "the output comes", func() bool { return strings.HasSuffix(s.get(path+"/output"), "after "+name+"\n") })
	}
	k.end()
	await(t, "the task ends", func() bool { a.call(t.Context(), s.gateway, "GET", path, nil, &v); return v.ended() })
	if got := s.get(path + "/output"); v.Status != "completed" || v.Attempts != 1 || got != k.output("hello") {
		t.Errorf("got %+v and %q", v, got)
	}
}

// A gateway that is told to end does so within its grace period: streams get an error, and
// no end that could be taken for a good one; tasks that were submitted go on after the
// restart.
func TestExitTasks(t *testing.T) {
	c := oneAgent("hello")
	c.worker = "grace_period 1s"
	at, a := newPlace(t), newAccountant(t)
	p := start(t, at, c)
	p.awaitWorker("echo")
	live := newTask(t)
	running := p.chat("echo", live.prompt)
	running.awaitLine("hello")
	tasks := make(map[string]*task)
	for range 3 {
		k := newTask(t)
		var v taskReport
		if status := a.call(t.Context(), p.gateway, "POST", "/api/execute/async", map[string]string{"model": "echo", "prompt": k.prompt}, &v); status != 202 {
			t.Fatalf("got %d", status)
		}
		tasks[v.ID] = k
		await(t, "the task runs", func() bool { return p.get("/api/tasks/"+v.ID+"/output") == "hello\n" })
	}
	p.terminate()
	err := running.awaitEnd()
	if err == nil || !strings.Contains(err.Error(), `"error"`) {
		t.Errorf("the stream ended with %v", err)
	}
	p.awaitExit()

	p = start(t, at, c)
	p.awaitWorker("echo")
	for id, k := range tasks {
		var v taskReport
		get := func() taskReport { a.call(t.Context(), p.gateway, "GET", "/api/tasks/"+id, nil, &v); return v }
		await(t, "the task runs again", func() bool {
			if get().ended() && v.Status != "" {
				t.Fatalf("it has ended: %+v", v)
			}
			return v.Attempts == 2 && p.get("/api/tasks/"+id+"/output") == "hello\n"
		})
		k.end()
		await(t, "the task ends", func() bool { return get().ended() })
		if got := p.get("/api/tasks/" + id + "/output"); v.Status != "completed" || got != k.output("hello") {
			t.Errorf("got %+v and %q", v, got)
		}
	}
	p.terminate()
	p.awaitExit()
}

// follow begins to read an answer that goes on.
func (g gateway) follow(path, lastEventID string) *stream {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodGet, g.place.url(path), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	if lastEventID != "" {
		req.Header.Set("Last-Event-ID", lastEventID)
	}
	resp, err := client.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	s := &stream{t: g.t, resp: resp, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		for p := make([]byte, 4<<10); s.err == nil; {
			n, err := resp.Body.Read(p)
			s.add(string(p[:n]))
			s.err = err
		}
		if s.err == io.EOF {
			s.err = nil
		}
	}()
	g.t.Cleanup(func() { resp.Body.Close(); <-s.ended })
	return s
}

// eventNames are the ids and names of the events that have come.
func (s *stream) eventNames() string {
	var names []string
	for line := range strings.Lines(s.output()) {
		switch field, value, _ := strings.Cut(strings.TrimSpace(line), ": "); field {
		case "event", "id":
			names = append(names, value)
		}
	}
	return strings.Join(names, " ")
}

// Who follows a task does so through reloads, is broken off when the process is killed,
// and goes on where that was.
func TestFollowTask(t *testing.T) {
	at, c, a := newPlace(t), oneAgent("hello"), newAccountant(t)
	p := start(t, at, c)
	k := newTask(t)
	var v taskReport
	body := map[string]string{"worker_id": p.awaitWorker("echo"), "prompt": k.prompt}
	if status := a.call(t.Context(), p.gateway, "POST", "/api/execute/async", body, &v); status != 202 {
		t.Fatalf("got %d", status)
	}
	path := "/api/tasks/" + v.ID
	events, output := p.follow(path+"/events", ""), p.follow(path+"/output?follow=true", "")
	output.awaitLine("hello")
	for _, name := range []string{"one", "two"} {
		p.reload(c.with(name))
		k.say("after " + name)
		output.awaitLine("after " + name)
	}
	await(t, "the events", func() bool { return events.eventNames() == "queued 1 running 2" })
	p.kill()
	if events.awaitEnd() == nil || output.awaitEnd() == nil {
		t.Error("a stream that was cut off ended well")
	}

	p = start(t, at, c)
	p.awaitWorker("echo")
	await(t, "the task runs", func() bool { return p.get(path+"/output") == "hello\n" })
	events = p.follow(path+"/events", "2")
	stale := p.follow(path+"/output?follow=true&offset=5&run="+output.resp.Header.Get("X-AgentFM-Task-Run"), "")
	if stale.resp.StatusCode != http.StatusConflict {
		t.Errorf("the output of a lost attempt goes on: %s", stale.resp.Status)
	}
	output = p.follow(path+"/output?follow=true", "")
	k.said.Reset()
	k.say("once more")
	output.awaitLine("once more")
	k.end()
	if err := output.awaitEnd(); err != nil || output.output() != k.output("hello") || output.resp.Trailer.Get("X-AgentFM-Task-Status") != "completed" {
		t.Errorf("got %q, %v, %v", output.output(), err, output.resp.Trailer)
	}
	const want = "queued 3 running 4 completed 5"
	if err := events.awaitEnd(); err != nil || events.eventNames() != want || !strings.Contains(events.output(), `"reason":"gateway_stopped"`) {
		t.Errorf("got %s, %v", events.output(), err)
	}
	if resp := p.follow(path+"/events", "5").resp; resp.StatusCode != http.StatusNoContent {
		t.Errorf("after the end: %s", resp.Status)
	}

	k = newTask(t) // Caddy exits, whoever follows
	body["prompt"] = k.prompt
	if status := a.call(t.Context(), p.gateway, "POST", "/api/execute/async", body, &v); status != 202 {
		t.Fatalf("got %d", status)
	}
	path = "/api/tasks/" + v.ID
	events, output = p.follow(path+"/events", ""), p.follow(path+"/output?follow=true", "")
	output.awaitLine("hello")
	p.terminate()
	p.awaitExit()
	if err := events.awaitEnd(); err != nil {
		t.Errorf("the events ended with %v", err)
	}
	if output.awaitEnd() == nil {
		t.Error("half an output ended well")
	}
}

// A task for which a client waits is listed, is stopped when it is cancelled, and has an end
// when the process is killed that ran it.
func TestExecuteListed(t *testing.T) {
	at, c, a := newPlace(t), oneAgent("hello"), newAccountant(t)
	p := start(t, at, c)
	echo := p.awaitWorker("echo")
	k := newTask(t)
	answer := p.execute(echo, k.prompt)
	answer.awaitLine("hello")
	path, pid := "/api/tasks/"+answer.resp.Header.Get("X-AgentFM-Task"), k.pid()
	var v taskReport
	await(t, "its record", func() bool { a.call(t.Context(), p.gateway, "GET", path, nil, &v); return v.Status == "running" })
	if a.call(t.Context(), p.gateway, "DELETE", path, nil, &v); v.Status != "cancelled" {
		t.Errorf("got %+v", v)
	}
	if answer.awaitEnd() == nil || !strings.HasSuffix(answer.output(), "[AGENTFM: ERROR task_cancelled]\n") {
		t.Errorf("the answer ended with %v, after %q", answer.err, answer.output())
	}
	await(t, "the agent ends", func() bool { return !runs(pid) })

	k = newTask(t)
	answer = p.execute(echo, k.prompt)
	answer.awaitLine("hello")
	path = "/api/tasks/" + answer.resp.Header.Get("X-AgentFM-Task")
	await(t, "its record", func() bool { a.call(t.Context(), p.gateway, "GET", path, nil, &v); return v.Status == "running" })
	p.kill()
	p = start(t, at, c)
	await(t, "its end", func() bool {
		a.call(t.Context(), p.gateway, "GET", path, nil, &v)
		return v.Status == "failed" && v.Reason == "gateway_stopped"
	})
	if list := p.get("/api/tasks?status=cancelled"); !strings.Contains(list, `"mode":"sync"`) {
		t.Errorf("got %s", list)
	}
	p.terminate()
	p.awaitExit()
}
