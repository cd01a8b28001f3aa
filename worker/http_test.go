// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// httpStream opens a stream of mesh protocol 2.
func (g *gateway) httpStream(t *testing.T) network.Stream {
	t.Helper()
	s, err := g.NewStream(context.Background(), g.agent, wire.HTTPProtocol)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Reset() })
	_ = s.SetReadDeadline(time.Now().Add(30 * time.Second))
	return s
}

// begin sends a request on a stream of its own, and returns that.
func (g *gateway) begin(t *testing.T, method, target, body string, headers ...string) network.Stream {
	t.Helper()
	s := g.httpStream(t)
	writeRequest(t, s, method, target, body, headers...)
	return s
}

func writeRequest(t *testing.T, s network.Stream, method, target, body string, headers ...string) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: x\r\n", method, target)
	for i := 0; i < len(headers); i += 2 {
		fmt.Fprintf(&b, "%s: %s\r\n", headers[i], headers[i+1])
	}
	if body != "" || method == http.MethodPost {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(body))
	}
	b.WriteString("\r\n" + body)
	if _, err := io.WriteString(s, b.String()); err != nil {
		t.Fatal(err)
	}
}

// reply is an answer that has come whole.
type reply struct {
	*http.Response
	body string
	err  error // of the body
}

// answerOn reads an answer.
func answerOn(t *testing.T, r *bufio.Reader, method string) reply {
	t.Helper()
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	return reply{resp, string(b), err}
}

// do sends a request and reads its answer.
func (g *gateway) do(t *testing.T, method, target, body string, headers ...string) reply {
	t.Helper()
	return answerOn(t, bufio.NewReader(g.begin(t, method, target, body, headers...)), method)
}

// frame returns a task.
func frame(t *testing.T, id, prompt string) string {
	t.Helper()
	b, err := wire.EncodeTask(id, prompt)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// run sends a task, and returns its output, what it left and how it ended.
func (g *gateway) run(t *testing.T, id, prompt string) (string, *wire.Artifact, error) {
	t.Helper()
	s := g.begin(t, http.MethodPost, wire.PathTasks, frame(t, id, prompt))
	resp, err := http.ReadResponse(bufio.NewReader(s), nil)
	if err != nil {
		t.Fatal(err)
	}
	if reason := resp.Header.Get(wire.HeaderRefusal); reason != "" {
		return "", nil, errors.New(reason)
	}
	events := wire.NewEventReader(resp.Body)
	out, err := io.ReadAll(events)
	return string(out), events.Artifact(), err
}

// refused wants a refusal.
func (r reply) refused(t *testing.T, what string, reason wire.Refusal, status int) {
	t.Helper()
	if got := r.Header.Get(wire.HeaderRefusal); got != string(reason) || r.StatusCode != status || wire.ErrorMessage([]byte(r.body)) == "no reason was given" {
		t.Errorf("%s: got %d, refusal %q, %q; want %d, %q", what, r.StatusCode, got, r.body, status, reason)
	}
}

// idle waits until no task runs.
func idle(t *testing.T, a *agent) {
	t.Helper()
	await.Until(t, "no task runs", func() bool { return taskCount(a) == 0 })
}

func taskCount(a *agent) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.tasks)
}

// TestHTTPRefusals wants what is no task to be refused on the same stream, and the
// stream to serve on.
func TestHTTPRefusals(t *testing.T) {
	a := ready(t, start(t, behaviour{run: echo}, nil))
	g := newGateway(t, a)
	s := g.httpStream(t)
	r := bufio.NewReader(s)
	for _, c := range []struct {
		method, target, body string
		reason               wire.Refusal
		status               int
	}{
		{"POST", wire.PathTasks, "", wire.RefusalRequest, 400},
		{"POST", wire.PathTasks, "{", wire.RefusalRequest, 400},
		{"POST", wire.PathTasks, "[]", wire.RefusalRequest, 400},
		{"POST", wire.PathTasks, `{"version":"1.2.9","task":"agent_task","data":"x","task_id":"t"}`, wire.RefusalRequest, 400},
		{"POST", wire.PathTasks, `{"version":"1.3.0","task":"agent_task","data":"x","task_id":"../x"}`, wire.RefusalRequest, 400},
		{"GET", wire.PathTasks, "", wire.RefusalRoute, 404},
		{"PUT", wire.PathTasks, "x", wire.RefusalRoute, 404},
		{"POST", wire.PathTasks + "/", "x", wire.RefusalRoute, 404},
		{"GET", wire.PathTasks + "/../profile", "", wire.RefusalRoute, 404},
		{"GET", "//agentfm/v2/profile", "", wire.RefusalRoute, 404},
		{"DELETE", wire.PathTasks + "/..%2fx", "", wire.RefusalRoute, 404},
		{"POST", "/v1/chat/completions", "{}", wire.RefusalRoute, 404},
		{"GET", "/metrics", "", wire.RefusalRoute, 404},
		{"TRACE", "/", "", wire.RefusalRoute, 404},
		{"CONNECT", "127.0.0.1:22", "", wire.RefusalRoute, 404},
		{"GET", "http://127.0.0.1:2019/config/", "", wire.RefusalRoute, 404},
	} {
		writeRequest(t, s, c.method, c.target, c.body)
		answerOn(t, r, c.method).refused(t, c.method+" "+c.target+" "+c.body, c.reason, c.status)
	}
	writeRequest(t, s, "POST", wire.PathTasks, frame(t, "t1", "still here"))
	if got := answerOn(t, r, "POST"); got.StatusCode != 200 || !strings.Contains(got.body, "still here") {
		t.Errorf("got %d, %q", got.StatusCode, got.body)
	}
	for _, id := range []string{"t1", "..", "", strings.Repeat("x", 300)} {
		if got := g.do(t, "GET", wire.PathTasks+"/"+id+"/artifacts", ""); got.StatusCode != 404 {
			t.Errorf("files of %.20q: got %d", id, got.StatusCode)
		}
	}
	s = g.httpStream(t) // whose body is not read, and so cannot be written
	if _, err := fmt.Fprintf(s, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", wire.PathTasks, maxBody+1); err != nil {
		t.Fatal(err)
	}
	answerOn(t, bufio.NewReader(s), "POST").refused(t, "a body over the limit", wire.RefusalRequest, 400)
}

// TestHTTPForbidden wants a gateway that is not on the list to get nothing, and to
// hold nothing.
func TestHTTPForbidden(t *testing.T) {
	a := ready(t, start(t, behaviour{run: echo}, map[string]any{
		"allow_peers": []string{"12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL"}}))
	g := newGateway(t, a)
	for _, c := range [][2]string{{"POST", wire.PathTasks}, {"GET", wire.PathProfile}, {"POST", "/v1/chat/completions"},
		{"GET", wire.PathTasks + "/t1/artifacts"}, {"DELETE", wire.PathTasks + "/t1"}, {"GET", wire.PathProtocols}} {
		g.do(t, c[0], c[1], "").refused(t, c[0]+" "+c[1], wire.RefusalForbidden, 403)
	}
}

// TestHTTPNotReady wants a worker that is being prepared to say so.
func TestHTTPNotReady(t *testing.T) {
	a := start(t, behaviour{run: echo, prepare: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}, nil)
	g := newGateway(t, a)
	g.do(t, "POST", wire.PathTasks, frame(t, "t1", "x")).refused(t, "a task", wire.RefusalUnavailable, 503)
	g.do(t, "POST", "/v1/chat/completions", "{}").refused(t, "a request", wire.RefusalUnavailable, 503)
}

// TestHTTPSlots fills an agent. Streams that withhold a body take no slot, and
// little memory.
func TestHTTPSlots(t *testing.T) {
	hold := make(chan struct{})
	b := behaviour{run: func(_ context.Context, task Task) (Exit, error) {
		_, _ = io.WriteString(task.Output, "x")
		<-hold
		return Exit{}, nil
	}}
	a := ready(t, start(t, b, map[string]any{"max_tasks": 2}))
	g := newGateway(t, a)
	before := heap()
	for range 200 {
		s := g.httpStream(t)
		if _, err := fmt.Fprintf(s, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n{", wire.PathTasks, maxBody); err != nil {
			t.Fatal(err)
		}
	}
	var readers []*wire.EventReader
	for _, id := range []string{"t1", "t2"} {
		s := g.begin(t, "POST", wire.PathTasks, frame(t, id, ""))
		resp, err := http.ReadResponse(bufio.NewReader(s), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := resp.Header.Get(wire.HeaderLoad), fmt.Sprintf("%d/2", len(readers)+1); got != want {
			t.Errorf("load %q, want %q", got, want)
		}
		e := wire.NewEventReader(resp.Body)
		if _, err := e.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		readers = append(readers, e)
	}
	if grown := (heap() - before) >> 20; grown > 60 {
		t.Errorf("200 bodies that are withheld hold %d MiB", grown)
	}
	full := g.do(t, "POST", wire.PathTasks, frame(t, "t3", ""))
	full.refused(t, "a third task", wire.RefusalCapacity, 503)
	if full.Header.Get(wire.HeaderLoad) != "2/2" || full.Header.Get("Retry-After") == "" {
		t.Errorf("got %v", full.Header)
	}
	g.do(t, "POST", wire.PathTasks, frame(t, "t1", "")).refused(t, "the id of a task that runs", wire.RefusalRequest, 400)
	close(hold)
	for _, e := range readers {
		if b, err := io.ReadAll(e); len(b) != 0 || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
	}
	idle(t, a)
}

// heap returns what is in use once the garbage is gone.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse)
}

// TestHTTPGatewayGone wants a task to stop when its stream is reset or its
// connection ends, before the first byte and after it.
func TestHTTPGatewayGone(t *testing.T) {
	for _, begun := range []bool{false, true} {
		for name, leave := range map[string]func(*gateway, network.Stream){
			"reset":      func(_ *gateway, s network.Stream) { _ = s.Reset() },
			"connection": func(g *gateway, _ network.Stream) { _ = g.Close() },
			"deleted":    nil,
		} {
			t.Run(fmt.Sprint(name, begun), func(t *testing.T) {
				started, ended := make(chan struct{}), make(chan error, 1)
				a := ready(t, start(t, behaviour{run: func(ctx context.Context, task Task) (Exit, error) {
					if begun {
						_, _ = io.WriteString(task.Output, "x")
					}
					close(started)
					<-ctx.Done()
					ended <- context.Cause(ctx)
					return Exit{}, ctx.Err()
				}}, nil))
				g := newGateway(t, a)
				s := g.begin(t, "POST", wire.PathTasks, frame(t, "t1", "x"))
				<-started
				if leave != nil {
					leave(g, s)
				} else if got := g.do(t, "DELETE", wire.PathTasks+"/t1", ""); got.StatusCode != 204 {
					t.Errorf("got %d", got.StatusCode)
				}
				if err := <-ended; !errors.Is(err, errGatewayGone) {
					t.Errorf("stopped by %v", err)
				}
				idle(t, a)
			})
		}
	}
}

// TestHostileHTTP sends what is no request, or more than one.
func TestHostileHTTP(t *testing.T) {
	var count sync.Map
	a := ready(t, start(t, behaviour{run: func(ctx context.Context, task Task) (Exit, error) {
		count.Store(task.ID, true)
		return echo(ctx, task)
	}}, nil))
	g := newGateway(t, a)
	task := frame(t, "smuggled", "x")
	head := "POST " + wire.PathTasks + " HTTP/1.1\r\nHost: x\r\n"
	for name, raw := range map[string]string{
		"no HTTP":           "SSH-2.0-x\r\n\r\n",
		"HTTP/2":            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"huge head":         "GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
		"many heads":        "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", 100_000) + "\r\n",
		"two lengths":       head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
		"length and chunks": head + fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n%s", len(task), task),
		"bad chunks":        head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + task,
		"huge chunk":        head + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n" + task,
		"obsolete fold":     head + "Content-Length: 1\r\n 000\r\n\r\n{" + task,
		"space in name":     head + "Content-Length : 3\r\n\r\n{}\n" + task,
		"negative":          head + "Content-Length: -1\r\n\r\n" + task,
		"other coding":      head + "Transfer-Encoding: gzip, chunked\r\n\r\n" + task,
		"xchunked":          head + "Transfer-Encoding: xchunked\r\n\r\n" + task,
	} {
		t.Run(name, func(t *testing.T) {
			s := g.httpStream(t)
			go func() { _, _ = io.WriteString(s, raw); _ = s.CloseWrite() }()
			r := bufio.NewReader(s)
			for {
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					break
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode < 400 {
					t.Errorf("got %d, %v", resp.StatusCode, err)
				}
			}
		})
	}
	if _, ran := count.Load("smuggled"); ran {
		t.Error("a task that was no request of its own ran")
	}
	// Requests in one go are answered one after the other, each with its own.
	s := g.httpStream(t)
	var all bytes.Buffer
	for i := range 20 {
		body := frame(t, fmt.Sprintf("p%d", i), fmt.Sprintf("prompt %d.", i))
		fmt.Fprintf(&all, "%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
	}
	if _, err := s.Write(all.Bytes()); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(s)
	for i := range 20 {
		got := answerOn(t, r, "POST")
		if want, _ := json.Marshal(fmt.Sprintf("prompt %d.", i)); !strings.Contains(got.body, string(want)) {
			t.Errorf("answer %d: %q", i, got.body)
		}
	}
	// A body is asked for when it is waited for.
	s = g.httpStream(t)
	body := frame(t, "e1", "expected")
	if _, err := fmt.Fprintf(s, "%sExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", head, len(body)); err != nil {
		t.Fatal(err)
	}
	r = bufio.NewReader(s)
	if got := answerOn(t, r, "POST"); got.StatusCode != 100 {
		t.Errorf("got %d", got.StatusCode)
	}
	_, _ = io.WriteString(s, body)
	if got := answerOn(t, r, "POST"); !strings.Contains(got.body, "expected") {
		t.Errorf("got %q", got.body)
	}
	idle(t, a)
}
