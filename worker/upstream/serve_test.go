// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"crypto/rand"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// seen is what the server got of a request.
type seen struct {
	*http.Request
	body string
}

// record has the fake keep what comes on a route.
func record(f *fake, route string) *seen {
	s := new(seen)
	f.on(route, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		s.Request, s.body = r, string(b)
		_, _ = io.WriteString(w, "answer")
	})
	return s
}

func TestModelIsNamed(t *testing.T) {
	f := newFake(t)
	s := record(f, "/v1/chat/completions")
	r, _ := ready(t, f, func(r *Runtime) { r.Rename = map[string]string{"Small": "second"} })
	g := gateway(t, r)
	for body, want := range map[string]string{
		`{"model":"first","x":1}`:                        `{"model":"first","x":1}`,
		`{ "x" : 1e3, "model" : "small" ,"y":[]}` + "\n": `{ "x" : 1e3, "model" : "second" ,"y":[]}` + "\n",
		`{"model":"FIRST"}`:                              `{"model":"first"}`,
		`{"model":"the agent"}`:                          `{"model":"first"}`,
		`{"model":" THE AGENT "}`:                        `{"model":"first"}`,
		`{"model":"` + agentPeer + `"}`:                  `{"model":"first"}`,
	} {
		if resp, text := post(t, g, "/v1/chat/completions?a=b%20c", body); resp.StatusCode != 200 || text != "answer" {
			t.Errorf("%s: got %s %s", body, resp.Status, text)
		}
		if s.body != want || s.URL.RawQuery != "a=b%20c" {
			t.Errorf("%s: the server got %s, query %q", body, s.body, s.URL.RawQuery)
		}
	}
	for _, body := range []string{`{"model":"a","model":"b"}`, `{"model":1}`, `{`, `{"x":1}`} {
		if resp, text := post(t, g, "/v1/chat/completions", body); resp.StatusCode != 400 || !strings.HasPrefix(text, `{"error":{"message":`) {
			t.Errorf("%s: got %s %s", body, resp.Status, text)
		}
	}
}

// TestNoModel wants a model that the server does not have to be that, and not another
// one: also one that has just gone, and one that goes by another name.
func TestNoModel(t *testing.T) {
	f := newFake(t)
	s := record(f, "/v1/chat/completions")
	r, _ := provision(t, f.URL, func(r *Runtime) {
		often(r)
		r.Rename = map[string]string{"Small": "second"}
	})
	c := prepare(t, r, "")
	g := gateway(t, r)
	refused := func(model string) {
		t.Helper()
		resp, text := post(t, g, "/v1/chat/completions", `{"model":"`+model+`"}`)
		if resp.StatusCode != 404 || resp.Header.Get(wire.HeaderRefusal) != string(wire.RefusalModel) ||
			!strings.Contains(text, `"type":"invalid_request_error","code":"model_not_found","param":"model"`) || !strings.Contains(text, model) {
			t.Errorf("%s: got %s %v %s", model, resp.Status, resp.Header, text)
		}
		if s.Request != nil {
			t.Errorf("%s: the server got %s", model, s.body)
		}
	}
	refused("second")
	refused("nobody")
	f.set(func(f *fake) { f.models = []string{"first"} })
	await.Until(t, "the model is gone", func() bool { return c.Load() == 1 })
	refused("small")
}

func TestPaths(t *testing.T) {
	f := newFake(t)
	got := ""
	f.list = func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"data":[{"id":"m"}]}`) }
	f.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/models" {
			f.ServeHTTP(w, r)
			return
		}
		got = r.Method + " " + r.RequestURI
	})
	r, _ := ready(t, f, func(r *Runtime) { r.Routes = []string{"/v1/responses", "/v1/chat/completions"} })
	for in, want := range map[string]string{
		"POST /v1/responses":                "POST /v1/responses",
		"GET /v1/responses/resp_1":          "GET /v1/responses/resp_1",
		"DELETE /v1/responses/a%2Fb?x=%zz":  "DELETE /v1/responses/a%2Fb?x=%zz",
		"POST /v1/responses/resp_1/cancel":  "POST /v1/responses/resp_1/cancel",
		"GET /v1/responsesx":                "",
		"GET /v1/models":                    "",
		"GET /v1/embeddings":                "",
		"GET /v1/responses/../models":       "",
		"GET /v1/responses/..%2f..%2fadmin": "",
		"GET /v1/responses/%2e%2e/models":   "",
		"GET /v1/responses/..%5cmodels":     "",
		"GET /%761/responses/x":             "",
		"GET /v1/responses/.":               "",
		"GET /":                             "",
	} {
		got = ""
		method, path, _ := strings.Cut(in, " ")
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		if got != want || (want == "") != (w.Code == 404) {
			t.Errorf("%s: the server got %q, the client %d", in, got, w.Code)
		}
	}
	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest("POST", "/v1/responses/resp_1/cancel", strings.NewReader(`{"x":1}`)))
	if w.Code != 200 {
		t.Errorf("a body without a model, below a route: got %d", w.Code)
	}
	w = httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest("POST", "/v1/responses/", strings.NewReader(`{"x":1}`)))
	if w.Code != 400 {
		t.Errorf("a body without a model, for the route itself: got %d", w.Code)
	}
	r.transport.CloseIdleConnections()
}

func TestHeaders(t *testing.T) {
	f := newFake(t)
	var s seen
	f.on("/v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		s.Request = r
		for name, value := range map[string]string{
			"X-Request-Id": "1", "Content-Type": "text/x", "Openai-Processing-Ms": "5", "Set-Cookie": "a=b", "Server": "uvicorn",
			"Connection": "X-Hop", "X-Hop": "1", "AgentFM-Refusal": "busy", "X-AgentFM-Peer": "x", "Access-Control-Allow-Origin": "*",
			"Alt-Svc": "h3", "Content-Encoding": "br",
		} {
			w.Header().Set(name, value)
		}
		w.WriteHeader(http.StatusTeapot)
	})
	r, _ := ready(t, f, func(r *Runtime) { r.APIKey = secret })
	g := gateway(t, r)
	req, _ := http.NewRequest("POST", g.URL+"/v1/chat/completions", strings.NewReader(`{"model":"first"}`))
	for name, value := range map[string]string{
		"Authorization": "Bearer of-the-client", "Cookie": "a=b", "X-Api-Key": "k", "X-AgentFM-Session": "s", "AgentFM-Task": "t",
		"X-Forwarded-For": "1.2.3.4", "Forwarded": "for=1.2.3.4", "Via": "1.1 x", "Origin": "https://web", "Connection": "X-Hop",
		"X-Hop": "1", "Te": "trailers", "Upgrade": "websocket", "Content-Type": "application/json; charset=utf-8", "X-Own": "kept", "Accept-Encoding": "br",
	} {
		req.Header.Set(name, value)
	}
	resp, err := g.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusTeapot {
		t.Errorf("status %s", resp.Status)
	}
	want := map[string]string{
		"Authorization": "Bearer " + secret, "X-Own": "kept", "Content-Type": "application/json; charset=utf-8",
		"Accept-Encoding": "br", "User-Agent": "Go-http-client/1.1", "Content-Length": "17",
	}
	for name := range s.Header {
		if _, ok := want[name]; !ok {
			t.Errorf("the server got %s", name)
		}
	}
	for name, value := range want {
		if got := s.Header.Get(name); got != value {
			t.Errorf("the server got %s %q", name, got)
		}
	}
	if s.Host != strings.TrimPrefix(f.URL, "http://") {
		t.Errorf("the server got the host %s", s.Host)
	}
	for name := range resp.Header {
		switch name {
		case "X-Request-Id", "Content-Type", "Openai-Processing-Ms", "Content-Encoding", "Date", "Content-Length":
		default:
			t.Errorf("the client got %s", name)
		}
	}
}

// TestNothingIsAdded wants no header that the client did not send.
func TestNothingIsAdded(t *testing.T) {
	f := newFake(t)
	s := record(f, "/v1/chat/completions")
	r, _ := ready(t, f, nil)
	req := httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(`{"model":"first"}`))
	r.ServeHTTP(httptest.NewRecorder(), req)
	r.transport.CloseIdleConnections()
	if len(s.Header) != 1 || s.Header.Get("Content-Length") != "17" {
		t.Errorf("the server got %v", s.Header)
	}
}

// TestBytes wants bodies to be the same on both sides.
func TestBytes(t *testing.T) {
	f := newFake(t)
	f.on("/v1/audio/transcriptions", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = io.Copy(w, r.Body)
	})
	r, _ := ready(t, f, nil)
	g := gateway(t, r)
	random := make([]byte, 3<<20)
	_, _ = rand.Read(random)
	form := func(model string) (string, []byte) {
		var b bytes.Buffer
		m := multipart.NewWriter(&b)
		_ = m.SetBoundary("the-boundary")
		_ = m.WriteField("model", model)
		part, _ := m.CreateFormFile("file", "a.wav")
		_, _ = part.Write(random)
		_ = m.Close()
		return m.FormDataContentType(), b.Bytes()
	}
	contentType, want := form("second")
	for _, asked := range []string{"second", "SECOND"} {
		_, sent := form(asked)
		resp, err := g.Client().Post(g.URL+"/v1/audio/transcriptions", contentType, bytes.NewReader(sent))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes of %d came back, %v", asked, len(got), len(want), err)
		}
	}
}

// TestLarge passes 100 MiB on.
func TestLarge(t *testing.T) {
	f := newFake(t)
	piece := bytes.Repeat([]byte("0123456789abcdef"), 64<<10/16)
	f.on("/v1/chat/completions", func(w http.ResponseWriter, _ *http.Request) {
		for range 1600 {
			_, _ = w.Write(piece)
		}
	})
	r, _ := ready(t, f, nil)
	g := gateway(t, r)
	resp, err := g.Client().Post(g.URL+"/v1/chat/completions", "application/json", strings.NewReader(`{"model":"first"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); n != 100<<20 || err != nil {
		t.Errorf("got %d bytes, %v", n, err)
	}
}

// TestStream wants the first event while the server is silent about the second.
func TestStream(t *testing.T) {
	f := newFake(t)
	next := make(chan struct{})
	f.on("/v1/chat/completions", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		<-next
		for _, text := range []string{"data: 1\n\n", "data: 2\n\n"} {
			_, _ = io.WriteString(w, text)
			w.(http.Flusher).Flush()
			<-next
		}
	})
	r, _ := ready(t, f, nil)
	g := gateway(t, r)
	resp, err := g.Client().Post(g.URL+"/v1/chat/completions", "application/json", strings.NewReader(`{"model":"first"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, want := range []string{"data: 1\n\n", "data: 2\n\n"} {
		next <- struct{}{}
		got := make([]byte, len(want))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != want {
			t.Errorf("got %q, %v", got, err)
		}
	}
	close(next)
	if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err != nil {
		t.Errorf("got %q, %v", rest, err)
	}
}
