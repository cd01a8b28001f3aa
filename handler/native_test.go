// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// natively returns a mesh whose workers serve a route themselves, by a script.
func natively(route, contentType string, status int, sc script) *fakeMesh {
	sc.response = &mesh.Response{Status: status, Header: http.Header{"Content-Type": {contentType}}, Length: -1}
	return &fakeMesh{routes: mesh.Route(route), noText: true, dispatch: answers(sc)}
}

const (
	jsonType   = "application/json"
	eventsType = "text/event-stream"
)

// TestPassedOn wants requests to reach the worker as the bytes that the client
// sent, and answers to come back as they are.
func TestPassedOn(t *testing.T) {
	for _, c := range []struct{ path, body, contentType string }{
		{"/v1/chat/completions", `{"model": "llama3.2", "messages":[{"role":"user","content":"x"}], "tools":[{"type":"function"}],"n":3, "x_new":1}`, ""},
		{"/v1/completions", `{"prompt":["a","b"],"model":"llama3.2","echo":true}`, jsonType},
		{"/v1/responses", `{"model":"llama3.2","input":"x","previous_response_id":"resp_0"}`, jsonType},
		{"/v1/embeddings", "{\"model\":\"llama3.2\",\n\"input\":[[1,2],[3]],\"encoding_format\":\"base64\"}", "text/plain"},
		{"/v1/audio/speech", `{"model":"llama3.2","input":"x","voice":"y"}`, jsonType},
		{"/v1/images/generations", `{"model":"llama3.2","prompt":"x"}`, jsonType},
		{"/v1/moderations", `{"model":"llama3.2","input":"x"}`, jsonType},
		{"/v1/rerank", `{"model":"llama3.2","query":"x","documents":[]}`, jsonType},
	} {
		const reply = `{"of":"the worker","id":"resp_1", "half":"\u00e9"}`
		f := natively(c.path, jsonType, 200, script{output: []string{reply[:5], reply[5:]}})
		g := serve(t, f)
		a := g.do(t, "POST", c.path+"?x=1", c.body, "Content-Type", c.contentType, "Cookie", "a=b", "Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		if a.status != 200 || a.body != reply || a.header.Get("Content-Type") != jsonType || a.header.Get("Content-Length") != fmt.Sprint(len(reply)) {
			t.Errorf("%s: got %d %q %v", c.path, a.status, a.body, a.header)
		}
		if a.header.Get("X-AgentFM-Peer") != peerA || a.header.Get("X-Request-Id") == "" {
			t.Errorf("%s: headers %v", c.path, a.header)
		}
		calls := f.seen()
		if len(calls) != 1 || calls[0].Request == nil {
			t.Fatalf("%s: calls %+v", c.path, calls)
		}
		r := calls[0].Request
		if string(r.Body) != c.body || r.Method != "POST" || r.Target != c.path+"?x=1" || calls[0].Target.Model != "llama3.2" ||
			calls[0].Target.Routes != mesh.Route(c.path) || calls[0].Target.Text {
			t.Errorf("%s: the worker got %s %s %q as %+v", c.path, r.Method, r.Target, r.Body, calls[0].Target)
		}
		if r.Header.Get("Content-Type") != jsonType || r.Header.Get("Cookie") != "" || r.Header.Get("Authorization") != "" ||
			!strings.HasPrefix(r.Header.Get("Traceparent"), "00-0af7651916cd43dd8448eb211c80319c-") {
			t.Errorf("%s: the worker got the headers %v", c.path, r.Header)
		}
	}
}

// TestPassedForm wants a form to be passed on as it is.
func TestPassedForm(t *testing.T) {
	var b strings.Builder
	form := multipart.NewWriter(&b)
	_ = form.WriteField("model", "llama3.2")
	file, _ := form.CreateFormFile("file", "speech.wav")
	_, _ = file.Write([]byte{0, 255, '\r', '\n', 1})
	_ = form.Close()
	f := natively("/v1/audio/transcriptions", "text/plain; charset=utf-8", 200, script{output: []string{"said"}})
	g := serve(t, f)
	a := g.do(t, "POST", "/v1/audio/transcriptions", b.String(), "Content-Type", form.FormDataContentType())
	if a.status != 200 || a.body != "said" {
		t.Fatalf("got %d %q", a.status, a.body)
	}
	r := f.seen()[0].Request
	if string(r.Body) != b.String() || r.Header.Get("Content-Type") != form.FormDataContentType() {
		t.Errorf("the worker got %v %q", r.Header, r.Body)
	}
	g.do(t, "POST", "/v1/chat/completions", b.String(), "Content-Type", form.FormDataContentType()).failed(t, 400, "invalid_request_error")
}

// TestPassedEvents wants events as they come, each of them whole, and nothing after
// the last.
func TestPassedEvents(t *testing.T) {
	const stream = "data: {\"a\":1}\n\ndata: {\"b\":\ndata: 2}\n\n: ping\n\nevent: x\r\ndata: y\r\n\r\ndata: [DONE]\n\n"
	for size := 1; size < len(stream); size += 7 {
		var pieces []string
		for piece := range slices.Chunk([]byte(stream), size) {
			pieces = append(pieces, string(piece))
		}
		g := serve(t, natively("/v1/chat/completions", eventsType, 200, script{output: pieces}))
		a := g.do(t, "POST", "/v1/chat/completions", with(chatBody, `"stream":true`))
		if a.status != 200 || a.body != stream || a.header.Get("Content-Type") != "text/event-stream; charset=utf-8" {
			t.Errorf("in pieces of %d: got %d %q", size, a.status, a.body)
		}
	}
}

// TestNoEvents wants a stream that ends before its first event to be an error.
func TestNoEvents(t *testing.T) {
	g := serve(t, natively("/v1/chat/completions", eventsType, 200, script{}))
	g.do(t, "POST", "/v1/chat/completions", with(chatBody, `"stream":true`)).failed(t, 502, "worker_stream_failed")
}

// TestPassedHEAD wants the length of what a GET would have.
func TestPassedHEAD(t *testing.T) {
	for length, want := range map[int64]string{7: "7", -1: ""} {
		f := natively("/v1/responses", jsonType, 200, script{output: []string{`{"id":"resp_1"}`}})
		g := serve(t, f)
		g.do(t, "POST", "/v1/responses", chatBody)
		f.dispatch = answers(script{response: &mesh.Response{Status: 200, Header: http.Header{"Content-Type": {jsonType}}, Length: length}})
		if a := g.do(t, "HEAD", "/v1/responses/resp_1", ""); a.status != 200 || a.header.Get("Content-Length") != want {
			t.Errorf("length %d: %d %v", length, a.status, a.header)
		}
	}
}

// TestPassedEventsBreak wants a stream that breaks to end with an error, after whole
// events, and not with an end that looks well.
func TestPassedEventsBreak(t *testing.T) {
	f := natively("/v1/chat/completions", eventsType, 200, script{output: []string{"data: {\"a\":1}\n\nda", "ta: {\"b\""}, end: fmt.Errorf("%w: gone", mesh.ErrStream)})
	a := serve(t, f).do(t, "POST", "/v1/chat/completions", with(chatBody, `"stream":true`))
	before, after, ok := strings.Cut(a.body, "data: {\"error\":{")
	if !ok || before != "data: {\"a\":1}\n\n" || !strings.Contains(after, "worker_stream_failed") || !strings.HasSuffix(after, "\n\n") || strings.Contains(a.body, "DONE") {
		t.Errorf("got %q", a.body)
	}
}

// TestPassedBodyBreaks wants an answer that breaks to be an error: with its own
// status where there is still time, and else by a body that is visibly cut.
func TestPassedBodyBreaks(t *testing.T) {
	broken := fmt.Errorf("%w: gone", mesh.ErrStream)
	a := serve(t, natively("/v1/embeddings", jsonType, 200, script{output: []string{`{"half"`}, end: broken})).do(t, "POST", "/v1/embeddings", chatBody)
	a.failed(t, 502, "worker_stream_failed")
	if a.header.Get("X-Should-Retry") != "false" {
		t.Errorf("headers %v", a.header)
	}
	g := serve(t, natively("/v1/embeddings", jsonType, 200, script{output: []string{strings.Repeat("x", maxLateError+1)}, end: broken}))
	resp, err := http.Post(g.URL+"/v1/embeddings", jsonType, strings.NewReader(chatBody))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("a body that is cut looks whole: %d bytes", len(b))
	}
}

// TestPassedStatuses wants what a model server says of a request to be passed on,
// and what it says of its worker not.
func TestPassedStatuses(t *testing.T) {
	const own = `{"error":{"message":"of the server","type":"x","code":"y","param":"z"}}`
	for status, want := range map[int]int{200: 200, 201: 201, 400: 400, 404: 404, 422: 422, 429: 429, 500: 500, 503: 503, 401: 502, 403: 502, 407: 502, 302: 502} {
		a := serve(t, natively("/v1/chat/completions", jsonType, status, script{output: []string{own}})).do(t, "POST", "/v1/chat/completions", chatBody)
		if a.status != want || (want == status) != (a.body == own) {
			t.Errorf("%d: got %d %q", status, a.status, a.body)
		}
		if want != status && strings.Contains(a.body, "of the server") {
			t.Errorf("%d: the client learns what the server said: %q", status, a.body)
		}
	}
}

// TestPassedHeaders wants of a worker's headers only those that are no harm.
func TestPassedHeaders(t *testing.T) {
	for contentType, want := range map[string]string{
		"text/html": "application/octet-stream", "image/svg+xml": "application/octet-stream", "nonsense;;": "application/octet-stream",
		"": "application/octet-stream", "audio/mpeg": "audio/mpeg", "image/png": "image/png", "application/json; charset=utf-8": "application/json; charset=utf-8",
	} {
		f := natively("/v1/audio/speech", contentType, 200, script{output: []string{"x"}})
		h := f.dispatch
		f.dispatch = nil
		sc := script{output: []string{"x"}, response: &mesh.Response{Status: 200, Length: 1, Header: http.Header{
			"Content-Type": {contentType}, "Set-Cookie": {"a=b"}, "Access-Control-Allow-Origin": {"*"}, "Strict-Transport-Security": {"max-age=1"},
			"X-Request-Id": {"theirs"}, "X-Agentfm-Peer": {"theirs"}, "Location": {"https://evil.example"}, "Alt-Svc": {"h3"}, "Server": {"theirs"},
			"Retry-After": {"3600"}, "X-Ratelimit-Limit-Requests": {"5"}, "Content-Disposition": {"attachment"}, "Openai-Processing-Ms": {"9999"},
		}}}
		f.dispatch = answers(sc)
		_ = h
		a := serve(t, f).do(t, "POST", "/v1/audio/speech", chatBody)
		if got := a.header.Get("Content-Type"); got != want {
			t.Errorf("%q became %q, want %q", contentType, got, want)
		}
		for _, name := range []string{"Set-Cookie", "Access-Control-Allow-Origin", "Strict-Transport-Security", "Location", "Alt-Svc", "Server"} {
			if v := a.header.Get(name); v != "" {
				t.Errorf("%s: %s came through", name, v)
			}
		}
		if a.header.Get("X-Request-Id") == "theirs" || a.header.Get("X-AgentFM-Peer") == "theirs" || a.header.Get("Openai-Processing-Ms") == "9999" {
			t.Errorf("ours are the worker's: %v", a.header)
		}
		if a.header.Get("Retry-After") != "60" || a.header.Get("X-Ratelimit-Limit-Requests") != "5" || a.header.Get("Content-Disposition") != "attachment" || a.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("headers %v", a.header)
		}
	}
}

// TestPassedHeartbeat wants a stream that begins late to be kept alive, and what
// comes then not to change its form.
func TestPassedHeartbeat(t *testing.T) {
	response := func(status int, contentType string) *mesh.Response {
		return &mesh.Response{Status: status, Header: http.Header{"Content-Type": {contentType}}, Length: -1}
	}
	for name, c := range map[string]struct {
		sc   script
		err  error
		want string
	}{
		"events":  {sc: script{output: []string{"data: 1\n\n"}, response: response(200, eventsType)}, want: "data: 1\n\n"},
		"refused": {sc: script{output: []string{`{"error":{"message":"too long"}}`}, response: response(400, jsonType)}, want: "too long"},
		"whole":   {sc: script{output: []string{`{"choices":[]}`}, response: response(200, jsonType)}, want: "worker_stream_failed"},
		"fails":   {err: fmt.Errorf("%w: x", mesh.ErrUnreachable), want: "worker_unreachable"},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeMesh{routes: mesh.Route("/v1/chat/completions"), noText: true}
			var release func()
			f.dispatch, release = heldTask(c.sc, c.err)
			g := serve(t, f, heartbeat(time.Millisecond))
			resp := open(t, g, with(chatBody, `"stream":true`))
			release()
			b, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != 200 || !strings.HasPrefix(string(b), ": ping\n") || !strings.Contains(string(b), c.want) {
				t.Errorf("got %d %q, %v", resp.StatusCode, b, err)
			}
			if name != "events" && !strings.Contains(string(b), "data: {\"error\":") {
				t.Errorf("no error: %q", b)
			}
		})
	}
}

// TestNativeOrText wants workers that serve the route before those that take a
// text, and these where the others have no room or are not there.
func TestNativeOrText(t *testing.T) {
	chat := mesh.Route("/v1/chat/completions")
	native := answers(script{output: []string{`{}`}, response: &mesh.Response{Status: 200, Header: http.Header{"Content-Type": {jsonType}}, Length: 2}})
	asText := answers(script{output: []string{"as text"}})
	for name, c := range map[string]struct {
		routes router.Routes
		noText bool
		full   bool // who serves it
		body   string
		want   string
		calls  int
	}{
		"native":            {routes: chat, noText: true, body: chatBody, want: "{}", calls: 1},
		"both":              {routes: chat, body: chatBody, want: "{}", calls: 1},
		"both, native full": {routes: chat, full: true, body: chatBody, want: "as text", calls: 2},
		"tools, full":       {routes: chat, full: true, body: with(chatBody, `"tools":[{}]`), want: "unsupported_parameter", calls: 1},
		"text":              {body: chatBody, want: "as text", calls: 1},
		"tools for text":    {body: with(chatBody, `"tools":[{}]`), want: "unsupported_parameter"},
		"other routes":      {routes: mesh.Route("/v1/embeddings"), noText: true, body: chatBody, want: "unknown_url", calls: 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeMesh{routes: c.routes, noText: c.noText}
			f.dispatch = func(ctx context.Context, call mesh.Call) (run, error) {
				switch {
				case call.Request != nil && c.full:
					return nil, router.ErrBusy
				case call.Request != nil:
					return native(ctx, call)
				case !call.Target.Text:
					return nil, errors.New("a chat as a task for anyone")
				case c.noText:
					return nil, router.ErrNoRoute
				}
				return asText(ctx, call)
			}
			a := serve(t, f).do(t, "POST", "/v1/chat/completions", c.body)
			if !strings.Contains(a.body, c.want) || len(f.seen()) != c.calls {
				t.Errorf("got %d %q after %d calls", a.status, a.body, len(f.seen()))
			}
		})
	}
	f := &fakeMesh{dispatch: fails(router.ErrNoRoute)}
	a := serve(t, f).do(t, "POST", "/v1/rerank", chatBody)
	if a.failed(t, 404, "unknown_url"); !strings.Contains(a.body, "POST /v1/rerank") {
		t.Errorf("got %s", a.body)
	}
}

// TestStoredResponses wants what is asked of a response to reach the worker that
// has it, for its own client alone.
func TestStoredResponses(t *testing.T) {
	for name, sc := range map[string]script{
		"whole":  {output: []string{`{"created":1, "id" : "resp_abc-1", "output":[{"id":"msg_1"}]}`}, response: &mesh.Response{Status: 200, Header: http.Header{"Content-Type": {jsonType}}}},
		"events": {output: []string{": keep-alive\n\n", "event: response.created\ndata: {\"response\":{\"id\":\"resp_abc-1\"}}\n\n", "data: x\n\n"}, response: &mesh.Response{Status: 200, Header: http.Header{"Content-Type": {eventsType}}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeMesh{routes: mesh.Route("/v1/responses"), noText: true, dispatch: answers(sc)}
			g := serve(t, f, withKeys(keyOne, keyTwo))
			one, two := []string{"Authorization", "Bearer " + keyOne}, []string{"Authorization", "Bearer " + keyTwo}
			if a := g.do(t, "POST", "/v1/responses", `{"model":"m","input":"x"}`, one...); a.status != 200 {
				t.Fatalf("got %d %s", a.status, a.body)
			}
			for _, r := range []struct{ method, path string }{
				{"GET", "/v1/responses/resp_abc-1"}, {"GET", "/v1/responses/resp_abc-1?stream=true&starting_after=3"},
				{"DELETE", "/v1/responses/resp_abc-1"}, {"POST", "/v1/responses/resp_abc-1/cancel"}, {"GET", "/v1/responses/resp_abc-1/input_items?limit=5"},
			} {
				if a := g.do(t, r.method, r.path, "", one...); a.status != 200 {
					t.Errorf("%s %s: got %d %s", r.method, r.path, a.status, a.body)
				}
				calls := f.seen()
				last := calls[len(calls)-1]
				if last.Request.Method != r.method || last.Request.Target != r.path || last.Target.Peer != peerA || !last.Aside || len(last.Request.Body) > 0 {
					t.Errorf("%s %s: the worker got %+v for %+v", r.method, r.path, last.Request, last.Target)
				}
				g.do(t, r.method, r.path, "", two...).failed(t, 404, "not_found")
			}
			const next = `{"model":"m","input":"y","previous_response_id":"resp_abc-1"}`
			for _, client := range [][]string{one, two} {
				if a := g.do(t, "POST", "/v1/responses", next, client...); a.status != 200 {
					t.Errorf("got %d %s", a.status, a.body)
				}
				calls := f.seen()
				may := calls[len(calls)-1].Target.May
				if pinned := may != nil && may(peerA, "", "m") && !may(peerB, "", "m"); pinned != (client[1] == one[1]) {
					t.Errorf("%s: the worker that has it: %t", client, pinned)
				}
			}
			f.dispatch = fails(router.ErrNoMatch)
			g.do(t, "GET", "/v1/responses/resp_abc-1", "", one...).failed(t, 404, "not_found")
			if a := g.do(t, "POST", "/v1/responses", next, one...); !strings.Contains(a.body, "previous_response_id") {
				t.Errorf("got %s", a.body)
			}
		})
	}
}

// TestUnavailable wants a worker whose model server is gone to be a 503.
func TestUnavailable(t *testing.T) {
	ask := func(err error) answer {
		f := natively("/v1/chat/completions", jsonType, 200, script{})
		f.dispatch = fails(fmt.Errorf("%w: x", err))
		return serve(t, f).do(t, "POST", "/v1/chat/completions", chatBody)
	}
	a := ask(mesh.ErrUnavailable)
	if a.failed(t, 503, "mesh_overloaded"); a.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	ask(wire.ErrRefused).failed(t, 502, "worker_stream_failed")
	ask(mesh.ErrNoModel).failed(t, 404, "model_not_found")
}
