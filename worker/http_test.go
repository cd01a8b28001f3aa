// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

func init() {
	caddy.RegisterModule(&testServer{})
}

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

// TestEvents wants each end of a task to be what a gateway of protocol 2 reads.
func TestEvents(t *testing.T) {
	var b behaviour
	b.run = func(ctx context.Context, task Task) (Exit, error) {
		switch task.Prompt {
		case "code":
			_, _ = io.WriteString(task.Output, "half")
			return Exit{Code: 3}, nil
		case "oom":
			return Exit{Code: 137, Reason: "killed:\nout of memory"}, nil
		case "killed":
			return Exit{Code: 139}, nil
		case "signal":
			return Exit{Code: -1, Reason: "signal: killed"}, nil
		case "memory":
			return Exit{Code: 137, Cause: wire.CauseOOMKilled}, nil
		case "flood":
			return Exit{}, fmt.Errorf("reading: %w", &Failure{wire.CauseOutputLimit, errors.New("secret size")})
		case "image":
			return Exit{}, &Failure{wire.CauseImageUnavailable, errors.New("secret image")}
		case "digest":
			return Exit{}, &Failure{wire.CauseDigestMismatch, errors.New("secret digest")}
		case "error":
			return Exit{}, errors.New("secret path /etc/x")
		case "time":
			<-ctx.Done()
			return Exit{}, ctx.Err()
		default:
			return echo(ctx, task)
		}
	}
	a := ready(t, start(t, b, map[string]any{"timeout": "100ms"}))
	g := newGateway(t, a)
	for prompt, want := range map[string]struct {
		out, err string
		cause    wire.Cause
	}{
		"hello\r\n":                 {"hello\r\n", "", ""},
		"event: exit\ndata: {}\n\n": {"event: exit\ndata: {}\n\n", "", ""},
		"\xff\xfe":                  {"", "request", ""}, // JSON cannot have it
		"":                          {"", "said nothing and left no files", wire.CauseEmpty},
		strings.Repeat("ü", 50_000): {strings.Repeat("ü", 50_000), "", ""},
		"code":                      {"half", "exit status 3", wire.CauseExitCode},
		"oom":                       {"", "killed: out of memory", wire.CauseSignal},
		"killed":                    {"", "exit status 139", wire.CauseSignal},
		"signal":                    {"", "signal: killed", wire.CauseSignal},
		"memory":                    {"", "exit status 137", wire.CauseOOMKilled},
		"flood":                     {"", "it said more than it may", wire.CauseOutputLimit},
		"image":                     {"", "its image is not there", wire.CauseImageUnavailable},
		"digest":                    {"", "its image is not the one", wire.CauseDigestMismatch},
		"error":                     {"", "the worker's log says why", wire.CauseRuntimeError},
		"time":                      {"", "timed out after 100ms", wire.CauseDeadline},
		"a\x00b":                    {"", "request", ""},
		strings.Repeat("x", wire.MaxArgumentPrompt+1): {"", "request", ""},
	} {
		if strings.Contains(prompt, "\xff") {
			continue
		}
		out, files, err := g.run(t, "t1", prompt)
		if out != want.out || files != nil || (err != nil) != (want.err != "") || err != nil && !strings.Contains(err.Error(), want.err) {
			t.Errorf("%.20q: got %.100q, %v, %v; want %.100q, %q", prompt, out, files, err, want.out, want.err)
		}
		if e, ok := errors.AsType[*wire.AgentError](err); ok && e.Cause != want.cause || !ok && want.cause != "" {
			t.Errorf("%.20q: the cause is %v, want %q", prompt, e, want.cause)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%.20q: the gateway learns %v", prompt, err)
		}
	}
	idle(t, a)
	await.Until(t, "the folders are gone", func() bool { return len(leftovers(t)) == 0 })
}

// TestRequestOfATask wants an agent to get the request that its prompt was made of.
func TestRequestOfATask(t *testing.T) {
	const request = `{"messages":[]}`
	got := make(chan string, 1)
	a := ready(t, start(t, behaviour{run: func(_ context.Context, task Task) (Exit, error) {
		got <- task.Request
		return Exit{}, nil
	}}, nil))
	g := newGateway(t, a)
	body, err := wire.EncodeTaskOf("t1", "hi", []byte(request))
	if err != nil {
		t.Fatal(err)
	}
	if r := g.do(t, "POST", wire.PathTasks, string(body)); r.StatusCode != 200 || <-got != request {
		t.Errorf("got %d %s", r.StatusCode, r.body)
	}
	if r := g.do(t, "POST", wire.PathTasks, frame(t, "t1", "hi")); r.StatusCode != 200 || <-got != "" {
		t.Errorf("got %d %s", r.StatusCode, r.body)
	}
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

// leaveFiles leaves a file of the size that the prompt says.
func leaveFiles(_ context.Context, task Task) (Exit, error) {
	var size int
	_, err := fmt.Sscan(task.Prompt, &size)
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i * i >> 3)
	}
	return Exit{}, errors.Join(err, os.WriteFile(filepath.Join(task.OutputDir, "f"), content, 0o600))
}

// keptCount returns how many zips wait.
func keptCount(a *agent) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.kept)
}

// TestKeptFiles wants the files of a task to be there for its gateway, whole and in
// parts, and for nobody else, until it deletes them.
func TestKeptFiles(t *testing.T) {
	a := ready(t, start(t, behaviour{run: leaveFiles}, nil))
	g, other := newGateway(t, a), newGateway(t, a)
	_, files, err := g.run(t, "t1", "300000")
	if err != nil || files == nil {
		t.Fatal(files, err)
	}
	path := wire.ArtifactPath("t1")
	whole := g.do(t, "GET", path, "")
	sum := sha256.Sum256([]byte(whole.body))
	if whole.err != nil || int64(len(whole.body)) != files.Size || hex.EncodeToString(sum[:]) != files.SHA256 ||
		whole.Header.Get("ETag") != wire.ArtifactTag(files.SHA256) {
		t.Errorf("got %d bytes, %v, of %+v", len(whole.body), whole.err, files)
	}
	for rng, want := range map[string]string{"bytes=100-": whole.body[100:], "bytes=0-9": whole.body[:10]} {
		if got := g.do(t, "GET", path, "", "Range", rng, "If-Range", wire.ArtifactTag(files.SHA256)); got.StatusCode != 206 || got.body != want {
			t.Errorf("%s: got %d, %d bytes", rng, got.StatusCode, len(got.body))
		}
	}
	if got := g.do(t, "GET", path, "", "Range", "bytes="+strings.Repeat("0-,", 5000)+"0-"); len(got.body) > len(whole.body) {
		t.Errorf("5,000 parts that are the whole: got %d bytes", len(got.body))
	}
	if got := g.do(t, "GET", path, "", "Range", "bytes=100-", "If-Range", `"sha256:other"`); got.StatusCode != 200 || got.body != whole.body {
		t.Errorf("part of another: got %d, %d bytes", got.StatusCode, len(got.body))
	}
	for _, method := range []string{"GET", "DELETE"} {
		target := path
		if method == "DELETE" {
			target = wire.PathTasks + "/t1"
		}
		if got := other.do(t, method, target, ""); got.StatusCode != 404 {
			t.Errorf("%s by another gateway: got %d", method, got.StatusCode)
		}
	}
	if got := g.do(t, "DELETE", wire.PathTasks+"/t1", ""); got.StatusCode != 204 {
		t.Errorf("got %d", got.StatusCode)
	}
	if got := g.do(t, "GET", path, ""); got.StatusCode != 404 {
		t.Errorf("after it was deleted: got %d", got.StatusCode)
	}
	await.Until(t, "the folders are gone", func() bool { return len(leftovers(t)) == 0 })
	// The id is free again, and the end of the first does not take the second.
	for range 20 {
		if _, files, err := g.run(t, "t1", "10"); err != nil || files == nil {
			t.Fatal(files, err)
		}
		if got := g.do(t, "GET", path, ""); got.StatusCode != 200 {
			t.Fatalf("got %d", got.StatusCode)
		}
		g.do(t, "DELETE", wire.PathTasks+"/t1", "")
	}
}

// TestKeptBound has one gateway leave more files than are kept: those that nobody
// asked for make room, so that another gateway's tasks still succeed.
func TestKeptBound(t *testing.T) {
	a := ready(t, start(t, behaviour{run: leaveFiles}, nil))
	g, other := newGateway(t, a), newGateway(t, a)
	for i := range maxKept + 10 {
		if _, files, err := g.run(t, fmt.Sprintf("t%d", i), "1"); err != nil || files == nil {
			t.Fatal(i, files, err)
		}
	}
	if n := keptCount(a); n > maxKept {
		t.Errorf("%d are kept, at most %d", n, maxKept)
	}
	if _, files, err := other.run(t, "mine", "1"); err != nil || files == nil {
		t.Errorf("another gateway: %v, %v", files, err)
	}
	if got := other.do(t, "GET", wire.ArtifactPath("mine"), ""); got.StatusCode != 200 {
		t.Errorf("another gateway: got %d", got.StatusCode)
	}
	await.Until(t, "the folders of those that are gone", func() bool { return len(leftovers(t)) <= maxKept })
	a.mu.Lock()
	for range maxKept {
		a.evictKept() // or the agent's end waits for gateways to ask
	}
	a.mu.Unlock()
	other.do(t, "DELETE", wire.PathTasks+"/mine", "")
}

// TestKeptAndLeaving wants an agent that was taken out to wait for a gateway that
// has its files to fetch.
func TestKeptAndLeaving(t *testing.T) {
	a := ready(t, start(t, behaviour{run: leaveFiles}, nil))
	g := newGateway(t, a)
	if _, files, err := g.run(t, "t1", "1000"); err != nil || files == nil {
		t.Fatal(files, err)
	}
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	if got := g.do(t, "GET", wire.ArtifactPath("t1"), ""); got.StatusCode != 200 {
		t.Errorf("got %d", got.StatusCode)
	}
	g.do(t, "POST", wire.PathTasks, frame(t, "t2", "1")).refused(t, "a task", wire.RefusalCapacity, 503)
	if got := g.do(t, "DELETE", wire.PathTasks+"/t1", ""); got.StatusCode != 204 {
		t.Errorf("got %d", got.StatusCode)
	}
	await.Until(t, "the agent has gone", func() bool {
		live.Lock()
		defer live.Unlock()
		return live.byKey["a"] == nil
	})
	if left := leftovers(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// testServer is a runtime that serves OpenAI's API as the current test says.
type testServer struct {
	testRuntime
}

type serving struct {
	behaviour
	serve http.HandlerFunc
	offer func() (Offer, bool)
}

func (*testServer) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "agentfm.runtimes.test_server", New: func() caddy.Module { return new(testServer) }}
}

func (r *testServer) serving() serving { return serve(r.Name) }

// serve returns what a runtime of that name does.
func serve(name string) serving {
	s, _ := servings.Load(name)
	return s.(serving)
}

var servings sync.Map

func (r *testServer) Prepare(context.Context, Agent) (Image, error) { return Image{}, nil }
func (r *testServer) Run(ctx context.Context, t Task) (Exit, error) { return r.serving().run(ctx, t) }
func (r *testServer) Offer() (Offer, bool)                          { return r.serving().offer() }
func (r *testServer) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.serving().serve(w, q)
}

const chats = "/v1/chat/completions"

// startServing starts an agent that serves chats.
func startServing(t *testing.T, s serving, settings map[string]any) *agent {
	t.Helper()
	name := fmt.Sprintf("%s-%d", t.Name(), time.Now().UnixNano())
	if s.run == nil {
		s.run = echo
	}
	if s.offer == nil {
		s.offer = func() (Offer, bool) { return Offer{Models: []string{"m1", "m2"}, Routes: []string{chats}}, true }
	}
	servings.Store(name, s)
	all := map[string]any{"runtime": map[string]any{"runtime": "test_server", "name": name}}
	for k, v := range settings {
		all[k] = v
	}
	return ready(t, start(t, s.behaviour, all))
}

// TestServe wants requests to reach the runtime as they are, each in a slot that is
// free again whatever the runtime does.
func TestServe(t *testing.T) {
	var a *agent
	a = startServing(t, serving{serve: func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		w.Header().Set("X-Running", fmt.Sprint(taskCount(a)))
		switch string(body) {
		case "abort":
			_, _ = io.WriteString(w, "half")
			panic(http.ErrAbortHandler)
		case "panic":
			panic("a fault")
		case "nothing":
			return
		}
		_, _ = fmt.Fprintf(w, "%s %s %s %v", r.Method, r.URL.RequestURI(), body, err)
	}}, map[string]any{"max_tasks": 1})
	g := newGateway(t, a)
	big := strings.Repeat("y", maxBody)
	for body, want := range map[string]string{"{}": "POST /v1/chat/completions?a=b {} <nil>", big: "POST /v1/chat/completions?a=b " + big + " <nil>", "nothing": ""} {
		got := g.do(t, "POST", chats+"?a=b", body)
		if got.StatusCode != 200 || got.body != want || got.err != nil || got.Header.Get("X-Running") != "1" && body != "nothing" ||
			got.Header.Get(wire.HeaderLoad) != "1/1" || got.Header.Get(wire.HeaderRefusal) != "" {
			t.Errorf("%.20q: got %d, %.100q, %v, %v", body, got.StatusCode, got.body, got.err, got.Header)
		}
	}
	for _, body := range []string{"abort", "panic"} {
		for range 3 {
			s := g.begin(t, "POST", chats, body)
			resp, err := http.ReadResponse(bufio.NewReader(s), nil)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
			}
			if err == nil {
				t.Errorf("%s: an answer that is whole", body)
			}
			idle(t, a)
		}
	}
	g.do(t, "POST", "/v1/embeddings", "{}").refused(t, "another route", wire.RefusalRoute, 404)
	g.do(t, "POST", chats+"x", "{}").refused(t, "another route", wire.RefusalRoute, 404)
	if got := g.do(t, "GET", chats+"/c1", ""); got.StatusCode != 200 || got.Header.Get("X-Running") != "0" {
		t.Errorf("what is there already: got %d in %s slots", got.StatusCode, got.Header.Get("X-Running"))
	}
	if got := g.do(t, "HEAD", chats+"/c1", ""); got.StatusCode != 200 || got.body != "" {
		t.Errorf("HEAD: got %d, %q", got.StatusCode, got.body)
	}
}

// TestServeBelow wants no spelling of a route to be work without a slot, and no
// body without a bound.
func TestServeBelow(t *testing.T) {
	var mu sync.Mutex
	var served []string
	var a *agent
	a = startServing(t, serving{serve: func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		mu.Lock()
		defer mu.Unlock()
		served = append(served, fmt.Sprintf("%s %s in %d slots: %d bytes, %v", r.Method, r.URL.Path, taskCount(a), n, err))
	}}, map[string]any{"max_tasks": 1})
	g := newGateway(t, a)
	for _, path := range []string{chats + "/", chats + "//", chats + "/.", chats + "/./", chats + "/%2e/", chats + "/x/..", chats + "/%2e%2e/completions", chats + "/x/", chats + `/\`} {
		g.do(t, "POST", path, "{}").refused(t, path, wire.RefusalRoute, 404)
	}
	mu.Lock()
	if len(served) > 0 {
		t.Errorf("served: %q", served)
	}
	mu.Unlock()
	for _, c := range []struct{ method, path, want string }{
		{"POST", chats + "/batch", "in 1 slots"},
		{"PUT", chats + "/c1", "in 1 slots"},
		{"POST", chats + "/c1/cancel", "in 0 slots"},
		{"DELETE", chats + "/c1", "in 0 slots"},
		{"GET", chats + "/c1", "in 0 slots"},
	} {
		if got := g.do(t, c.method, c.path, "{}"); got.StatusCode != 200 {
			t.Errorf("%s %s: got %d, %q", c.method, c.path, got.StatusCode, got.body)
		}
		mu.Lock()
		if last := served[len(served)-1]; !strings.Contains(last, c.want) {
			t.Errorf("%s, want it %s", last, c.want)
		}
		mu.Unlock()
		s := g.httpStream(t)
		go func() {
			_, _ = fmt.Fprintf(s, "%s %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", c.method, c.path)
			chunk := []byte("100000\r\n" + strings.Repeat("x", 1<<20) + "\r\n")
			for range maxBody>>20 + 2 {
				if _, err := s.Write(chunk); err != nil {
					return
				}
			}
		}()
		answerOn(t, bufio.NewReader(s), c.method).refused(t, c.method+" "+c.path+" with an endless body", wire.RefusalRequest, 400)
	}
}

// TestServeEnds wants the context of a request to end with its gateway, and with
// its time.
func TestServeEnds(t *testing.T) {
	for _, begun := range []bool{false, true} {
		t.Run(fmt.Sprint(begun), func(t *testing.T) {
			started, ended := make(chan struct{}, 1), make(chan error, 1)
			a := startServing(t, serving{serve: func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if begun {
					_, _ = io.WriteString(w, "x")
					_ = http.NewResponseController(w).Flush()
				}
				started <- struct{}{}
				<-r.Context().Done()
				ended <- r.Context().Err()
				if string(body) == "late" && !begun {
					w.WriteHeader(http.StatusGatewayTimeout)
				}
			}}, map[string]any{"timeout": "300ms", "max_tasks": 1})
			g := newGateway(t, a)
			s := g.begin(t, "POST", chats, "gone")
			<-started
			_ = s.Reset()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("the gateway is gone: %v", err)
			}
			idle(t, a)
			got := g.do(t, "POST", chats, "late")
			if err := <-ended; !errors.Is(err, context.DeadlineExceeded) || !begun && got.StatusCode != 504 {
				t.Errorf("the time is up: %v, %d", err, got.StatusCode)
			}
			idle(t, a)
		})
	}
}

// TestSlowReader wants a gateway that does not read to lose its stream, also where
// the runtime writes little at a time.
func TestSlowReader(t *testing.T) {
	old := writeTimeout
	writeTimeout = 200 * time.Millisecond
	defer func() { writeTimeout = old }()
	ended := make(chan struct{})
	a := startServing(t, serving{
		serve: func(w http.ResponseWriter, r *http.Request) {
			defer close(ended)
			flush := http.NewResponseController(w).Flush
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, "data: "+strings.Repeat("x", 1000)+"\n\n"); err != nil {
					panic(http.ErrAbortHandler)
				}
				_ = flush()
			}
		},
		behaviour: behaviour{run: func(ctx context.Context, task Task) (Exit, error) {
			for ctx.Err() == nil {
				_, _ = io.WriteString(task.Output, "x\n")
			}
			return Exit{}, ctx.Err()
		}},
	}, nil)
	g := newGateway(t, a)
	g.begin(t, "POST", chats, "{}")
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("a request that nobody reads runs on")
	}
	g.begin(t, "POST", wire.PathTasks, frame(t, "t1", "x"))
	await.Until(t, "it runs", func() bool { return taskCount(a) == 1 })
	idle(t, a)
}

// TestSlowBody wants a gateway that withholds a body to get an answer, or none, and
// its stream to end.
func TestSlowBody(t *testing.T) {
	old := bodyTimeout
	bodyTimeout = func(n int64) time.Duration { return 200*time.Millisecond + time.Duration(n>>20)*time.Second }
	defer func() { bodyTimeout = old }()
	a := startServing(t, serving{serve: func(w http.ResponseWriter, r *http.Request) {}}, nil)
	g := newGateway(t, a)
	for _, target := range []string{wire.PathTasks, chats, "/nowhere"} {
		for _, body := range []string{"Content-Length: 1000\r\n\r\n{", "Content-Length: 30000000\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"} {
			s := g.httpStream(t)
			if _, err := fmt.Fprintf(s, "POST %s HTTP/1.1\r\nHost: x\r\n%s", target, body); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(body, "30000000") && target != "/nowhere" {
				continue // it has more time
			}
			_ = s.SetReadDeadline(time.Now().Add(15 * time.Second))
			if b, err := io.ReadAll(s); err != nil && !strings.Contains(err.Error(), "reset") {
				t.Errorf("%s, %.30q: still open: %q, %v", target, body, b, err)
			}
		}
	}
	idle(t, a)
}

// TestOffer follows what gateways are told of a back-end that changes and goes.
func TestOffer(t *testing.T) {
	var mu sync.Mutex
	offer, up := Offer{Models: []string{"m1", "m2"}, Routes: []string{chats}}, true
	set := func(o Offer, ok bool) { mu.Lock(); defer mu.Unlock(); offer, up = o, ok }
	a := startServing(t, serving{
		serve: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") },
		offer: func() (Offer, bool) { mu.Lock(); defer mu.Unlock(); return offer, up },
	}, nil)
	g := newGateway(t, a)
	profile := func() wire.Profile {
		t.Helper()
		p, err := wire.ParseProfile([]byte(g.do(t, "GET", wire.PathProfile, "").body))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := profile()
	if first.Model != "m1" || len(first.Models) != 2 || len(first.Routes) != 1 || first.Status != wire.StatusAvailable || first.ProfileTag == "" {
		t.Errorf("got %+v", first)
	}
	set(Offer{Models: []string{"m3"}, Routes: []string{chats, "/v1/embeddings"}}, true)
	a.touch()
	g.hears(t, "another tag", func(t wire.Telemetry) bool {
		return t.ProfileTag != first.ProfileTag && t.ProfileTag != "" && t.Model == "m3"
	})
	if p := profile(); p.Models[0] != "m3" || len(p.Routes) != 2 {
		t.Errorf("got %+v", p)
	}
	set(Offer{}, false)
	a.touch()
	g.hears(t, "BUSY without its back-end", func(t wire.Telemetry) bool { return t.Status == wire.StatusBusy && t.Model == "m3" })
	g.do(t, "POST", chats, "{}").refused(t, "without its back-end", wire.RefusalUnavailable, 503)
	set(Offer{Models: []string{"m1", "m2"}, Routes: []string{chats}}, true)
	a.touch()
	g.hears(t, "AVAILABLE with the first tag", func(t wire.Telemetry) bool {
		return t.Status == wire.StatusAvailable && t.ProfileTag == first.ProfileTag
	})
	if got := g.do(t, "POST", chats, "{}"); got.body != "ok" {
		t.Errorf("got %q", got.body)
	}
}

// TestLeavingAnswers wants the end of an answer to reach its gateway, also when the
// agent goes with it.
func TestLeavingAnswers(t *testing.T) {
	text := strings.Repeat("x", 100_000)
	for _, target := range []string{chats, wire.PathTasks} {
		t.Run(target, func(t *testing.T) {
			started, finish := make(chan struct{}), make(chan struct{})
			a := startServing(t, serving{
				serve: func(w http.ResponseWriter, _ *http.Request) {
					close(started)
					<-finish
					_, _ = io.WriteString(w, text)
				},
				behaviour: behaviour{run: func(_ context.Context, task Task) (Exit, error) {
					close(started)
					<-finish
					_, err := io.WriteString(task.Output, text)
					return Exit{}, err
				}},
			}, nil)
			g := newGateway(t, a)
			s := g.begin(t, "POST", target, frame(t, "t1", "x"))
			<-started
			if err := caddy.Stop(); err != nil {
				t.Fatal(err)
			}
			close(finish)
			resp, err := http.ReadResponse(bufio.NewReader(s), nil)
			if err != nil {
				t.Fatal(err)
			}
			var got []byte
			if target == chats {
				got, err = io.ReadAll(resp.Body)
			} else {
				got, err = io.ReadAll(wire.NewEventReader(resp.Body))
			}
			if string(got) != text || err != nil {
				t.Errorf("got %d bytes of %d, %v", len(got), len(text), err)
			}
		})
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
