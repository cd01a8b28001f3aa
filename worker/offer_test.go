// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

func init() {
	caddy.RegisterModule(&testServer{})
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

// TestServeLimits wants a model server to have all of the machine, unless told otherwise.
func TestServeLimits(t *testing.T) {
	for gpu, want := range map[float64]float64{0: -1, 50: 50} {
		t.Run(fmt.Sprint(gpu), func(t *testing.T) {
			a := startServing(t, serving{serve: func(http.ResponseWriter, *http.Request) {}}, map[string]any{"max_cpu": 0, "max_gpu": gpu})
			if c := a.active.Load().config; c.MaxCPU != -1 || c.MaxGPU != want {
				t.Errorf("limits %v and %v, want -1 and %v", c.MaxCPU, c.MaxGPU, want)
			}
		})
	}
}

// TestSlotBeforeTheEnd wants the slot of an answer that has a length to be free when the
// gateway has all of it, whatever the runtime still does.
func TestSlotBeforeTheEnd(t *testing.T) {
	hold := make(chan struct{})
	a := startServing(t, serving{serve: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "8")
		for _, half := range []string{"half", "rest"} {
			_, _ = io.WriteString(w, half)
			_ = http.NewResponseController(w).Flush()
		}
		select {
		case <-hold:
		case <-r.Context().Done():
			t.Error("its time is over")
		}
	}}, map[string]any{"max_tasks": 1})
	g := newGateway(t, a)
	for range 2 {
		if r := g.do(t, "POST", chats, "{}"); r.body != "halfrest" || r.err != nil {
			t.Fatalf("%d %q, %v", r.StatusCode, r.body, r.err)
		}
	}
	close(hold)
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
