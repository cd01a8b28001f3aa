// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestKey wants the three ways of a key, and those of a derived client.
func TestKey(t *testing.T) {
	for name, c := range map[string]struct {
		env  string
		opts []Option
		want string
	}{
		"given":                 {"", []Option{WithAPIKey("a")}, "a"},
		"of the environment":    {" env \n", nil, "env"},
		"given and environment": {"env", []Option{WithAPIKey("a")}, "a"},
		"none":                  {"", nil, ""},
		"explicitly none":       {"env", []Option{WithoutAPIKey()}, ""},
	} {
		t.Setenv(EnvAPIKey, c.env)
		got, err := New(c.opts...)
		if err != nil || got.APIKey() != c.want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	t.Setenv(EnvAPIKey, "env")
	base, err := New(WithAPIKey("a"))
	if err != nil {
		t.Fatal(err)
	}
	same, _ := base.With(WithRetries(1))
	other, _ := base.With(WithAPIKey("b"))
	none, _ := base.With(WithoutAPIKey())
	if same.APIKey() != "a" || other.APIKey() != "b" || none.APIKey() != "" || base.APIKey() != "a" {
		t.Error(same.APIKey(), other.APIKey(), none.APIKey(), base.APIKey())
	}
	if same.Tasks.c != same || same.OpenAI.c != same || same.Workers.c != same || same.Peers.c != same {
		t.Error("the services are another client's")
	}
	t.Setenv(EnvGatewayURL, "https://gateway.example.com/")
	if c, err := New(); err != nil || c.BaseURL() != "https://gateway.example.com" {
		t.Error(c, err)
	}
	if c, err := New(WithBaseURL("http://x")); err != nil || c.BaseURL() != "http://x" {
		t.Error(c, err)
	}
	t.Setenv(EnvGatewayURL, "gateway")
	if _, err := New(); !errors.Is(err, ErrInvalidRequest) || !strings.Contains(err.Error(), EnvGatewayURL) {
		t.Error(err)
	}
	t.Setenv(EnvGatewayURL, "")
	t.Setenv(EnvAPIKey, "a b")
	if _, err := New(); !errors.Is(err, ErrInvalidRequest) || strings.Contains(err.Error(), "a b") {
		t.Error(err)
	}
}

// TestOptions wants wrong ones to be refused, and none to be what another would break.
func TestOptions(t *testing.T) {
	for name, opt := range map[string]Option{
		"scheme": WithBaseURL("ftp://x"), "none": WithBaseURL(""), "no host": WithBaseURL("http://"), "path": WithBaseURL("/x"),
		"user": WithBaseURL("http://a:b@x"), "query": WithBaseURL("http://x?a=b"), "empty query": WithBaseURL("http://x?"), "fragment": WithBaseURL("http://x#a"),
		"v1": WithBaseURL("http://x/v1/"), "control": WithBaseURL("http://x\n"),
		"empty key": WithAPIKey(""), "space": WithAPIKey("a b"), "newline": WithAPIKey("a\n"), "not ASCII": WithAPIKey("ü"),
		"client": WithHTTPClient(nil), "retries": WithRetries(-1), "many retries": WithRetries(101), "timeout": WithTimeout(-1),
		"agent": WithUserAgent(""), "agent of lines": WithUserAgent("a\nb"),
	} {
		_, err := New(opt)
		if e, ok := errors.AsType[*Error](err); !ok || e.Kind != ErrInvalidRequest || e.Status != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, err := New(WithBaseURL("https://gateway.example.com/mesh//"))
	if err != nil || c.BaseURL() != "https://gateway.example.com/mesh" || c.OpenAI.BaseURL() != "https://gateway.example.com/mesh/v1" {
		t.Error(c, err)
	}
	if c, err := New(); err != nil || c.BaseURL() != "http://127.0.0.1:8080" {
		t.Error(c, err)
	}
}

// TestRequest looks at what is sent.
func TestRequest(t *testing.T) {
	var got http.Header
	c := fake(t, routes{"GET /health": func(w http.ResponseWriter, r *http.Request) {
		got = r.Header
		answer(200, `{"status":"ok","online_workers":3}`)(w, r)
	}, "GET /v1/about": answer(200, `{"boss_peer_id":"12D3","version":"v1","uptime_seconds":1.5}`)}, WithAPIKey("key"), WithUserAgent("mine/1"))
	h, err := c.Health(t.Context())
	if err != nil || h.OnlineWorkers != 3 || h.Status != "ok" {
		t.Error(h, err)
	}
	if got.Get("Authorization") != "Bearer key" || got.Get("User-Agent") != "mine/1" || got.Get("Accept") != "application/json" || got.Get("Content-Type") != "" {
		t.Error(got)
	}
	if a, err := c.About(t.Context()); err != nil || a.PeerID != "12D3" || a.UptimeSeconds != 1.5 {
		t.Error(a, err)
	}
	none, _ := c.With(WithoutAPIKey())
	if _, err := none.Health(t.Context()); err != nil || got.Get("Authorization") != "" {
		t.Error(got, err)
	}
	plain, _ := New()
	if !strings.HasPrefix(plain.userAgent, "agentfm-go/") {
		t.Error(plain.userAgent)
	}
}

// TestRedirect wants none followed, with whatever HTTP client, and the key to stay.
func TestRedirect(t *testing.T) {
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer thief.Close()
	for _, opt := range []Option{WithAPIKey("k"), WithHTTPClient(thief.Client())} {
		c := fake(t, routes{"/": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, thief.URL, http.StatusFound) }}, opt)
		_, err := c.Health(t.Context())
		if e, ok := errors.AsType[*Error](err); !ok || e.Kind != ErrProtocol || e.Status != http.StatusFound {
			t.Error(err)
		}
	}
}

// TestRetries wants what only looks to be sent again, and nothing else.
func TestRetries(t *testing.T) {
	var calls atomic.Int64
	failing := func(n int64, h http.HandlerFunc) http.HandlerFunc {
		calls.Store(0)
		return func(w http.ResponseWriter, r *http.Request) {
			if calls.Add(1) <= n {
				h(w, r)
				return
			}
			answer(200, `{"task_id":"t","status":"queued"}`)(w, r)
		}
	}
	hangUp := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	half := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, `{"task`)
		flush(t, w)
		panic(http.ErrAbortHandler)
	}
	final := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Should-Retry", "false")
		problem(502, CodeWorkerStreamFailed)(w, r)
	}
	get := func(c *Client) error { _, err := c.Tasks.Get(t.Context(), "t"); return err }
	cancel := func(c *Client) error { _, err := c.Tasks.Cancel(t.Context(), "t"); return err }
	submit := func(opts ...CallOption) func(c *Client) error {
		return func(c *Client) error {
			_, err := c.Tasks.Submit(t.Context(), SubmitRequest{WorkerID: "w", Prompt: "p"}, opts...)
			return err
		}
	}
	for name, c := range map[string]struct {
		fails  int64
		how    http.HandlerFunc
		call   func(c *Client) error
		calls  int64
		failed bool
	}{
		"hung up":                 {2, hangUp, get, 3, false},
		"half an answer":          {2, half, get, 3, false},
		"503":                     {1, problem(503, CodeTaskStoreUnavailable), get, 2, false},
		"429":                     {1, problem(429, CodeRateLimited), get, 2, false},
		"a proxy's 502":           {1, answer(502, "bad gateway"), get, 2, false},
		"cancel":                  {1, problem(503, CodeTaskStoreUnavailable), cancel, 2, false},
		"too often":               {3, problem(503, CodeTaskStoreUnavailable), get, 3, true},
		"no more":                 {1, final, get, 1, true},
		"404":                     {1, problem(404, CodeTaskNotFound), get, 1, true},
		"500":                     {1, problem(500, CodeInternal), get, 1, true},
		"not JSON":                {1, answer(200, "<html>"), get, 1, true},
		"submit":                  {1, problem(503, CodeAsyncCapacity), submit(), 1, true},
		"submit, hung up":         {1, hangUp, submit(), 1, true},
		"submit with a key":       {2, hangUp, submit(IdempotencyKey("k")), 3, false},
		"submit with no key":      {1, hangUp, submit(IdempotencyKey("")), 1, true},
		"submit, key, full":       {1, problem(503, CodeAsyncCapacity), submit(IdempotencyKey("k")), 2, false},
		"submit, key, on its way": {1, problem(409, CodeIdempotencyKeyInUse), submit(IdempotencyKey("k")), 2, false},
		"submit, key, reused":     {1, problem(422, CodeIdempotencyKeyReused), submit(IdempotencyKey("k")), 1, true},
		"submit, key, mistaken":   {1, problem(400, CodeInvalidRequest), submit(IdempotencyKey("k")), 1, true},
	} {
		err := c.call(fake(t, routes{"/": failing(c.fails, c.how)}))
		if (err != nil) != c.failed || calls.Load() != c.calls {
			t.Errorf("%s: %d calls, %v", name, calls.Load(), err)
		}
	}
}

// TestRetryAfter wants the gateway's wish to count, within limits.
func TestRetryAfter(t *testing.T) {
	c := config{backoff: 500 * time.Millisecond}
	for _, w := range []struct {
		n          int
		asked      time.Duration
		least, top time.Duration
	}{
		{0, 0, 250 * time.Millisecond, 500 * time.Millisecond},
		{2, 0, time.Second, 2 * time.Second},
		{60, 0, 4 * time.Second, 8 * time.Second},
		{0, 5 * time.Second, 5 * time.Second, 5 * time.Second},
		{0, time.Hour, time.Minute, time.Minute},
	} {
		if d := c.wait(w.n, w.asked); d < w.least || d > w.top {
			t.Errorf("%d, %v: %v", w.n, w.asked, d)
		}
	}
	h := http.Header{}
	for value, want := range map[string]time.Duration{"": 0, "7": 7 * time.Second, "-1": 0, "x": 0, "99999999999": 0, "Mon, 02 Jan 2006 15:04:05 GMT": 0} {
		if h.Set("Retry-After", value); retryAfter(h) != want {
			t.Errorf("%q: %v", value, retryAfter(h))
		}
	}
	h.Set("Retry-After", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
	if d := retryAfter(h); d < 58*time.Minute || d > time.Hour {
		t.Error(d)
	}
}

// TestLimits wants a gateway that does not answer, or with too much, not to be waited for.
func TestLimits(t *testing.T) {
	block := make(chan struct{})
	defer close(block)
	c := fake(t, routes{"GET /health": func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-block:
		case <-r.Context().Done():
		}
	}, "GET /v1/about": func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, 1<<20+1))
	}}, WithTimeout(50*time.Millisecond), WithRetries(1))
	_, err := c.Health(t.Context())
	if !errors.Is(err, ErrConnection) || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer within 50ms") {
		t.Error(err)
	}
	slow, _ := c.With(WithTimeout(0))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := slow.Health(ctx); !errors.Is(err, ErrContext) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	defer func(n int64) { maxAnswer = n }(maxAnswer)
	maxAnswer = 1 << 20
	if _, err := slow.About(t.Context()); !errors.Is(err, ErrProtocol) {
		t.Error(err)
	}
}

// TestConcurrent uses one client from many goroutines.
func TestConcurrent(t *testing.T) {
	c := fake(t, routes{"GET /api/workers": answer(200, `{"agents":[{"peer_id":"a"}]}`)})
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			derived, err := c.With(WithRetries(1))
			if err != nil {
				t.Error(err)
				return
			}
			for range 8 {
				if list, err := derived.Workers.List(t.Context(), WorkerFilter{}); err != nil || len(list) != 1 {
					t.Error(list, err)
				}
			}
		})
	}
	all.Wait()
}

// TestUnreachable wants no error of the transport to come out as it is.
func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	c, err := New(WithBaseURL("http://"+address), WithRetries(0), WithAPIKey("secret-key"))
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range map[string]func(ctx context.Context) error{
		"list": func(ctx context.Context) error { _, err := c.Workers.List(ctx, WorkerFilter{}); return err },
		"run": func(ctx context.Context) error {
			_, err := c.Tasks.Run(ctx, RunRequest{WorkerID: "w", Prompt: "p"})
			return err
		},
		"submit": func(ctx context.Context) error {
			_, err := c.Tasks.Submit(ctx, SubmitRequest{Model: "m", Prompt: "p"})
			return err
		},
		"chat":     func(ctx context.Context) error { _, err := c.OpenAI.Chat(ctx, ChatRequest{}); return err },
		"stream":   func(ctx context.Context) error { _, err := c.OpenAI.ChatStream(ctx, ChatRequest{}); return err },
		"output":   func(ctx context.Context) error { _, err := c.Tasks.Output(ctx, "t"); return err },
		"download": func(ctx context.Context) error { _, err := c.Tasks.Download(ctx, "t", io.Discard); return err },
		"unpack":   func(ctx context.Context) error { _, err := c.Tasks.Artifacts(ctx, "t", t.TempDir()); return err },
		"body":     func(ctx context.Context) error { _, err := c.Peers.CommentBody(ctx, "p", "c"); return err },
		"events": func(ctx context.Context) (err error) {
			for _, err = range c.Tasks.Events(ctx, "t", "") {
			}
			return err
		},
		"follow": func(ctx context.Context) (err error) {
			for _, err = range c.Tasks.Follow(ctx, "t") {
			}
			return err
		},
		"tasks": func(ctx context.Context) (err error) {
			for _, err = range c.Tasks.List(ctx, TaskQuery{}) {
			}
			return err
		},
		"log": func(ctx context.Context) (err error) {
			for _, err = range c.Peers.Log(ctx, "p") {
			}
			return err
		},
	} {
		err := call(t.Context())
		if e, ok := err.(*Error); !ok || e.Kind != ErrConnection || strings.Contains(e.Error(), "secret-key") {
			t.Errorf("%s: %T %v", name, err, err)
		}
		err = call(ended)
		if e, ok := err.(*Error); !ok || e.Kind != ErrContext || !errors.Is(err, context.Canceled) {
			t.Errorf("%s, ended: %T %v", name, err, err)
		}
	}
}
