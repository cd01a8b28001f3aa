// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/internal/webhook"
)

func TestInFlight(t *testing.T) {
	for n, ok := range map[int]bool{0: true, 1: true, MaxInFlight: true, -1: false, MaxInFlight + 1: false} {
		if _, err := New(Options{InFlight: n}); (err == nil) != ok {
			t.Errorf("%d: %v", n, err)
		}
	}
}

func TestSchedule(t *testing.T) {
	at := time.Now()
	failed := Delivery{At: at, Status: http.StatusInternalServerError}
	w := &Webhook{State: WebhookPending}
	schedule := func() {
		t.Helper()
		for i, want := range retryAfter {
			w.attempted(failed, 0)
			if got := w.Next.Sub(at); w.State != WebhookPending || got < want || got > want*11/10 {
				t.Errorf("attempt %d: got %s %s, want %s", i, w.State, got, want)
			}
		}
		w.attempted(Delivery{At: at, Error: "unreachable"}, 0)
		if w.State != WebhookGivenUp || !w.Next.IsZero() || w.Last().Error != "unreachable" {
			t.Errorf("got %+v", w)
		}
	}
	schedule()
	if w.Attempts != 10 || len(w.History) != 10 {
		t.Errorf("got %d attempts", w.Attempts)
	}
	for range 3 { // by hand
		if err := w.again(at.Add(RedeliverAfter)); err != nil {
			t.Fatal(err)
		}
		schedule()
	}
	if w.Attempts != 40 || len(w.History) != MaxHistory {
		t.Errorf("got %d attempts, of which %d are kept", w.Attempts, len(w.History))
	}
	var total time.Duration
	for _, d := range retryAfter {
		total += d
	}
	if total != 75*time.Hour+35*time.Minute+5*time.Second {
		t.Errorf("in all %s", total)
	}
	for _, c := range []struct {
		status int
		wait   time.Duration
		err    error
		state  WebhookState
		next   time.Duration // at least
		code   string
	}{
		{200, 0, nil, WebhookDelivered, 0, ""},
		{204, 0, nil, WebhookDelivered, 0, ""},
		{302, 0, nil, WebhookPending, 4 * time.Second, ""},
		{410, 0, nil, WebhookGone, 0, ""},
		{429, time.Hour, nil, WebhookPending, time.Hour, ""},
		{503, 1000 * time.Hour, nil, WebhookPending, maxRetryAfter, ""},
		{0, 0, context.DeadlineExceeded, WebhookPending, 4 * time.Second, "timeout"},
		{0, 0, fmt.Errorf("dial: %w", ErrURL), WebhookPending, 4 * time.Second, "url_not_allowed"},
	} {
		w := &Webhook{State: WebhookPending}
		w.attempted(Delivery{At: at, Status: c.status, Error: errorCode(c.err)}, c.wait)
		if got := string(w.Last().outcome()); c.code != "" && got != c.code || c.code == "" && (got == "delivered") != (c.status < 300) {
			t.Errorf("%+v: counts as %s", c, got)
		}
		if w.State != c.state || w.Last().Error != c.code || c.next > 0 && (w.Next.Sub(at) < c.next || w.Next.Sub(at) > maxRetryAfter) {
			t.Errorf("%+v: got %+v", c, w)
		}
	}
}

// TestRedeliver wants a webhook to be sent again when its owner asks for it, and not while
// that is to happen anyway.
func TestRedeliver(t *testing.T) {
	rec := receive(t, func(w http.ResponseWriter, _ *http.Request, n int) {
		if n == 1 {
			w.WriteHeader(http.StatusGone)
		}
	})
	p := open(t, t.TempDir(), &fakeRunner{run: says("", nil)}, Options{})
	again := func(id string) error { _, err := p.Redeliver(t.Context(), "ann", id); return err }
	id := submit(t, p, rec.URL)
	until(t, p, id, "a receiver that is gone", func(r *Record) bool { return r.Webhook.State == WebhookGone })
	if err := again(id); !errors.Is(err, ErrTooSoon) {
		t.Errorf("at once: %v", err)
	}
	s := p.service.Load().current.Load()
	key := (&Record{Owner: "ann", ID: id}).key()
	old := func(r *Record) error { r.Webhook.History[0].At = r.Webhook.History[0].At.Add(-time.Hour); return nil }
	if _, err := s.store.update(t.Context(), key, old); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Redeliver(t.Context(), "bob", id); !errors.Is(err, ErrNotFound) {
		t.Errorf("another's: %v", err)
	}
	if err := again(id); err != nil {
		t.Fatal(err)
	}
	r := until(t, p, id, "a delivery", func(r *Record) bool { return r.Webhook.State == WebhookDelivered })
	if r.Webhook.Attempts != 2 || len(r.Webhook.History) != 2 || r.Webhook.History[0].Status != http.StatusGone || r.Webhook.Last().Status != http.StatusOK {
		t.Errorf("got %+v", r.Webhook)
	}
	if rec.got[0].Get("Webhook-Id") != rec.got[1].Get("Webhook-Id") {
		t.Error("the attempts have different ids")
	}
	if err := again(submit(t, p, "")); !errors.Is(err, ErrNoWebhook) {
		t.Errorf("without a webhook: %v", err)
	}
	runner := p.sites[0].Runner.(*fakeRunner)
	runner.mu.Lock()
	runner.run = hangs("")
	runner.mu.Unlock()
	if err := again(submit(t, p, rec.URL)); !errors.Is(err, ErrPending) {
		t.Errorf("before its end: %v", err)
	}
	for state, want := range map[WebhookState]int{WebhookDelivered: 1, WebhookPending: 1, WebhookGone: 0, "": 3} {
		if page, _, err := p.List(t.Context(), "ann", Query{Webhook: state, Limit: 10}); err != nil || len(page) != want {
			t.Errorf("%q: %d, %v", state, len(page), err)
		}
	}
}

// receiver takes webhooks.
type receiver struct {
	*httptest.Server
	mu   sync.Mutex
	got  []http.Header
	body []byte
}

// receive starts a receiver, which the test may reach.
func receive(t *testing.T, answer func(w http.ResponseWriter, r *http.Request, n int)) *receiver {
	t.Helper()
	t.Setenv("AGENTFM_WEBHOOK_ALLOW_PRIVATE", "1")
	rec := new(receiver)
	rec.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		rec.mu.Lock()
		rec.got, rec.body = append(rec.got, r.Header), body
		n := len(rec.got)
		rec.mu.Unlock()
		answer(w, r, n)
	}))
	t.Cleanup(rec.Close)
	return rec
}

// count returns how many webhooks came.
func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

func TestWebhook(t *testing.T) {
	rec := receive(t, func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(http.StatusNoContent) })
	runner := &fakeRunner{run: func(ctx context.Context, j Job) (Attempt, error) {
		a, err := says("hello", nil)(ctx, j)
		if err == nil {
			a.(*fakeAttempt).files = true
		}
		return a, err
	}}
	p := open(t, t.TempDir(), runner, Options{Secrets: []string{"secret"}})
	id := submit(t, p, rec.URL+"/hook")
	r := until(t, p, id, "a delivery", func(r *Record) bool { return r.Webhook.State == WebhookDelivered })
	if r.State != Completed || r.Webhook.Last().Status != http.StatusNoContent || r.Webhook.Attempts != 1 {
		t.Errorf("got %+v", r.Webhook)
	}
	var body map[string]any
	if err := json.Unmarshal(rec.body, &body); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"task_id": id, "worker_id": "peer", "status": "completed", "type": "task.completed", "reason": nil,
		"artifacts_url": "https://gw.example/api/tasks/" + id + "/artifacts",
	} {
		if body[key] != want {
			t.Errorf("%s: got %v, want %v", key, body[key], want)
		}
	}
	if d, ok := body["duration_seconds"].(float64); !ok || d < 0 || d > 60 {
		t.Errorf("got %v", body)
	}
	h := rec.got[0]
	mac := hmac.New(sha256.New, []byte("secret"))
	mac.Write(rec.body)
	if h.Get("X-AgentFM-Signature") != hex.EncodeToString(mac.Sum(nil)) || h.Get("Content-Type") != "application/json" ||
		!strings.HasPrefix(h.Get("Webhook-Signature"), "v1,") || h.Get("Webhook-Id") != "msg_"+id || h.Get("Webhook-Timestamp") == "" {
		t.Errorf("got %v", h)
	}
	if got := r.Webhook.Last().outcome(); got != metrics.Delivered {
		t.Errorf("it counts as %s", got)
	}
	await.Until(t, "an empty queue of webhooks", func() bool {
		n, _, err := p.service.Load().current.Load().store.length(t.Context(), hookName)
		return err == nil && n == 0
	})
}

// TestWebhookOfOwner wants a webhook to be signed with the secret of the task's owner, at
// whatever site that is known.
func TestWebhookOfOwner(t *testing.T) {
	rec := receive(t, func(http.ResponseWriter, *http.Request, int) {})
	own, err := webhook.NewSigner("own", "older")
	if err != nil {
		t.Fatal(err)
	}
	for secret, signers := range map[string]map[string]*webhook.Signer{"global": nil, "own": {"ann": own}} {
		p := open(t, t.TempDir(), &fakeRunner{run: says("", nil), signers: signers}, Options{Secrets: []string{"global"}})
		id := submit(t, p, rec.URL)
		until(t, p, id, "a delivery", func(r *Record) bool { return r.Webhook.State == WebhookDelivered })
		mac := hmac.New(sha256.New, []byte(secret))
		mac.Write(rec.body)
		h := rec.got[len(rec.got)-1]
		if h.Get("X-AgentFM-Signature") != hex.EncodeToString(mac.Sum(nil)) || len(strings.Fields(h.Get("Webhook-Signature"))) != 1+len(signers) {
			t.Errorf("not signed with the secret %s: %v", secret, h)
		}
		if err := p.Cleanup(); err != nil {
			t.Fatal(err)
		}
	}
	other, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	other.Register("first", &fakeRunner{})
	other.Register("second", &fakeRunner{signers: map[string]*webhook.Signer{"ann": own}})
	if other.signerFor(&Record{Owner: "ann", Site: "first"}) != own || other.signerFor(&Record{Owner: "bob", Site: "second"}) != nil {
		t.Error("the secret of another, or none")
	}
}

// TestWebhookEnds wants every end of a task to be told of, in the words that receivers know.
func TestWebhookEnds(t *testing.T) {
	rec := receive(t, func(http.ResponseWriter, *http.Request, int) {})
	p := open(t, t.TempDir(), &fakeRunner{run: func(ctx context.Context, j Job) (Attempt, error) {
		return nil, &Failure{Reason: "exit_code", Message: "m"}
	}}, Options{})
	id := submit(t, p, rec.URL)
	until(t, p, id, "a delivery", func(r *Record) bool { return r.Webhook.State == WebhookDelivered })
	if got := string(rec.body); !strings.Contains(got, `"status":"failed","type":"task.failed","reason":"exit_code"`) || !strings.Contains(got, `"artifacts_url":null`) {
		t.Errorf("got %s", got)
	}
	if h := rec.got[0]; h.Get("X-AgentFM-Signature") != "" || h.Get("Webhook-Signature") != "" || h.Get("Webhook-Id") == "" {
		t.Errorf("without a secret: %v", h)
	}
	runner := p.sites[0].Runner.(*fakeRunner)
	runner.mu.Lock()
	runner.run = hangs("")
	runner.mu.Unlock()
	id = submit(t, p, rec.URL)
	until(t, p, id, "a task that runs", func(r *Record) bool { return r.State == Running })
	if _, err := p.Cancel(t.Context(), "ann", id); err != nil {
		t.Fatal(err)
	}
	until(t, p, id, "a delivery", func(r *Record) bool { return r.Webhook.State == WebhookDelivered })
	if got := string(rec.body); !strings.Contains(got, `"status":"failed","type":"task.cancelled","reason":"cancelled"`) {
		t.Errorf("got %s", got)
	}
}

// TestWebhookAgain wants an attempt that fails to be made again, also after a restart, and
// the end of one that is not wanted.
func TestWebhookAgain(t *testing.T) {
	dir := t.TempDir()
	rec := receive(t, func(w http.ResponseWriter, r *http.Request, n int) {
		switch n {
		case 1:
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		default:
			w.WriteHeader(http.StatusGone)
		}
	})
	p := open(t, dir, &fakeRunner{run: says("", nil)}, Options{})
	id := submit(t, p, rec.URL)
	r := until(t, p, id, "an attempt", func(r *Record) bool { return r.Webhook.Attempts == 1 })
	if r.Webhook.State != WebhookPending || r.Webhook.Last().Status != http.StatusTemporaryRedirect || rec.count() != 1 {
		t.Errorf("got %+v, and %d came", r.Webhook, rec.count())
	}
	if err := p.Cleanup(); err != nil {
		t.Fatal(err)
	}
	p = open(t, dir, &fakeRunner{run: says("", nil)}, Options{})
	if r, err := p.Get(t.Context(), "ann", id); err != nil || r.Webhook.Attempts != 1 {
		t.Errorf("too early: %+v, %v", r, err)
	}
	r = until(t, p, id, "the next attempt", func(r *Record) bool { return r.Webhook.State == WebhookGone })
	if gap := r.Webhook.Last().At.Sub(r.Ended); r.Webhook.Attempts != 2 || gap < 4*time.Second || rec.count() != 2 {
		t.Errorf("got %+v after %s, and %d came", r.Webhook, gap, rec.count())
	}
	if rec.got[0].Get("Webhook-Id") != rec.got[1].Get("Webhook-Id") {
		t.Error("the attempts have different ids")
	}
}

// TestPosts wants a host and an owner to have their places and no more, and to be forgotten
// afterwards; and those that wait to have their turns.
func TestPosts(t *testing.T) {
	p, now := newPosts(), time.Now()
	take := func(owner, host string, want bool) {
		t.Helper()
		if _, ok := p.begin(owner, host, now); ok != want {
			t.Fatalf("%s to %s: got %t", owner, host, ok)
		}
	}
	for range maxHostPosts {
		take("ann", "slow", true)
	}
	for n := range maxAllHostPosts - maxHostPosts { // of others
		take(fmt.Sprint("owner", n/maxHostPosts), "slow", true)
	}
	take("cat", "slow", false)
	for n := range maxAllHostPosts - maxHostPosts {
		p.end(fmt.Sprint("owner", n/maxHostPosts), "slow", 0)
	}
	last := time.Duration(0)
	for range 100 {
		wait, ok := p.begin("ann", "slow", now)
		if ok || wait < last || wait < minPostPause || wait > time.Second {
			t.Fatalf("got %s, %t after %s: how long it takes is not known", wait, ok, last)
		}
		last = wait
	}
	p.end("ann", "slow", 8*time.Second)
	take("ann", "slow", true)
	for n := range 10_000 {
		if wait, ok := p.begin("ann", "slow", now); ok || wait > maxPostPause || n > 1000 && wait < maxPostPause/2 {
			t.Fatalf("%d: got %s, %t", n, wait, ok)
		}
	}
	for n := range maxOwnerPosts - maxHostPosts {
		take("ann", fmt.Sprint(n), true)
	}
	take("ann", "one more", false)
	for n := range maxPosts - maxOwnerPosts {
		take("bob", fmt.Sprint(n), true)
	}
	take("cat", "another", false)
	for range maxHostPosts {
		p.end("ann", "slow", time.Second)
	}
	for n := range maxOwnerPosts - maxHostPosts {
		p.end("ann", fmt.Sprint(n), time.Second)
	}
	take("cat", "another", true)
	p.end("cat", "another", time.Second)
	for n := range maxPosts - maxOwnerPosts {
		p.end("bob", fmt.Sprint(n), time.Second)
	}
	if p.all.under != 0 || len(p.hosts) != 0 || len(p.owners) != 0 || len(p.pairs) != 0 {
		t.Errorf("left: %+v", p)
	}
}

// TestHostOf wants a receiver to be one, whichever way its host is written.
func TestHostOf(t *testing.T) {
	for url, want := range map[string]string{
		"https://a.example":          "a.example:443",
		"HTTPS://A.Example.:443/x?y": "a.example:443",
		"http://a.example./":         "a.example:80",
		"https://a.example:8443":     "a.example:8443",
		"https://[2001:DB8:0::1]/":   "[2001:db8::1]:443",
		"http://[::ffff:192.0.2.1]":  "192.0.2.1:80",
		"http://a\x7f":               "",
	} {
		if got := hostOf(url); got != want {
			t.Errorf("%s: got %s, want %s", url, got, want)
		}
	}
}
