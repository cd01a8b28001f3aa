// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// submitBounded submits a task with bounds.
func submitBounded(t *testing.T, p *Part, b Bounds) string {
	t.Helper()
	r, err := p.Submit(t.Context(), Submission{Owner: "ann", Site: "site", Target: Target{Worker: "peer"}, Prompt: "prompt", Bounds: b})
	if err != nil {
		t.Fatal(err)
	}
	return r.ID
}

// TestBounds wants a task to end when it has had what it may have, and to say why.
func TestBounds(t *testing.T) {
	fails := func(f *Failure) func(context.Context, Job) (Attempt, error) {
		return func(context.Context, Job) (Attempt, error) { return nil, f }
	}
	for _, c := range []struct {
		name   string
		bounds Bounds
		run    func(context.Context, Job) (Attempt, error)
		reason string
		runs   int // 0 for any number
	}{
		{"attempts", Bounds{Attempts: 2}, says("", errors.New("stream reset")), "broken", 2},
		{"one attempt", Bounds{Attempts: 1}, says("", errors.New("stream reset")), "broken", 1},
		{"no room", Bounds{Queue: 50 * time.Millisecond}, fails(&Failure{Kind: Busy}), ReasonQueue, 0},
		{"nobody there", Bounds{Queue: 50 * time.Millisecond}, fails(&Failure{Kind: Away}), ReasonQueue, 0},
		{"in all, running", Bounds{Total: 2 * time.Second}, hangs("half"), ReasonTimeout, 1},
		{"in all, waiting", Bounds{Total: 50 * time.Millisecond}, fails(&Failure{Kind: Busy}), ReasonTimeout, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			runner := &fakeRunner{run: c.run}
			p := open(t, t.TempDir(), runner, Options{})
			r := ended(t, p, submitBounded(t, p, c.bounds))
			if r.State != Failed || r.Reason != c.reason || r.Message == "" || c.runs != 0 && len(runner.seen()) != c.runs {
				t.Errorf("got %+v after %q", r, runner.seen())
			}
			empty(t, p)
			if s := p.service.Load().current.Load(); s == nil {
				t.Error("the store has failed")
			}
		})
	}
}

// TestBoundsAsked wants what a client asks for to be within what the operator allows.
func TestBoundsAsked(t *testing.T) {
	p, err := New(Options{Bounds: Bounds{Run: time.Minute}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		asked, want Bounds
		over        string
	}{
		{Bounds{}, Bounds{MaxLost, QueueLimit, time.Minute, 0}, ""},
		{Bounds{1, time.Second, time.Second, time.Hour}, Bounds{1, time.Second, time.Second, time.Hour}, ""},
		{Bounds{Attempts: 6}, Bounds{}, "max_attempts: at most 5"},
		{Bounds{Queue: 25 * time.Hour}, Bounds{}, "queue_timeout: at most 24h"},
		{Bounds{Run: time.Hour}, Bounds{}, "run_timeout: at most 1m"},
	} {
		got, err := p.Bounds(c.asked)
		switch {
		case c.over == "" && (err != nil || got != c.want):
			t.Errorf("%+v: got %+v, %v", c.asked, got, err)
		case c.over != "" && (err == nil || !strings.HasPrefix(err.Error(), c.over)):
			t.Errorf("%+v: got %v", c.asked, err)
		}
	}
	for _, b := range []Bounds{{Attempts: -1}, {Attempts: 101}, {Queue: 100 * time.Hour}, {Run: -1}, {Total: 100 * time.Hour}} {
		if _, err := New(Options{Bounds: b}); err == nil {
			t.Errorf("%+v is allowed", b)
		}
	}
}

// TestClockJumps wants tasks that wait or run not to notice how the clock is set, nor
// webhooks to be given up, or to wait for a time that the clock was at by mistake.
func TestClockJumps(t *testing.T) {
	t.Setenv("AGENTFM_WEBHOOK_ALLOW_PRIVATE", "1")
	clock := &testClock{at: time.Now().UTC()}
	timed(t, clock, postTimeout)
	gate := make(chan struct{})
	p := open(t, t.TempDir(), &fakeRunner{run: func(ctx context.Context, j Job) (Attempt, error) {
		select {
		case <-gate:
			return says("done", nil)(ctx, j)
		default:
			return nil, &Failure{Kind: Busy}
		}
	}}, Options{})
	var ids []string
	bounds := Bounds{Queue: 30 * time.Minute, Total: 40 * time.Minute}
	begun := clock.now()
	for _, jump := range []time.Duration{0, time.Hour, 0, -time.Hour, 0} {
		clock.set(begun.Add(jump))
		id := submitBounded(t, p, bounds)
		ids = append(ids, id)
		key := (&Record{Owner: "ann", ID: id}).key()
		await.Until(t, "the task to be taken", func() bool { return p.service.Load().current.Load().claimOf(key) != nil })
		time.Sleep(2 * minPause) // longer than it takes to judge each of them again
		for _, id := range ids {
			if r, err := p.Get(t.Context(), "ann", id); err != nil || r.State != Queued {
				t.Fatalf("after a jump of %s: %+v, %v", jump, r, err)
			}
		}
	}
	close(gate)
	for _, id := range ids {
		if r := ended(t, p, id); r.State != Completed || r.Ended.Before(r.Created) {
			t.Errorf("got %+v", r)
		}
	}
	rec := receive(t, func(w http.ResponseWriter, _ *http.Request, n int) {
		if n == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	clock.set(begun.AddDate(1, 0, 0))
	id := submit(t, p, rec.URL)
	until(t, p, id, "an attempt", func(r *Record) bool { return r.Webhook.Attempts == 1 })
	clock.set(begun)
	until(t, p, id, "a delivery", func(r *Record) bool { return r.Webhook.State == WebhookDelivered })
	for wait, want := range map[time.Duration]error{0: ErrPending, 26 * time.Hour: ErrPending, 27 * time.Hour: nil} {
		w := &Webhook{State: WebhookPending, Next: begun.Add(wait)}
		if err := w.again(begun); !errors.Is(err, want) {
			t.Errorf("with %s to wait: %v", wait, err)
		}
	}
}
