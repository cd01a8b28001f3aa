// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// deadlines is a response writer that notes the limits which are set on it.
type deadlines struct {
	*httptest.ResponseRecorder
	read, write []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.read = append(d.read, t)
	return nil
}

func (d *deadlines) SetWriteDeadline(t time.Time) error {
	d.write = append(d.write, t)
	return nil
}

// stuckBody fails as a connection does whose deadline passed.
type stuckBody struct{ first io.Reader }

func (s stuckBody) Read(p []byte) (int, error) {
	if n, err := s.first.Read(p); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("read tcp: %w", os.ErrDeadlineExceeded)
}

func TestBodyDeadline(t *testing.T) {
	h := new(Handler)
	if err := h.setUp(&fakeMesh{}, nopLogger); err != nil {
		t.Fatal(err)
	}
	w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
	r := httptest.NewRequest("POST", "/v1/completions", stuckBody{strings.NewReader(strings.Repeat(" ", 3*bodyRate))})
	x := newExchange(h, w, r)
	if len(w.read) != 1 || w.read[0].IsZero() {
		t.Fatalf("no limit before the body is read: %v", w.read)
	}
	_, err := x.body()
	if p, ok := errors.AsType[*problem](err); !ok || p.status != http.StatusBadRequest || !strings.Contains(p.message, "in time") {
		t.Errorf("got %v", err)
	}
	first, last := w.read[1], w.read[len(w.read)-1]
	if got := last.Sub(first); got != 3*time.Second {
		t.Errorf("48 KiB earned %v", got)
	}
	w.read = nil
	x.r = httptest.NewRequest("POST", "/v1/completions", strings.NewReader("{}"))
	if _, err := x.body(); err != nil || !w.read[len(w.read)-1].IsZero() {
		t.Errorf("the limit outlasts the body: %v, %v", w.read, err)
	}
	x.r = httptest.NewRequest("POST", "/v1/completions", io.MultiReader(strings.NewReader("{"), failingReader{io.ErrUnexpectedEOF}))
	if _, err := x.body(); err == nil || !strings.Contains(err.Error(), "ended early") {
		t.Errorf("got %v", err)
	}
}

// Limits of the server's own that are shorter hold; others do not.
func TestDeadlinesOfServer(t *testing.T) {
	h := new(Handler)
	if err := h.setUp(&fakeMesh{dispatch: answers(script{output: []string{"a"}})}, nopLogger); err != nil {
		t.Fatal(err)
	}
	h.open = true
	for limit, want := range map[time.Duration]time.Duration{0: 30 * time.Second, time.Second: time.Second, time.Hour: 30 * time.Second} {
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		r := httptest.NewRequest("POST", "/api/execute", strings.NewReader(executeBody))
		srv := &http.Server{ReadTimeout: limit, WriteTimeout: limit}
		r = r.WithContext(context.WithValue(r.Context(), http.ServerContextKey, srv))
		if err := h.ServeHTTP(w, r, nil); err != nil || w.Code != 200 {
			t.Fatalf("%d %s, %v", w.Code, w.Body, err)
		}
		for _, at := range [...]time.Time{w.read[0], w.write[1]} {
			if got := time.Until(at); got > want || got < want-want/2 {
				t.Errorf("server's limit %v: %v, want %v", limit, got, want)
			}
		}
	}
}

// failingReader fails with its error.
type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

// A write has a limit, and between writes there is none: an agent may be silent
// for longer, and HTTP/2 counts on.
func TestWriteDeadline(t *testing.T) {
	f := &fakeMesh{dispatch: answers(script{output: []string{"a", "b"}})}
	for route, body := range map[string]string{
		"/v1/chat/completions": strings.Replace(chatBody, "{", `{"stream":true,`, 1),
		"/v1/completions":      textBody,
		"/api/execute":         executeBody,
	} {
		h := new(Handler)
		if err := h.setUp(f, nopLogger); err != nil {
			t.Fatal(err)
		}
		h.open = true
		w := &deadlines{ResponseRecorder: httptest.NewRecorder()}
		if err := h.ServeHTTP(w, httptest.NewRequest("POST", route, strings.NewReader(body)), nil); err != nil || w.Code != 200 {
			t.Fatalf("%s: %d %s, %v", route, w.Code, w.Body, err)
		}
		if len(w.write) < 3 || len(w.write)%2 != 1 {
			t.Fatalf("%s: limits %v", route, w.write)
		}
		for i, at := range w.write {
			if at.IsZero() != (i%2 == 0) {
				t.Errorf("%s: limit %d is %v", route, i, at)
			}
		}
	}
}
