// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// waiting puts a request into the queue and returns where its end comes.
func waiting(t *testing.T, r *Router, ctx context.Context, key string, size int, name string, done chan<- string) {
	t.Helper()
	before := r.Waiting()
	go func() {
		s, err := r.Wait(ctx, &Request{Model: "m"}, LeastLoaded{}, key, size)
		if err != nil {
			done <- name + ": " + err.Error()
			return
		}
		done <- name
		s.Release(Succeeded)
	}()
	await.Until(t, "the request waits", func() bool { return r.Waiting() > before })
}

// TestFair wants clients to be served in turn, whatever the length of their lines.
func TestFair(t *testing.T) {
	r := newRouter(Worker{Peer: "p", Model: "m", MaxTasks: 1})
	held := pick(t, r, LeastLoaded{}, Request{Model: "m"})
	done := make(chan string, 10)
	for i := range 5 {
		waiting(t, r, t.Context(), "a", 100, fmt.Sprint("a", i), done)
	}
	for i := range 2 {
		waiting(t, r, t.Context(), "b", 100, fmt.Sprint("b", i), done)
	}
	held.Release(Succeeded)
	var got []string
	for range 7 {
		got = append(got, <-done)
	}
	if want := []string{"a0", "b0", "a1", "b1", "a2", "a3", "a4"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestQueueBound wants the client with the most requests to lose when the queue is full.
func TestQueueBound(t *testing.T) {
	r := newRouter(Worker{Peer: "p", Model: "m", MaxTasks: 1})
	held := pick(t, r, LeastLoaded{}, Request{Model: "m"})
	done := make(chan string, 10)
	for i := range 3 {
		waiting(t, r, t.Context(), "a", 3, fmt.Sprint("a", i), done)
	}
	if _, err := r.Wait(t.Context(), &Request{Model: "m"}, LeastLoaded{}, "a", 3); !errors.Is(err, ErrQueueFull) {
		t.Errorf("alone: got %v, want ErrQueueFull", err)
	}
	go func() {
		s, err := r.Wait(t.Context(), &Request{Model: "m"}, LeastLoaded{}, "b", 3)
		if err != nil {
			t.Error(err)
		}
		done <- "b"
		s.Release(Succeeded)
	}()
	if got, want := <-done, "a2: "+ErrCrowdedOut.Error(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := r.Wait(t.Context(), &Request{Model: "m"}, LeastLoaded{}, "a", 3); !errors.Is(err, ErrCrowdedOut) {
		t.Errorf("beside another: got %v, want ErrCrowdedOut", err)
	}
	held.Release(Succeeded)
	got := []string{<-done, <-done, <-done}
	if want := []string{"a0", "b", "a1"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if r.Waiting() != 0 || len(r.queue.lines) != 0 {
		t.Errorf("%d still wait", r.Waiting())
	}
}

// TestWaitEnds wants a request that is given up to leave nothing behind.
func TestWaitEnds(t *testing.T) {
	r := newRouter(Worker{Peer: "p", Model: "m", MaxTasks: 1}, Worker{Peer: "q", Model: "other"})
	held := pick(t, r, LeastLoaded{}, Request{Model: "m"})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan string, 10)
	waiting(t, r, ctx, "a", 3, "a", done)
	// who wants something else does not wait behind
	s, err := r.Wait(t.Context(), &Request{Model: "other"}, LeastLoaded{}, "b", 3)
	if err != nil {
		t.Fatal(err)
	}
	s.Release(Succeeded)
	if _, err := r.Wait(t.Context(), &Request{Model: "nobody"}, LeastLoaded{}, "b", 3); !errors.Is(err, ErrNoMatch) {
		t.Errorf("got %v, want ErrNoMatch", err)
	}
	if _, err := r.Wait(t.Context(), &Request{Model: "m"}, LeastLoaded{}, "b", 0); !errors.Is(err, ErrQueueFull) {
		t.Errorf("size 0: got %v", err)
	}
	cancel()
	if got, want := <-done, "a: "+ErrBusy.Error(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	held.Release(Succeeded)
	if r.Waiting() != 0 {
		t.Errorf("%d still wait", r.Waiting())
	}
	if s := pick(t, r, LeastLoaded{}, Request{Model: "m"}); s.Worker.Peer != "p" {
		t.Errorf("got %s", s.Worker.Peer)
	}
}

// TestTelemetryServes wants news of a worker to serve those who wait.
func TestTelemetryServes(t *testing.T) {
	w := Worker{Peer: "p", Model: "m", MaxTasks: 1, MaxPrompt: 100, Tasks: 1}
	r := newRouter(w)
	done := make(chan string, 1)
	waiting(t, r, t.Context(), "a", 3, "a", done)
	w.Tasks = 0
	r.Update(w)
	if got := <-done; got != "a" {
		t.Errorf("got %q", got)
	}
}

// TestWaitRaces gives up waits while slots come free: no slot is lost.
func TestWaitRaces(t *testing.T) {
	r := newRouter(Worker{Peer: "p", Model: "m", MaxTasks: 2})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 200 {
				ctx, cancel := context.WithCancel(context.Background())
				go cancel()
				if s, err := r.Wait(ctx, &Request{Model: "m"}, LeastLoaded{}, fmt.Sprint(i%3), 16); err == nil {
					s.Release(Succeeded)
				}
			}
		})
	}
	wg.Wait()
	if n := r.workers["p"].inflight; n != 0 || r.Waiting() != 0 {
		t.Errorf("%d slots are held, %d wait", n, r.Waiting())
	}
}

// TestNotBehind wants nobody to wait for a free slot behind who waits for another
// one under the same name.
func TestNotBehind(t *testing.T) {
	r := newRouter(Worker{Peer: "p", Model: "m", MaxTasks: 1}, Worker{Peer: "q", Model: "m", MaxPrompt: 200})
	pick(t, r, LeastLoaded{}, Request{Peer: "p"})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { // pinned to the one that is full
		_, err := r.Wait(ctx, &Request{Model: "m", May: func(p, _, _ string) bool { return p == "p" }}, LeastLoaded{}, "a", 1)
		done <- err
	}()
	await.Until(t, "the request waits", func() bool { return r.Waiting() == 1 })
	if w, s, err := r.enqueue(&Request{Model: "m"}, LeastLoaded{}, "b", 1); w != nil || err != nil || s.Worker.Peer != "q" {
		t.Errorf("got %v, %v, want the free slot of q", s.Worker.Peer, err)
	}
	cancel()
	<-done
}

// TestRestEndServes wants the end of a rest to serve those who wait, without any
// other event.
func TestRestEndServes(t *testing.T) {
	r := newRouter(Worker{Peer: "p", Model: "m", MaxTasks: 1}, Worker{Peer: "q", Model: "m"})
	s := pick(t, r, LeastLoaded{}, Request{Peer: "q"})
	pick(t, r, LeastLoaded{}, Request{Peer: "p"}) // full
	s.Release(Failed)                             // rests
	done := make(chan string, 1)
	waiting(t, r, t.Context(), "a", 3, "a", done)
	if got := <-done; got != "a" {
		t.Errorf("got %q", got)
	}
}

// TestRemoveServes wants a worker's going to serve those for whom there is now
// nothing better than one that rests.
func TestRemoveServes(t *testing.T) {
	r := newRouter(Worker{Peer: "p", Model: "m", MaxTasks: 1}, Worker{Peer: "q", Model: "m"})
	for range 8 { // a long rest
		s := pick(t, r, LeastLoaded{}, Request{Peer: "q"})
		s.Release(Failed)
	}
	pick(t, r, LeastLoaded{}, Request{Peer: "p"})
	done := make(chan string, 1)
	waiting(t, r, t.Context(), "a", 3, "a", done)
	r.Remove("p")
	if got := <-done; got != "a" {
		t.Errorf("got %q", got)
	}
}

// TestPromptSizes wants a request that only one worker takes not to stand before
// those that others take.
func TestPromptSizes(t *testing.T) {
	r := newRouter(Worker{Peer: "large", Model: "m", MaxTasks: 1}, Worker{Peer: "small", Model: "m", MaxTasks: 1, MaxPrompt: 10})
	pick(t, r, LeastLoaded{}, Request{Peer: "large"})
	held := pick(t, r, LeastLoaded{}, Request{Peer: "small"})
	long, _, _ := r.enqueue(&Request{Model: "m", PromptSize: 50}, LeastLoaded{}, "a", 3)
	short, _, _ := r.enqueue(&Request{Model: "m", PromptSize: 5}, LeastLoaded{}, "a", 3)
	held.Release(Succeeded)
	if len(short.served) != 1 || len(long.served) != 0 {
		t.Error("the slot of the small worker did not go to the short prompt")
	}
}

// TestLongName wants no work for a name that nobody can have.
func TestLongName(t *testing.T) {
	long := strings.Repeat("ſ", 1<<20)
	r := newRouter(Worker{Peer: "p", Model: long})
	if _, err := r.Acquire(&Request{Model: long}, LeastLoaded{}); !errors.Is(err, ErrNoMatch) {
		t.Errorf("got %v, want ErrNoMatch", err)
	}
}

// broken panics once there is a second choice.
type broken struct{}

func (broken) Select(c *Choices) int {
	if c.Len() > 1 {
		panic("broken")
	}
	return 0
}

// TestSelectorPanics wants a selector's panic to be that of the request, and not of
// whoever made room for it.
func TestSelectorPanics(t *testing.T) {
	r := newRouter(Worker{Peer: "p", Model: "m", MaxTasks: 1})
	held := pick(t, r, LeastLoaded{}, Request{Model: "m"})
	done := make(chan any)
	go func() {
		defer func() { done <- recover() }()
		_, _ = r.Wait(t.Context(), &Request{Model: "m"}, broken{}, "a", 3)
	}()
	await.Until(t, "the request waits", func() bool { return r.Waiting() == 1 })
	r.Update(Worker{Peer: "q", Model: "m", MaxTasks: 1, MaxPrompt: 1})
	if got := <-done; got != "broken" || r.Waiting() != 0 {
		t.Errorf("got %v, %d wait", got, r.Waiting())
	}
	held.Release(Succeeded)
	if s := pick(t, r, LeastLoaded{}, Request{Model: "m"}); s.Worker.Peer == "" {
		t.Error("no slot")
	}
}

// BenchmarkBusyQueue is telemetry of a worker while many requests wait for others
// of its name.
func BenchmarkBusyQueue(b *testing.B) {
	const workers, waiters = 1000, 256
	r := New()
	w := func(i int) Worker {
		return Worker{Peer: fmt.Sprintf("12D3KooW%d", i), Model: "m", MaxTasks: 8, Tasks: 8, MaxPrompt: 1}
	}
	for i := range workers {
		r.Update(w(i))
	}
	pinned := func(p, _, _ string) bool { return p == "12D3KooW999" }
	for i := range waiters {
		if q, _, err := r.enqueue(&Request{Model: "m", May: pinned}, LeastLoaded{}, fmt.Sprint(i), waiters); q == nil {
			b.Fatal(err)
		}
	}
	free := w(1)
	free.Tasks = 0
	for name, u := range map[string]Worker{"full": w(1), "free": free} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r.Update(u)
			}
		})
	}
}

// TestNobodyForgotten wants that after whatever happens nobody waits for whom there
// is a slot.
func TestNobodyForgotten(t *testing.T) {
	for seed := range uint64(5) {
		nobodyForgotten(t, rand.New(rand.NewPCG(3, seed)))
	}
}

// nobodyForgotten does random things, and looks after each of them.
func nobodyForgotten(t *testing.T, rnd *rand.Rand) {
	t.Helper()
	r, c := timedRouter()
	var held []Slot
	waiters := make(map[*waiter]bool)
	names := []string{"p1", "p2", "a0", "A1", "m0", "M1", "shared"}
	for i := range 20_000 {
		peer := "p" + strconv.Itoa(rnd.IntN(8))
		switch rnd.IntN(12) {
		case 0:
			r.Remove(peer)
		case 1, 2, 3:
			w := Worker{Peer: peer, Agent: "a" + strconv.Itoa(rnd.IntN(3)), Model: "m" + strconv.Itoa(rnd.IntN(2)),
				Tasks: rnd.IntN(3), MaxTasks: 1 + rnd.IntN(2), Busy: rnd.IntN(5) == 0, MaxPrompt: 1 + int(peer[1]%2)}
			if rnd.IntN(4) == 0 {
				w.Agent, w.Model = "x", "shared"
			} else if rnd.IntN(8) == 0 {
				w.Agent = "shared"
			}
			r.Update(w)
		case 4, 5:
			if len(held) > 0 {
				i := rnd.IntN(len(held))
				held[i].Release(Outcome(rnd.IntN(5)))
				held[i] = held[len(held)-1]
				held = held[:len(held)-1]
			}
		case 7:
			c.pass(time.Duration(rnd.IntN(1000)) * time.Millisecond)
			r.mu.Lock()
			r.wake()
			r.mu.Unlock()
		case 8:
			for w := range waiters { // any
				r.mu.Lock()
				if r.queue.leave(w) {
					delete(waiters, w)
				}
				r.mu.Unlock()
				break
			}
		default:
			req := &Request{Model: names[rnd.IntN(len(names))], PromptSize: rnd.IntN(3)}
			if rnd.IntN(3) == 0 {
				req.Exclude = []string{peer}
			}
			if only := "p" + strconv.Itoa(rnd.IntN(8)); rnd.IntN(3) == 0 {
				req.May = func(p, _, _ string) bool { return p >= only }
			}
			w, s, err := r.enqueue(req, LeastLoaded{}, names[rnd.IntN(3)], 24)
			if w != nil {
				waiters[w] = true
			} else if err == nil {
				held = append(held, s)
			}
		}
		for w := range waiters {
			if len(w.served) > 0 {
				if res := <-w.served; res.err == nil {
					held = append(held, res.slot)
				}
				delete(waiters, w)
				continue
			}
			r.mu.Lock()
			s, err := r.acquire(w.req, w.sel)
			r.mu.Unlock()
			if err == nil {
				t.Fatalf("step %d: %+v waits, and there is a slot of %+v", i, w.req, s.Worker)
			}
		}
		if r.Waiting() != len(waiters) {
			t.Fatalf("step %d: %d wait, want %d", i, r.Waiting(), len(waiters))
		}
	}
}
