// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"testing"
	"time"
)

// clock is a time that the test sets.
type clock struct{ t time.Time }

func (c *clock) now() time.Time       { return c.t }
func (c *clock) pass(d time.Duration) { c.t = c.t.Add(d) }

func timedRouter(workers ...Worker) (*Router, *clock) {
	r, c := newRouter(workers...), &clock{time.Unix(1e9, 0)}
	r.now = c.now
	return r, c
}

// TestRest follows two workers of which one breaks.
func TestRest(t *testing.T) {
	a, b := Worker{Peer: "a", Model: "m"}, Worker{Peer: "b", Model: "m", CPU: 50}
	r, c := timedRouter(a, b)
	use := func(want string, o Outcome) {
		t.Helper()
		s := pick(t, r, LeastLoaded{}, Request{Model: "m"})
		if s.Worker.Peer != want {
			t.Errorf("got %s, want %s", s.Worker.Peer, want)
		}
		s.Release(o)
	}
	use("a", Failed)
	use("b", Succeeded) // a rests
	c.pass(firstRest)
	use("a", Failed) // it is tried again, and rests for longer
	c.pass(firstRest)
	use("b", Succeeded)
	c.pass(firstRest)
	use("a", Succeeded) // well again
	use("a", Failed)
	use("b", Unjudged)
	c.pass(firstRest) // as the first time
	use("a", Unjudged)
	use("a", AgentFailed) // which may be the prompt's fault
	use("a", AgentFailed)
	use("a", AgentFailed) // hardly thrice in a row
	use("b", Succeeded)
	for range 20 { // it never rests for longer than the longest rest
		s := pick(t, r, LeastLoaded{}, Request{Peer: "a"}) // a pin is obeyed
		s.Release(Failed)
	}
	use("b", Succeeded)
	c.pass(longestRest)
	use("a", Succeeded)
}

// TestLastResort wants a worker that rests to be tried when there is no other, by
// one request at a time.
func TestLastResort(t *testing.T) {
	a, b := Worker{Peer: "a", Model: "m"}, Worker{Peer: "b", Model: "m", MaxTasks: 1, CPU: 50}
	r, _ := timedRouter(a, b)
	first := pick(t, r, LeastLoaded{}, Request{Model: "m"})
	first.Release(Failed)
	full := pick(t, r, LeastLoaded{}, Request{Model: "m"})
	if full.Worker.Peer != "b" {
		t.Fatalf("got %s", full.Worker.Peer)
	}
	if _, err := r.Acquire(&Request{Model: "m"}, LeastLoaded{}); !errors.Is(err, ErrBusy) {
		t.Errorf("one rests, one is full: got %v, want ErrBusy", err)
	}
	r.Remove("b")
	try := pick(t, r, LeastLoaded{}, Request{Model: "m"})
	if _, err := r.Acquire(&Request{Model: "m"}, LeastLoaded{}); !errors.Is(err, ErrBusy) {
		t.Errorf("a second try at once: got %v, want ErrBusy", err)
	}
	try.Release(Succeeded)
	full.Release(Succeeded)
	for range 4 {
		pick(t, r, LeastLoaded{}, Request{Model: "m"})
	}
}

// TestAgentFailures wants prompts that make agents fail to move the load, and to
// take no worker from others.
func TestAgentFailures(t *testing.T) {
	a, b := Worker{Peer: "a", Model: "m"}, Worker{Peer: "b", Model: "m", MaxTasks: 1, CPU: 50}
	r, _ := timedRouter(a, b)
	for range 20 {
		s := pick(t, r, LeastLoaded{}, Request{Peer: "a"})
		s.Release(AgentFailed)
	}
	if s := pick(t, r, LeastLoaded{}, Request{Model: "m"}); s.Worker.Peer != "b" {
		t.Errorf("got %s, whose agent fails", s.Worker.Peer)
	}
	for range 4 { // b is full
		if s := pick(t, r, LeastLoaded{}, Request{Model: "m"}); s.Worker.Peer != "a" {
			t.Errorf("got %s", s.Worker.Peer)
		}
	}
}

// TestRefusedThenDone wants a worker that refused to get tasks again when one there has
// ended: its slot is free, whatever the next telemetry says.
func TestRefusedThenDone(t *testing.T) {
	r, _ := timedRouter(Worker{Peer: "a", Model: "m", MaxTasks: 2})
	first := pick(t, r, LeastLoaded{}, Request{Model: "m"})
	second := pick(t, r, LeastLoaded{}, Request{Model: "m"})
	second.Report(3) // the worker runs one of another gateway's, too
	second.Release(Refused)
	if _, err := r.Acquire(&Request{Model: "m"}, LeastLoaded{}); err != ErrBusy {
		t.Fatalf("it is full: got %v", err)
	}
	first.Release(Succeeded)
	s := pick(t, r, LeastLoaded{}, Request{Model: "m"})
	if _, err := r.Acquire(&Request{Model: "m"}, LeastLoaded{}); err != ErrBusy {
		t.Errorf("only one slot was free: got %v", err)
	}
	s.Release(Succeeded)
}

// TestRestSurvives wants a worker that breaks and comes back at once to rest all
// the same, and to be forgotten in the end.
func TestRestSurvives(t *testing.T) {
	a, b := Worker{Peer: "a", Model: "m", MaxTasks: 4, MaxPrompt: 1}, Worker{Peer: "b", Model: "m", CPU: 50}
	r, c := timedRouter(a, b)
	s := pick(t, r, LeastLoaded{}, Request{Model: "m"})
	r.Remove("a")
	s.Release(Failed)
	r.Update(a)
	if s := pick(t, r, LeastLoaded{}, Request{Model: "m"}); s.Worker.Peer != "b" {
		t.Errorf("got %s, which rests", s.Worker.Peer)
	}
	r.Remove("a")
	c.pass(longestRest)
	_, _ = r.Acquire(&Request{Model: "x"}, LeastLoaded{})
	if len(r.workers) != 1 || len(r.resting) != 0 {
		t.Errorf("%d workers and %d rests are still known", len(r.workers), len(r.resting))
	}
}

// TestRefused wants a worker that refused a task to get none until its next
// telemetry, or for a while.
func TestRefused(t *testing.T) {
	w := Worker{Peer: "a", Model: "m", MaxTasks: 4, MaxPrompt: 1}
	r, c := timedRouter(w)
	refuse := func() {
		t.Helper()
		s := pick(t, r, LeastLoaded{}, Request{Model: "m"})
		s.Release(Refused)
		if _, err := r.Acquire(&Request{Model: "m"}, LeastLoaded{}); !errors.Is(err, ErrBusy) {
			t.Errorf("got %v, want ErrBusy", err)
		}
	}
	refuse()
	r.Update(w)
	refuse()
	c.pass(refusedRest)
	refuse()
}

// TestHere wants who waits for a worker to learn that it went.
func TestHere(t *testing.T) {
	w := Worker{Peer: "a", Model: "m", Agent: "x", MaxTasks: 4, MaxPrompt: 1}
	r := newRouter(w)
	s := pick(t, r, LeastLoaded{}, Request{Model: "m"})
	w.Agent = "y"
	r.Update(w)
	if s.Here.Err() != nil {
		t.Error("it has a new name, and has not gone")
	}
	r.Bar("a")
	if s.Here.Err() != nil {
		t.Error("it is barred, and has not gone")
	}
	if _, err := r.Acquire(&Request{Model: "m"}, LeastLoaded{}); err == nil {
		t.Error("it is barred, and chosen")
	}
	r.Remove("a")
	if s.Here.Err() == nil {
		t.Error("it has gone")
	}
	r.Update(w)
	if s := pick(t, r, LeastLoaded{}, Request{Model: "y"}); s.Here.Err() != nil {
		t.Error("it is back")
	}
}

// TestRestOfGoneWorker wants what a worker that went has left behind to do nothing
// to the one that is back under its id.
func TestRestOfGoneWorker(t *testing.T) {
	w := Worker{Peer: "a", Model: "m", MaxTasks: 4, MaxPrompt: 1}
	r, c := timedRouter(w)
	s := pick(t, r, LeastLoaded{}, Request{Model: "m"})
	s.Release(Refused)
	r.Remove("a")
	r.Update(w)
	c.pass(refusedRest)
	_, _ = r.Acquire(&Request{Model: "x"}, LeastLoaded{}) // the rest ends
	pick(t, r, LeastLoaded{}, Request{Model: "a"})
	r.Update(w)
	r.Remove("a")
	if _, err := r.Acquire(&Request{Model: "m"}, LeastLoaded{}); !errors.Is(err, ErrNoMatch) {
		t.Errorf("it went: got %v, want ErrNoMatch", err)
	}
}
