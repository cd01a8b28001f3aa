// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

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
		if resp.StatusCode != 502 || resp.Header.Get(wire.HeaderRefusal) != string(wire.RefusalUnavailable) || resp.Header.Get("Content-Type") != "application/json" ||
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
	if w.Code != 502 || w.Header().Get(wire.HeaderRefusal) != string(wire.RefusalUnavailable) {
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
	if w.Code != 504 || w.Header().Get(wire.HeaderRefusal) != "" || !strings.Contains(w.Body.String(), "upstream_timeout") {
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
