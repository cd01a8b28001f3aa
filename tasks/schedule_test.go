// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// testClock is a clock that a test moves.
type testClock struct {
	mu sync.Mutex
	at time.Time
}

func (c *testClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *testClock) set(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = at
}

// timed makes stores that are opened from now on keep the time of a clock for webhooks,
// with so much for each attempt.
func timed(t *testing.T, clock *testClock, post time.Duration) {
	t.Helper()
	old := defaultLimits
	t.Cleanup(func() { defaultLimits = old })
	defaultLimits.now, defaultLimits.rest, defaultLimits.post = clock.now, short, post
}

// sink is a receiver of webhooks with a temper.
type sink struct {
	*httptest.Server
	final WebhookState // of the deliveries to it
	asks  time.Duration

	mu   sync.Mutex
	seen map[string]int // attempts by their ids
	got  map[string]int // those that it took
}

// newSink starts one. answer gets the number of the attempt, from 1.
func newSink(t *testing.T, final WebhookState, answer func(w http.ResponseWriter, r *http.Request, n int) (took bool)) *sink {
	t.Helper()
	s := &sink{final: final, seen: make(map[string]int), got: make(map[string]int)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		id := strings.TrimPrefix(r.Header.Get("Webhook-Id"), "msg_")
		s.mu.Lock()
		s.seen[id]++
		n := s.seen[id]
		s.mu.Unlock()
		if answer(w, r, n) {
			s.mu.Lock()
			s.got[id]++
			s.mu.Unlock()
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// status answers with a status and, where it is not 0, a time to wait.
func status(w http.ResponseWriter, code int, wait time.Duration) bool {
	if wait != 0 {
		w.Header().Set("Retry-After", fmt.Sprint(int(wait.Seconds())))
	}
	w.WriteHeader(code)
	return code < 300
}

// temperedSinks are receivers of every kind.
func temperedSinks(t *testing.T, clock *testClock) map[string]*sink {
	begun := clock.now()
	gone := func(w http.ResponseWriter) bool {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			conn.Close()
		}
		return false
	}
	all := map[string]*sink{
		"good": newSink(t, WebhookDelivered, func(w http.ResponseWriter, _ *http.Request, _ int) bool { return status(w, 204, 0) }),
		"down for six hours": newSink(t, WebhookDelivered, func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			if clock.now().Sub(begun) < 6*time.Hour {
				return gone(w)
			}
			return status(w, 200, 0)
		}),
		"flapping": newSink(t, WebhookDelivered, func(w http.ResponseWriter, _ *http.Request, n int) bool {
			return status(w, []int{500, 503, 200}[(n-1)%3], 0)
		}),
		"busy": newSink(t, WebhookDelivered, func(w http.ResponseWriter, _ *http.Request, n int) bool {
			if n <= 3 {
				return status(w, 429, time.Hour)
			}
			return status(w, 200, 0)
		}),
		"silent": newSink(t, WebhookGivenUp, func(_ http.ResponseWriter, r *http.Request, _ int) bool {
			<-r.Context().Done()
			return false
		}),
		"broken": newSink(t, WebhookGivenUp, func(w http.ResponseWriter, _ *http.Request, _ int) bool { return status(w, 500, 0) }),
		"gone":   newSink(t, WebhookGone, func(w http.ResponseWriter, _ *http.Request, _ int) bool { return status(w, 410, 0) }),
		"moved": newSink(t, WebhookGivenUp, func(w http.ResponseWriter, r *http.Request, _ int) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusPermanentRedirect)
			return false
		}),
	}
	all["busy"].asks = time.Hour
	return all
}

// TestThreeDays wants every webhook to be delivered that can be, when its time has come,
// over the restarts of three days.
func TestThreeDays(t *testing.T) {
	t.Setenv("AGENTFM_WEBHOOK_ALLOW_PRIVATE", "1")
	clock := &testClock{at: time.Now().UTC()}
	begun := clock.now()
	timed(t, clock, time.Second/2)
	sinks := temperedSinks(t, clock)
	dir := t.TempDir()
	reopen := func(p *Part) *Part {
		if p != nil {
			if err := p.Cleanup(); err != nil {
				t.Fatal(err)
			}
		}
		return open(t, dir, &fakeRunner{run: says("", nil)}, Options{})
	}
	p := reopen(nil)
	to := make(map[string]string) // the sinks of the tasks
	for name, s := range sinks {
		for range 2 {
			to[submit(t, p, s.URL)] = name
		}
	}
	restarts := 0
	for steps := 0; ; steps++ {
		next := settled(t, p, clock.now(), len(to))
		if next.IsZero() {
			break
		}
		clock.set(next)
		if steps%4 == 0 && restarts < 10 {
			restarts++
			p = reopen(p)
		}
	}
	for id, name := range to {
		r, err := p.Get(t.Context(), "ann", id)
		if err != nil {
			t.Fatal(err)
		}
		checkDelivery(t, name, sinks[name], r, begun)
	}
	if restarts < 10 {
		t.Errorf("only %d restarts", restarts)
	}
}

// settled waits until every webhook was tried whose time has come, and returns when the next
// one is to be tried; the zero time when there are no more.
func settled(t *testing.T, p *Part, now time.Time, n int) (next time.Time) {
	t.Helper()
	await.Until(t, "the attempts that are due", func() bool {
		page, _, err := p.List(t.Context(), "ann", Query{Limit: n})
		if err != nil || len(page) != n {
			t.Fatal(len(page), err)
		}
		next = time.Time{}
		for _, r := range page {
			w := r.Webhook
			if w.State != WebhookPending {
				continue
			}
			if !w.Next.After(now) {
				return false
			}
			if next.IsZero() || w.Next.Before(next) {
				next = w.Next
			}
		}
		return true
	})
	return next
}

// checkDelivery looks at what came of a webhook.
func checkDelivery(t *testing.T, name string, s *sink, r *Record, begun time.Time) {
	t.Helper()
	w := r.Webhook
	s.mu.Lock()
	seen, got := s.seen[r.ID], s.got[r.ID]
	s.mu.Unlock()
	answers := 0
	for _, d := range w.History {
		if d.Status != 0 { // others may have been too late on a busy machine
			answers++
		}
	}
	if w.State != s.final || w.Attempts != len(w.History) || seen < answers || (got > 0) != (s.final == WebhookDelivered) {
		t.Errorf("%s: got %s after %d attempts, of which %d were seen and %d taken", name, w.State, w.Attempts, seen, got)
	}
	for i, d := range w.History[1:] {
		want := max(retryAfter[i], s.asks)
		if gap := d.At.Sub(w.History[i].At.Add(w.History[i].Took)); gap < want || gap > want*11/10 {
			t.Errorf("%s: attempt %d after %s, want %s", name, i+2, gap, want)
		}
	}
	if s.final == WebhookGivenUp {
		if over := w.Last().At.Sub(begun); w.Attempts < 10 || over < 72*time.Hour {
			t.Errorf("%s: given up after %d attempts in %s", name, w.Attempts, over)
		}
	}
	if codes := attemptCodes(w); name == "silent" && codes != "timeout" || name == "down for six hours" && !strings.Contains(codes, "unreachable") {
		t.Errorf("%s: got %s", name, codes)
	}
}

// attemptCodes returns the errors of attempts, each once.
func attemptCodes(w *Webhook) string {
	var codes []string
	for _, d := range w.History {
		if d.Error != "" && !slices.Contains(codes, d.Error) {
			codes = append(codes, d.Error)
		}
	}
	return strings.Join(codes, " ")
}
