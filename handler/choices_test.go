// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/go-json-experiment/json"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
	"github.com/Agent-FM/caddy-agentfm/router/policy"
)

// with adds fields to a body.
func with(body, fields string) string { return strings.Replace(body, "{", "{"+fields+",", 1) }

// noSlot is what a task that finds no slot can get.
var noSlot = []error{router.ErrBusy, router.ErrQueueFull, router.ErrCrowdedOut, wire.ErrCapacity}

// numbered returns a dispatch with a number of slots, whose tasks answer with
// their number.
func numbered(slots int32) (dispatch func(context.Context, mesh.Call) (run, error), most *atomic.Int32) {
	var count, running atomic.Int32
	most = new(atomic.Int32)
	return func(ctx context.Context, c mesh.Call) (run, error) {
		n := running.Add(1)
		if n > slots {
			running.Add(-1)
			return nil, noSlot[n%int32(len(noSlot))]
		}
		most.Store(max(most.Load(), n))
		t, err := answers(script{output: []string{fmt.Sprintf("answer %d", count.Add(1))}})(ctx, c)
		return &counted{run: t, running: &running}, err
	}, most
}

// counted gives its slot back when it is closed.
type counted struct {
	run
	running *atomic.Int32
	closed  atomic.Bool
}

func (c *counted) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.running.Add(-1)
	}
	return c.run.Close()
}

// TestChoices wants several choices to be as many tasks, also when they do not
// all find a slot at once.
func TestChoices(t *testing.T) {
	for _, slots := range []int32{1, 2, 8} {
		f := new(fakeMesh)
		g := serve(t, f)
		f.dispatch, _ = numbered(slots)
		var got struct {
			Choices []struct {
				Index   int
				Message struct{ Content string }
			}
			Usage struct {
				Completion int `json:"completion_tokens"`
			}
		}
		a := g.do(t, "POST", "/v1/chat/completions", with(chatBody, `"n":4`))
		if err := json.Unmarshal([]byte(a.body), &got, json.MatchCaseInsensitiveNames(true)); err != nil || len(got.Choices) != 4 {
			t.Fatalf("%d slots: got %s, %v", slots, a.body, err)
		}
		seen := make(map[string]bool)
		for i, c := range got.Choices {
			seen[c.Message.Content] = true
			if c.Index != i {
				t.Errorf("choice %d has index %d", i, c.Index)
			}
		}
		if len(seen) != 4 || got.Usage.Completion < 8 {
			t.Errorf("%d slots: got %s", slots, a.body)
		}

		f.dispatch, _ = numbered(slots)
		a = g.do(t, "POST", "/v1/chat/completions", with(chatBody, `"n":3,"stream":true`))
		for i := range 3 {
			if n := strings.Count(a.body, fmt.Sprintf(`{"index":%d,"delta":{"role"`, i)); n != 1 {
				t.Errorf("%d slots: choice %d begins %d times: %s", slots, i, n, a.body)
			}
		}
		if strings.Count(a.body, `"finish_reason":"stop"`) != 3 || !strings.HasSuffix(a.body, "data: [DONE]\n\n") {
			t.Errorf("%d slots: got %s", slots, a.body)
		}
	}
}

// TestChoicesFail wants one failure to end them all.
func TestChoicesFail(t *testing.T) {
	f := new(fakeMesh)
	g := serve(t, f)
	var count atomic.Int32
	f.dispatch = func(ctx context.Context, c mesh.Call) (run, error) {
		if count.Add(1) == 3 {
			return nil, fmt.Errorf("%w: exit status 1", wire.ErrAgentFailed)
		}
		return answers(script{hang: true})(ctx, c)
	}
	g.do(t, "POST", "/v1/chat/completions", with(chatBody, `"n":3`)).failed(t, 502, "worker_stream_failed")
	f.dispatch = fails(router.ErrBusy)
	g.do(t, "POST", "/v1/chat/completions", with(chatBody, `"n":3`)).failed(t, 503, "mesh_overloaded")
}

// announced tells when somebody asks who serves it.
type announced struct {
	run
	once sync.Once
	told chan struct{}
}

func (a *announced) Served() mesh.Served {
	a.once.Do(func() { close(a.told) })
	return a.run.Served()
}

// TestChoicesHalf wants no client to send a request again of which a part has run.
func TestChoicesHalf(t *testing.T) {
	for _, body := range []string{chatBody, streaming(chatBody, false)} {
		f := new(fakeMesh)
		g := serve(t, f, heartbeat(-1))
		told := make(chan struct{})
		var count atomic.Int32
		f.dispatch = func(ctx context.Context, c mesh.Call) (run, error) {
			if count.Add(1) == 1 {
				r, err := answers(script{hang: true})(ctx, c)
				return &announced{run: r, told: told}, err
			}
			<-told
			return nil, mesh.ErrUnreachable
		}
		a := g.do(t, "POST", "/v1/chat/completions", with(body, `"n":2`))
		a.failed(t, 502, "worker_unreachable")
		if got := a.header.Get("X-Should-Retry"); got != "false" {
			t.Errorf("X-Should-Retry is %q", got)
		}
	}
}

// TestTaskPanics wants a panic to end its request, and neither the process nor
// nothing: no heartbeat goes on.
func TestTaskPanics(t *testing.T) {
	for _, fields := range []string{`"n":1`, `"n":3`} {
		f := &fakeMesh{dispatch: func(context.Context, mesh.Call) (run, error) { panic("broken") }}
		g := serve(t, f)
		g.Config.ErrorLog = log.New(io.Discard, "", 0)
		resp, err := http.Post(g.URL+"/v1/chat/completions", "application/json", strings.NewReader(with(streaming(chatBody, false), fields)))
		if err == nil {
			resp.Body.Close()
			t.Errorf("%s: got %s", fields, resp.Status)
		}
	}
}

// full is a client that takes nothing.
type full struct{ *httptest.ResponseRecorder }

func (full) Write([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

// TestClientTakesNothing wants a client that does not read to be nobody else's fault.
func TestClientTakesNothing(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	h := &Handler{AllowUnauthenticated: true}
	if err := h.setUp(&fakeMesh{dispatch: answers(script{output: []string{"x"}})}, zap.New(core)); err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(streaming(chatBody, false)))
	if err := h.ServeHTTP(full{httptest.NewRecorder()}, r, nil); err != nil || logs.Len() != 0 {
		t.Errorf("got %v, %v", err, logs.All())
	}
}

// TestLimits wants the gateway to cut answers, and the agent to be stopped.
func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		fields, want, reason string
	}{
		"stop":       {`"stop":["three"]`, "one two ", "stop"},
		"max_tokens": {`"max_tokens":2`, "one two", "length"},
	} {
		for _, stream := range []bool{false, true} {
			closed := make(chan struct{})
			f := &fakeMesh{dispatch: answers(script{output: []string{"one t", "wo thr", "ee four five six seven", " eight"}, hang: true, closed: closed})}
			g := serve(t, f)
			body := with(textBody, c.fields)
			if stream {
				body = streaming(body, false)
			}
			a := g.do(t, "POST", "/v1/completions", body)
			var got string
			if stream {
				got = streamText(t, a.body)
			} else {
				got = wholeText(t, a.body)
			}
			if got != c.want || !strings.Contains(a.body, `"finish_reason":"`+c.reason+`"`) {
				t.Errorf("%s, streamed %t: got %q in %s", name, stream, got, a.body)
			}
			<-closed
		}
	}
}

// TestTarget wants the headers to say who may serve a request.
func TestTarget(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{})}
	g := serve(t, f)
	last := func() router.Request { calls := f.seen(); return calls[len(calls)-1].Target }

	g.do(t, "POST", "/v1/chat/completions", chatBody)
	if q := last(); q.May != nil || q.Exclude != nil || q.Affinity != "" {
		t.Errorf("got %+v", q)
	}
	g.do(t, "POST", "/v1/chat/completions", chatBody, "X-AgentFM-Worker", peerB, "X-AgentFM-Exclude", " "+peerA+" ,"+peerB, "X-AgentFM-Exclude", peerA)
	q := last()
	if q.Model != "llama3.2" || q.May == nil || !q.May(peerB, "", "") || q.May(peerA, "", "") {
		t.Errorf("the pin: got %+v", q)
	}
	if fmt.Sprint(q.Exclude) != fmt.Sprint([]string{peerA, peerB, peerA}) {
		t.Errorf("excluded %v", q.Exclude)
	}
	for _, header := range [][2]string{
		{"X-AgentFM-Worker", "llama3.2"},
		{"X-AgentFM-Worker", peerA + "," + peerB},
		{"X-AgentFM-Exclude", ""},
		{"X-AgentFM-Exclude", peerA + ",,"},
		{"X-AgentFM-Exclude", strings.Repeat(peerA+",", 70) + peerA},
		{"X-AgentFM-Exclude", strings.Repeat("1", 1<<16)},
	} {
		g.do(t, "POST", "/v1/chat/completions", chatBody, header[0], header[1]).failed(t, 400, "invalid_request_error")
	}
	two := g.do(t, "POST", "/v1/chat/completions", chatBody, "X-AgentFM-Worker", peerA, "X-AgentFM-Worker", peerB)
	two.failed(t, 400, "invalid_request_error")
	f.dispatch = fails(router.ErrNoMatch)
	absent := g.do(t, "POST", "/v1/chat/completions", chatBody, "X-AgentFM-Worker", peerB)
	absent.failed(t, 404, "model_not_found")
	if !strings.Contains(absent.message(), "X-AgentFM-Worker") {
		t.Errorf("the pin is not named: %s", absent.body)
	}
}

// TestAffinity wants requests of one session, or of one conversation, to have one
// affinity.
func TestAffinity(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{})}
	g := serve(t, f, func(g *gate, _ *serverSettings) { g.h.policy = &policy.Sticky{Headers: []string{"X-Session"}} })
	affinity := func(messages string, headers ...string) string {
		g.do(t, "POST", "/v1/chat/completions", `{"model":"m","messages":[`+messages+`]}`, headers...)
		calls := f.seen()
		return calls[len(calls)-1].Target.Affinity
	}
	const one, two = `{"role":"user","content":"one"}`, `{"role":"user","content":"two"}`
	first := affinity(one)
	if first == "" || affinity(one+`,{"role":"assistant","content":"x"},`+two) != first {
		t.Error("a conversation has no affinity of its own")
	}
	if affinity(two) == first {
		t.Error("two conversations have one")
	}
	if a, b := affinity(one, "X-Session", "s"), affinity(two, "X-Session", "s"); a != b || a == first {
		t.Error("a session has no affinity of its own")
	}
}
