// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"iter"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// every is a call of each method that asks a gateway.
var every = map[string]func(ctx context.Context, c *Client) error{
	"Health":       func(ctx context.Context, c *Client) error { _, err := c.Health(ctx); return err },
	"About":        func(ctx context.Context, c *Client) error { _, err := c.About(ctx); return err },
	"Workers.List": func(ctx context.Context, c *Client) error { _, err := c.Workers.List(ctx, WorkerFilter{}); return err },
	"Workers.Get":  func(ctx context.Context, c *Client) error { _, err := c.Workers.Get(ctx, "p"); return err },
	"Tasks.Run":    func(ctx context.Context, c *Client) error { _, err := c.Tasks.Run(ctx, everyRun); return err },
	"Tasks.Stream": func(ctx context.Context, c *Client) error { return drain(c.Tasks.Stream(ctx, everyRun)) },
	"Tasks.Submit": func(ctx context.Context, c *Client) error {
		_, err := c.Tasks.Submit(ctx, SubmitRequest{WorkerID: "p", Prompt: "x"})
		return err
	},
	"Tasks.Get":       func(ctx context.Context, c *Client) error { _, err := c.Tasks.Get(ctx, "t"); return err },
	"Tasks.Cancel":    func(ctx context.Context, c *Client) error { _, err := c.Tasks.Cancel(ctx, "t"); return err },
	"Tasks.Redeliver": func(ctx context.Context, c *Client) error { _, err := c.Tasks.RedeliverWebhook(ctx, "t"); return err },
	"Tasks.Wait":      func(ctx context.Context, c *Client) error { _, err := c.Tasks.Wait(ctx, "t"); return err },
	"Tasks.List":      func(ctx context.Context, c *Client) error { return last(c.Tasks.List(ctx, TaskQuery{})) },
	"Tasks.Events":    func(ctx context.Context, c *Client) error { return last(c.Tasks.Events(ctx, "t", "")) },
	"Tasks.Output":    func(ctx context.Context, c *Client) error { _, err := c.Tasks.Output(ctx, "t"); return err },
	"Tasks.Follow":    func(ctx context.Context, c *Client) error { return last(c.Tasks.Follow(ctx, "t")) },
	"Tasks.Download": func(ctx context.Context, c *Client) error {
		_, err := c.Tasks.Download(ctx, "t", io.Discard)
		return err
	},
	"Tasks.Artifacts": func(ctx context.Context, c *Client) error {
		_, err := c.Tasks.Artifacts(ctx, "t", "/does/not/exist")
		return err
	},
	"Tasks.Scatter": func(ctx context.Context, c *Client) error {
		return scattered(c.Tasks.Scatter(ctx, []string{"x"}, everyScatter))
	},
	"Tasks.ByModel": func(ctx context.Context, c *Client) error {
		return scattered(c.Tasks.ScatterByModel(ctx, []string{"x"}, ScatterByModelOptions{Model: "m"}))
	},
	"OpenAI.Chat": func(ctx context.Context, c *Client) error {
		_, err := c.OpenAI.Chat(ctx, ChatRequest{Model: "m"})
		return err
	},
	"OpenAI.ChatS": func(ctx context.Context, c *Client) error {
		return drain(c.OpenAI.ChatStream(ctx, ChatRequest{Model: "m"}))
	},
	"OpenAI.Complete": func(ctx context.Context, c *Client) error {
		_, err := c.OpenAI.Complete(ctx, CompletionRequest{Model: "m"})
		return err
	},
	"OpenAI.CompleteS": func(ctx context.Context, c *Client) error {
		return drain(c.OpenAI.CompleteStream(ctx, CompletionRequest{Model: "m"}))
	},
	"OpenAI.Models": func(ctx context.Context, c *Client) error { _, err := c.OpenAI.Models(ctx); return err },
	"OpenAI.Model":  func(ctx context.Context, c *Client) error { _, err := c.OpenAI.Model(ctx, "m"); return err },
	"OpenAI.Embed": func(ctx context.Context, c *Client) error {
		_, err := c.OpenAI.Embeddings(ctx, "m", []string{"x"})
		return err
	},
	"Peers.List":       func(ctx context.Context, c *Client) error { _, err := c.Peers.List(ctx, true); return err },
	"Peers.Get":        func(ctx context.Context, c *Client) error { _, err := c.Peers.Get(ctx, "p"); return err },
	"Peers.Reputation": func(ctx context.Context, c *Client) error { _, err := c.Peers.Reputation(ctx, "p"); return err },
	"Peers.Log":        func(ctx context.Context, c *Client) error { return last(c.Peers.Log(ctx, "p")) },
	"Peers.LogPage":    func(ctx context.Context, c *Client) error { _, err := c.Peers.LogPage(ctx, "p", 1, 0); return err },
	"Peers.Comment": func(ctx context.Context, c *Client) error {
		_, err := c.Peers.Comment(ctx, "p", CommentRequest{Text: "x"})
		return err
	},
	"Peers.Text": func(ctx context.Context, c *Client) error {
		_, err := c.Peers.CommentBody(ctx, "p", "1220")
		return err
	},
	"Peers.Proof": func(ctx context.Context, c *Client) error { _, err := c.Peers.Proof(ctx, "p", "00"); return err },
}

var (
	everyRun     = RunRequest{WorkerID: "p", Prompt: "x"}
	everyScatter = ScatterOptions{Peers: []string{"p"}, MaxRetries: -1}
)

// last returns the last error of a sequence.
func last[T any](seq iter.Seq2[T, error]) (last error) {
	for _, err := range seq {
		last = err
	}
	return last
}

// drain returns the last error of a stream.
func drain[T any](s *Stream[T], err error) error {
	if err != nil {
		return err
	}
	return last(s.All())
}

// scattered returns the error of the first result.
func scattered(results []ScatterResult, err error) error {
	if err != nil {
		return err
	}
	return results[0].Err
}

// wantTyped wants an error that is this package's, of a kind, and reads as one line.
func wantTyped(t *testing.T, name string, err error, kinds ...Kind) {
	t.Helper()
	e, ok := err.(*Error) // not wrapped in another
	if !ok || strings.ContainsAny(err.Error(), "\n\x1b") || e.Message == "" {
		t.Errorf("%s: %T %v", name, err, err)
		return
	}
	for _, kind := range kinds {
		if e.Kind == kind {
			return
		}
	}
	t.Errorf("%s: %s, want %v: %v", name, e.Kind, kinds, err)
}

// dialing returns an HTTP client that dials like that.
func dialing(dial func(ctx context.Context) (net.Conn, error)) Option {
	return WithHTTPClient(&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }, DisableKeepAlives: true,
	}})
}

// TestNoAnswer wants each call to end with an error of the connection when there is no answer.
func TestNoAnswer(t *testing.T) {
	noName := &net.DNSError{Err: "no such host", Name: "gateway.invalid", IsNotFound: true}
	closed := httptest.NewServer(nil)
	closed.Close()
	raw := func(answer string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Read(make([]byte, 4096))
				_, _ = io.WriteString(conn, answer)
				_ = conn.(*net.TCPConn).SetLinger(0) // a reset
				conn.Close()
			}
		}()
		return "http://" + l.Addr().String()
	}
	for name, opts := range map[string][]Option{
		"DNS":            {WithBaseURL("http://gateway.invalid"), dialing(func(context.Context) (net.Conn, error) { return nil, noName })},
		"refused":        {WithBaseURL(closed.URL)},
		"reset":          {WithBaseURL(raw(""))},
		"reset in head":  {WithBaseURL(raw("HTTP/1.1 200 OK\r\nContent-"))},
		"reset in body":  {WithBaseURL(raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\nContent-Type: text/event-stream\r\n\r\n{\"a\":"))},
		"reset in chunk": {WithBaseURL(raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n5\r\n{\"a"))},
		"not HTTP":       {WithBaseURL(raw("SSH-2.0-OpenSSH_9.2\r\n"))},
		"bad chunks":     {WithBaseURL(raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\nxyz\r\n"))},
		"https to http":  {WithBaseURL(strings.Replace(raw("HTTP/1.1 400 Bad Request\r\n\r\n"), "http:", "https:", 1))},
	} {
		c, err := New(append(opts, WithoutAPIKey(), WithRetries(0))...)
		if err != nil {
			t.Fatal(err)
		}
		for method, call := range every {
			err := call(t.Context(), c)
			wantTyped(t, name+": "+method, err, ErrConnection)
			if e := (*net.DNSError)(nil); name == "DNS" && !errors.As(err, &e) {
				t.Errorf("%s: the cause is lost: %v", method, err)
			}
		}
		c.CloseIdleConnections()
	}
}

// TestUntrusted wants a certificate of nobody known not to be asked for again.
func TestUntrusted(t *testing.T) {
	var dials atomic.Int64
	s := httptest.NewUnstartedServer(nil)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	c, err := New(WithBaseURL(s.URL), WithoutAPIKey(), WithRetries(5), dialing(func(ctx context.Context) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, "tcp", s.Listener.Addr().String())
	}))
	if err != nil {
		t.Fatal(err)
	}
	for method, call := range every {
		dials.Store(0)
		err := call(t.Context(), c)
		wantTyped(t, method, err, ErrConnection)
		if e := (*tls.CertificateVerificationError)(nil); !errors.As(err, &e) {
			t.Errorf("%s: the cause is lost: %v", method, err)
		}
		if n := dials.Load(); n != 1 {
			t.Errorf("%s: %d connections", method, n)
		}
	}
}

// TestEndedContext wants each call to end with its context, before the answer and in it.
func TestEndedContext(t *testing.T) {
	arrived := make(chan struct{}, 1)
	hang := func(begin string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if begin != "" {
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, begin)
				flush(t, w)
			}
			arrived <- struct{}{}
			<-r.Context().Done()
		}
	}
	own := errors.New("the user went home")
	for name, begin := range map[string]string{"before the answer": "", "in the answer": " "} {
		c := fake(t, routes{"/": hang(begin)})
		for method, call := range every {
			ctx, cancel := context.WithCancelCause(t.Context())
			done := make(chan error, 1)
			go func() { done <- call(ctx, c) }()
			<-arrived
			cancel(own)
			err := <-done
			wantTyped(t, name+": "+method, err, ErrContext)
			if !errors.Is(err, context.Canceled) || !errors.Is(err, own) {
				t.Errorf("%s: %s: %v", name, method, err)
			}
		}
	}
	c := fake(t, routes{"/": func(http.ResponseWriter, *http.Request) { t.Error("it was sent") }})
	for method, call := range every {
		ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		err := call(ctx, c)
		cancel()
		wantTyped(t, method, err, ErrContext)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", method, err)
		}
	}
}

// squeezed answers with what is compressed, and says so.
func squeezed(b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(b)
	}
}

// TestStrangeAnswers wants what no gateway answers to be an error of each call, and never a
// result.
func TestStrangeAnswers(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(bytes.Repeat([]byte(" "), 8<<20))
	z.Close()
	defer func(a, o int64) { maxAnswer, maxOutput = a, o }(maxAnswer, maxOutput)
	maxAnswer, maxOutput = 1<<20, 1<<20
	page := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "<html>\n<h1>\x1b[2JSign in</h1></html>")
		}
	}
	redirect := func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "https://b.example/", http.StatusFound)
	}
	any := []Kind{ErrProtocol, ErrWorkerStream, ErrConnection, ErrArtifact, ErrProof} // the last for a text that is another
	for name, c := range map[string]struct {
		h     http.HandlerFunc
		kinds []Kind
	}{
		"redirect":        {redirect, []Kind{ErrProtocol}},
		"page, 404":       {page(404), []Kind{ErrProtocol}},
		"page, 502":       {page(502), []Kind{ErrConnection}},
		"page, 503":       {page(503), []Kind{ErrUnavailable}},
		"page, 401":       {page(401), []Kind{ErrAuthentication}},
		"status 100":      {answer(299, "\x00"), any},
		"nothing, 500":    {answer(500, ""), []Kind{ErrInternal}},
		"nothing, 418":    {answer(418, ""), []Kind{ErrInvalidRequest}},
		"control, 400":    {answer(400, "\x1b[2J\n\x00"), []Kind{ErrInvalidRequest}},
		"error is a text": {answer(400, `{"error":"no"}`), []Kind{ErrInvalidRequest}},
		"error is null":   {answer(400, `{"error":null}`), []Kind{ErrInvalidRequest}},
		"page, 200":       {page(200), any},
		"no JSON":         {answer(200, `{"a":`), any},
		"a number":        {answer(200, `17`), any},
		"wrong types":     {answer(200, `{"agents":1,"data":1,"tasks":1,"entries":1,"status":[],"peer_id":[],"online_workers":"x","boss_peer_id":1,"task_id":[],"cid":[],"entry_hash":1,"id":1}`), any},
		"corrupt gzip":    {squeezed([]byte("\x1f\x8bxxxxxxxxxxxxxxxxxx")), any},
		"no gzip":         {squeezed([]byte(`{"status":"ok"}`)), any},
		"half a gzip":     {squeezed(bomb.Bytes()[:bomb.Len()/2]), any},
		"a large gzip":    {squeezed(bomb.Bytes()), any},
	} {
		client := fake(t, routes{"/": c.h}, WithRetries(0))
		for method, call := range every {
			if err := call(t.Context(), client); err != nil || !takesAnything[method] {
				wantTyped(t, name+": "+method, err, c.kinds...)
			}
		}
	}
}

// takesAnything are the calls that take any bytes for an answer: the zip, and what an agent
// said.
var takesAnything = map[string]bool{"Tasks.Download": true, "Tasks.Output": true, "Tasks.Follow": true}

// TestSlowError wants an error that never ends not to be waited for.
func TestSlowError(t *testing.T) {
	defer func(d time.Duration) { errorWait = d }(errorWait)
	errorWait = 20 * time.Millisecond
	c := fake(t, routes{"/": func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, "slow")
		flush(t, w)
		<-r.Context().Done()
	}})
	_, err := c.Tasks.Run(t.Context(), everyRun)
	wantTyped(t, "run", err, ErrInvalidRequest)
}
