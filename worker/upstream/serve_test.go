// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/worker"
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
		`{"model":"second"}`:                             `{"model":"first"}`, // its name is that of another
		`{"model":"the agent"}`:                          `{"model":"first"}`,
		`{"model":"12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL"}`: `{"model":"first"}`,
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

// TestCancelled wants the server to see at once that the client is gone, before the
// header and after.
func TestCancelled(t *testing.T) {
	for _, begun := range []bool{false, true} {
		f := newFake(t)
		came, gone := make(chan struct{}), make(chan struct{})
		f.on("/v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
			if begun {
				_, _ = io.WriteString(w, "data: 1\n\n")
				w.(http.Flusher).Flush()
			}
			close(came)
			<-r.Context().Done()
			close(gone)
		})
		r, logs := ready(t, f, nil)
		ctx, cancel := context.WithCancel(context.Background())
		req := httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(`{"model":"first"}`)).WithContext(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer func() { _ = recover() }()
			r.ServeHTTP(httptest.NewRecorder(), req)
		}()
		<-came
		cancel()
		within(t, gone)
		within(t, done)
		if logs.FilterMessageSnippet("could not").Len()+logs.FilterMessageSnippet("broke off").Len() > 0 {
			t.Errorf("the server is blamed: %v", logs.All())
		}
	}
}

func TestUnreachable(t *testing.T) {
	f := newFake(t)
	r, logs := ready(t, f, func(r *Runtime) { r.APIKey = secret })
	g := gateway(t, r)
	away := func(change func()) {
		t.Helper()
		change()
		resp, text := post(t, g, "/v1/chat/completions", `{"model":"first"}`)
		if resp.StatusCode != 502 || resp.Header.Get(worker.RefusalHeader) != worker.RefusalUnreachable || resp.Header.Get("Content-Type") != "application/json" ||
			!strings.Contains(text, `"type":"server_error","code":"upstream_unreachable","param":null}}`) {
			t.Errorf("got %s %v %s", resp.Status, resp.Header, text)
		}
		if strings.Contains(text, "127.0.0.1") || strings.Contains(text, "sk-") || resp.Header.Get("Location") != "" {
			t.Errorf("the client learns too much: %v %s", resp.Header, text)
		}
	}
	away(func() {
		f.on("/v1/chat/completions", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	})
	away(func() {
		f.on("/v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1/elsewhere", http.StatusTemporaryRedirect)
		})
	})
	away(func() {
		f.on("/v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "wrong key: "+r.Header.Get("Authorization"), http.StatusUnauthorized)
		})
	})
	away(func() { f.Close() })
	if logs.FilterMessage("the server could not be reached").Len() < 2 {
		t.Errorf("the log does not tell: %v", logs.All())
	}
	var never Runtime
	w := httptest.NewRecorder()
	never.ServeHTTP(w, httptest.NewRequest("POST", "/v1/chat/completions", nil))
	if w.Code != 502 || w.Header().Get(worker.RefusalHeader) != worker.RefusalUnreachable {
		t.Errorf("before it is ready: got %d", w.Code)
	}
}

func TestDeadline(t *testing.T) {
	f := newFake(t)
	f.on("/v1/chat/completions", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	r, _ := ready(t, f, nil)
	ctx, cancel := context.WithTimeout(context.Background(), 1)
	defer cancel()
	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(`{"model":"first"}`)).WithContext(ctx))
	if w.Code != 504 || w.Header().Get(worker.RefusalHeader) != "" || !strings.Contains(w.Body.String(), "upstream_timeout") {
		t.Errorf("got %d %s", w.Code, w.Body)
	}
}

// TestBrokenOff wants a client to see that an answer is not whole.
func TestBrokenOff(t *testing.T) {
	for _, length := range []string{"", "100"} {
		f := newFake(t)
		f.on("/v1/chat/completions", func(w http.ResponseWriter, _ *http.Request) {
			if length != "" {
				w.Header().Set("Content-Length", length)
			}
			_, _ = io.WriteString(w, "data: 1\n\n")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		})
		r, logs := ready(t, f, nil)
		g := gateway(t, r)
		resp, err := g.Client().Post(g.URL+"/v1/chat/completions", "application/json", strings.NewReader(`{"model":"first"}`))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if string(b) != "data: 1\n\n" || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %q, %v", b, err)
		}
		if logs.FilterMessage("the server broke off its answer").Len() != 1 {
			t.Errorf("log %v", logs.All())
		}
	}
}

// TestIdleConnection sends a request on a connection that the server closes at that
// moment.
func TestIdleConnection(t *testing.T) {
	f := newFake(t)
	r, _ := ready(t, f, nil)
	g := gateway(t, r)
	for range 20 {
		f.CloseClientConnections()
		if resp, text := post(t, g, "/v1/chat/completions", `{"model":"first"}`); resp.StatusCode != 200 {
			t.Fatalf("got %s %s", resp.Status, text)
		}
	}
}

func TestKeyFile(t *testing.T) {
	f := newFake(t)
	s := record(f, "/v1/chat/completions")
	file := filepath.Join(t.TempDir(), "key")
	write := func(text string) {
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	r, logs := provision(t, f.URL, func(r *Runtime) { r.APIKeyFile = file })
	for text, want := range map[string]string{"": "no such file", " \n": "no key", "sk-a sk-b": "not one key"} {
		if text != "" {
			write(text)
		}
		if _, err := r.Prepare(t.Context(), worker.Agent{}); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "sk-") {
			t.Errorf("%q: got %v", text, err)
		}
		_ = os.Remove(file)
	}
	write("sk-1\n")
	prepare(t, r, "")
	g := gateway(t, r)
	for _, c := range []struct{ text, want string }{{"sk-1", "sk-1"}, {"sk-2\n", "sk-2"}, {"sk-3", "sk-3"}, {"", "sk-3"}, {"x y", "sk-3"}, {"sk-4", "sk-4"}} {
		write(c.text)
		post(t, g, "/v1/chat/completions", `{"model":"first"}`)
		if got := s.Header.Get("Authorization"); got != "Bearer "+c.want {
			t.Errorf("%q: the server got %q", c.text, got)
		}
	}
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(file, long, long); err != nil {
		t.Fatal(err)
	}
	post(t, g, "/v1/chat/completions", `{"model":"first"}`) // has it read for the last time
	if err := os.WriteFile(file, []byte("sk-5"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(file, long, long); err != nil {
		t.Fatal(err)
	}
	post(t, g, "/v1/chat/completions", `{"model":"first"}`)
	if got := s.Header.Get("Authorization"); got != "Bearer sk-4" {
		t.Errorf("a file that has not changed was read: the server got %q", got)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	post(t, g, "/v1/chat/completions", `{"model":"first"}`)
	post(t, g, "/v1/chat/completions", `{"model":"first"}`)
	if got := s.Header.Get("Authorization"); got != "Bearer sk-4" {
		t.Errorf("without the file the server got %q", got)
	}
	if n := logs.FilterMessageSnippet("cannot be used").Len(); n != 2 {
		t.Errorf("the log tells %d times", n)
	}
}

// within wants a channel to be closed within a second.
func within(t *testing.T, c chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(time.Second):
		t.Error("it has not ended within a second")
		<-c
	}
}
