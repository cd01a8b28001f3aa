// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

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
