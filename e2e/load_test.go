// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// reply is a streamed chat that has ended, well or not.
type reply struct {
	status   int
	header   http.Header
	text     string
	finish   string // reason of
	code     string // of the error in it
	message  string // of the error in it
	done     bool   // the end mark was there
	began    time.Time
	duration time.Duration
	err      error // of the connection
}

// stream asks for a chat and reads it to its end.
func (p *process) stream(ctx context.Context, request map[string]any) (r reply) {
	r.began = time.Now()
	defer func() { r.duration = time.Since(r.began) }()
	resp, err := p.send(ctx, http.MethodPost, "/v1/chat/completions", request)
	if err != nil {
		r.err = err
		return r
	}
	defer resp.Body.Close()
	r.status, r.header = resp.StatusCode, resp.Header
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		line, _ := strings.CutPrefix(lines.Text(), "data: ")
		if line == "" || strings.HasPrefix(line, ":") {
			continue
		}
		if r.done = line == "[DONE]"; !r.done {
			r.add(line)
		}
	}
	if r.err == nil {
		r.err = lines.Err()
	}
	return r
}

// add reads a chunk or an error.
func (r *reply) add(line string) {
	var chunk struct {
		Choices []struct {
			Delta        struct{ Content string }
			FinishReason string `json:"finish_reason"`
		}
		Error struct{ Code, Message string }
	}
	if r.err = json.Unmarshal([]byte(line), &chunk); r.err != nil {
		return
	}
	r.code, r.message = chunk.Error.Code, chunk.Error.Message
	for _, choice := range chunk.Choices {
		r.text += choice.Delta.Content
		r.finish = choice.FinishReason
	}
}

// well reports whether the whole answer came.
func (r reply) well() bool {
	return r.err == nil && r.status == http.StatusOK && r.code == "" && r.finish == "stop" && r.done
}

// As many requests as there are slots on equal workers, all at once, take each
// slot exactly once.
func TestSpread(t *testing.T) {
	const workers, slots = 8, 8
	state := t.TempDir()
	var agents []string
	for i := range workers {
		key := fmt.Sprintf("w%d", i)
		agents = append(agents, lab(t, key, key, "lab", state, slots))
	}
	p := start(t, home(t), caddyfile(localMesh, withKey, agents...))
	for round := range scaled(1, 20) {
		p.awaitWorkers(workers)
		p.await("idle workers", func() bool {
			tasks := 0
			for _, w := range p.workers().Agents {
				tasks += w.CurrentTasks
			}
			return tasks == 0
		})
		token := fmt.Sprintf("spread-%d", round)
		replies := make(chan reply, workers*slots)
		for range workers * slots {
			go func() { replies <- p.stream(t.Context(), labRequest("lab", "hold", token, token+".go")) }()
		}
		p.await("all tasks", func() bool { return len(runsOf(t, state, token))+len(replies) >= workers*slots })
		writeFile(t, state, token+".go", "")
		for range workers * slots {
			if r := <-replies; !r.well() || r.header.Get("X-AgentFM-Attempts") != "1" {
				t.Errorf("round %d: %+v: %v", round, r, r.err)
			}
		}
		count := make(map[string]int)
		for _, run := range runsOf(t, state, token) {
			_, worker, _ := strings.Cut(run, " ")
			count[worker]++
		}
		for worker, n := range count {
			if n != slots {
				t.Errorf("round %d: %d tasks on %s", round, n, worker)
			}
		}
		if len(count) != workers {
			t.Errorf("round %d: %v", round, count)
		}
	}
}

// Of four workers under load one is killed: no request fails that had not
// produced a byte.
func TestKillUnderLoad(t *testing.T) {
	const clients, slots = 32, 16
	state := t.TempDir()
	m := newMesh(t, withKey)
	var workers []*process
	for i := range 4 {
		key := fmt.Sprintf("w%d", i)
		workers = append(workers, m.worker(lab(t, key, key, "lab", state, slots)))
	}
	m.gateway.awaitWorkers(len(workers))

	var mu sync.Mutex
	var replies []reply
	var wg sync.WaitGroup
	length := scaled(6*time.Second, time.Minute)
	end := time.Now().Add(length)
	for i := range clients {
		wg.Go(func() {
			for n := 0; time.Now().Before(end); n++ {
				r := m.gateway.stream(t.Context(), labRequest("lab", "work", fmt.Sprintf("load-%d-%d", i, n), 0.2))
				mu.Lock()
				replies = append(replies, r)
				mu.Unlock()
			}
		})
	}
	time.Sleep(length / 3)
	workers[0].kill()
	killed := time.Now()
	wg.Wait()

	var failed, cut, retried, slow int
	var longest, quiet time.Duration
	for _, r := range replies {
		switch {
		case r.well() && r.text == "done":
		case r.text != "" && r.code != "" && r.finish == "":
			cut++ // it had begun, and says so
		default:
			failed++
			t.Errorf("%+v", r)
		}
		if attempts, _ := strconv.Atoi(r.header.Get("X-AgentFM-Attempts")); attempts > 1 {
			retried++
			quiet = max(quiet, r.began.Sub(killed)) // it was sent to the dead worker first
		}
		if r.duration > 2*time.Second {
			slow++
		}
		longest = max(longest, r.duration)
	}
	t.Logf("of %d requests by %d clients in %v: %d failed, %d broke off, %d were served at a second attempt, %d took over 2 s, the longest %v; "+
		"nothing was sent to the dead worker later than %v after its end",
		len(replies), clients, length, failed, cut, retried, slow, longest.Round(time.Millisecond), quiet.Round(time.Millisecond))
	if retried+cut == 0 {
		t.Error("the worker that was killed had no task")
	}
}

// tooLong is what a message says of a task over its time.
var tooLong = regexp.MustCompile(`(?i)\b(too long|longer|time|limit)`)

// A task that is never silent, and never ends, is ended at the limit, and
// nobody takes what came for an answer.
func TestDrip(t *testing.T) {
	t.Parallel() // it waits
	const limit = 3 * time.Second
	state := t.TempDir()
	site := replaceOnce(t, withKey, "\n\t}", fmt.Sprintf("\n\t\ttask_timeout %v\n\t}", limit))
	p := start(t, home(t), caddyfile(localMesh, site, lab(t, "lab", "Lab", "lab", state, 4)))
	p.awaitWorkers(1)

	whole := make(chan *http.Response, 1)
	go func() {
		request := labRequest("lab", "drip", "whole")
		request["stream"] = false
		resp, err := p.send(t.Context(), http.MethodPost, "/v1/chat/completions", request)
		if err != nil {
			t.Error(err)
		}
		whole <- resp
	}()
	r := p.stream(t.Context(), labRequest("lab", "drip", "stream"))
	if r.duration < limit || r.duration > limit+5*time.Second {
		t.Errorf("ended after %v", r.duration)
	}
	if r.err != nil || !strings.HasPrefix(r.text, "drop\ndrop\n") || r.code == "" || !tooLong.MatchString(r.message) || r.finish != "" || r.done {
		t.Errorf("%+v", r)
	}
	if resp := <-whole; resp != nil {
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode < 500 || !tooLong.Match(body) || resp.Header.Get("X-Should-Retry") != "false" {
			t.Errorf("%d %q, %v, %v", resp.StatusCode, body, resp.Header, err)
		}
	}
	for _, run := range append(runsOf(t, state, "stream"), runsOf(t, state, "whole")...) {
		var pid int
		if _, err := fmt.Sscan(run, &pid); err != nil {
			t.Fatal(err)
		}
		await(t, "end of the agent", func() bool { return ended(pid) })
	}
}
