// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// crowd is how many webhooks go to how many receivers, and how those are that are not quick.
type crowd struct {
	hooks, rate int // in all, and in a second
	slow, post  time.Duration
	limit       time.Duration // of the delay of 99 of 100 webhooks to quick receivers
}

// Every twentieth receiver is dead, and every tenth is slow.
const (
	crowdSinks = 50
	deadEvery  = 20
	slowEvery  = 10
)

// deadSink takes connections, and does nothing more; or refuses them, every other one.
func deadSink(t *testing.T, refuses bool) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if refuses {
		l.Close()
	} else {
		t.Cleanup(func() { l.Close() }) // the system takes them, nobody reads
	}
	return "http://" + l.Addr().String()
}

// TestReceiversApart wants webhooks to quick receivers not to wait for those to slow and
// dead ones, and every receiver that lives to get all of its own.
func TestReceiversApart(t *testing.T) {
	c := crowd{hooks: 600, rate: 100, slow: 500 * time.Millisecond, post: 2 * time.Second, limit: 15 * time.Second}
	if os.Getenv("AGENTFM_TEST_NIGHTLY") == "1" {
		c = crowd{hooks: 100_000, rate: 200, slow: 2 * time.Second, post: postTimeout, limit: 5 * time.Second}
	}
	t.Setenv("AGENTFM_WEBHOOK_ALLOW_PRIVATE", "1")
	old := defaultLimits
	t.Cleanup(func() { defaultLimits = old })
	defaultLimits.post = c.post
	sinks, urls := make([]*sink, crowdSinks), make([]string, crowdSinks)
	for i := range urls {
		switch {
		case i%deadEvery == 1:
			urls[i] = deadSink(t, i%(2*deadEvery) == 1)
			continue
		case i%slowEvery == 2:
			sinks[i] = newSink(t, WebhookDelivered, func(w http.ResponseWriter, r *http.Request, _ int) bool {
				pause(r.Context(), c.slow)
				return r.Context().Err() == nil && status(w, 200, 0)
			})
		default:
			sinks[i] = newSink(t, WebhookDelivered, func(w http.ResponseWriter, _ *http.Request, _ int) bool { return status(w, 200, 0) })
		}
		urls[i] = sinks[i].URL
	}
	p := open(t, t.TempDir(), &fakeRunner{run: says("", nil)}, Options{InFlight: MaxInFlight})
	to := crowdIn(t, p, c, urls)
	var delays []time.Duration
	for i, s := range sinks {
		for _, r := range to[i] {
			if s == nil {
				continue
			}
			r = delivered(t, p, r)
			s.mu.Lock()
			if s.got[r.ID] == 0 {
				t.Errorf("receiver %d did not hear of %s: %+v", i, r.ID, r.Webhook)
			}
			s.mu.Unlock()
			if i%slowEvery != 2 {
				delays = append(delays, r.Webhook.Last().At.Sub(r.Ended))
			}
		}
	}
	slices.Sort(delays)
	at := func(percent int) time.Duration { return delays[(len(delays)-1)*percent/100] }
	t.Logf("%d webhooks to quick receivers; delay p50 %s, p99 %s, at most %s", len(delays), at(50), at(99), at(100))
	if at(99) > c.limit {
		t.Errorf("p99 is %s, want at most %s", at(99), c.limit)
	}
}

// crowdIn submits the tasks, and returns them by their receivers.
func crowdIn(t *testing.T, p *Part, c crowd, urls []string) [][]*Record {
	t.Helper()
	to := make([][]*Record, len(urls))
	var mu sync.Mutex
	var clients sync.WaitGroup
	const width = 10
	for client := range width {
		clients.Go(func() {
			tick := time.NewTicker(time.Second * width / time.Duration(c.rate))
			defer tick.Stop()
			for n := client; n < c.hooks && !t.Failed(); n += width {
				<-tick.C
				i := n % len(urls)
				r, err := p.Submit(t.Context(), Submission{
					Owner: fmt.Sprint("owner ", n%7), Site: "site", Target: Target{Worker: "peer"}, Prompt: "x", WebhookURL: urls[i], Base: "https://gw.example",
				})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				to[i] = append(to[i], r)
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	return to
}

// delivered waits until the webhook of a task is delivered.
func delivered(t *testing.T, p *Part, r *Record) *Record {
	t.Helper()
	for at, n := time.Now(), -1; ; pause(t.Context(), 20*time.Millisecond) {
		now, err := p.Get(t.Context(), r.Owner, r.ID)
		switch {
		case err != nil:
			t.Fatal(err)
		case now.Webhook.State == WebhookDelivered:
			return now
		}
		// Slow receivers take their time, as long as others of their webhooks come.
		if under, _, err := p.service.Load().current.Load().store.length(t.Context(), hookName); err != nil || under != n {
			at, n = time.Now(), under
		} else if time.Since(at) > time.Minute {
			t.Fatalf("waited in vain: %+v", now.Webhook)
		}
	}
}
