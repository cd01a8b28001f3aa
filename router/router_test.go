// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"
)

// first chooses the first candidate: the one with the lowest peer id.
type first struct{}

func (first) Select(c *Choices) int {
	best := -1
	for i := range c.Len() {
		if c.Free(i) && (best < 0 || c.Worker(i).Peer < c.Worker(best).Peer) {
			best = i
		}
	}
	return best
}

func newRouter(workers ...Worker) *Router {
	r := New()
	for _, w := range workers {
		if w.MaxTasks == 0 {
			w.MaxTasks = 4
		}
		if w.MaxPrompt == 0 {
			w.MaxPrompt = 100
		}
		r.Update(w)
	}
	return r
}

func TestMatch(t *testing.T) {
	r := newRouter(
		Worker{Peer: "p1", Agent: "HR Assistant", Model: "llama3.2"},
		Worker{Peer: "p2", Agent: "llama3.2", Model: "mistral"},
		Worker{Peer: "p3", Agent: "p1", Model: "mistral"},
		Worker{Peer: "p4", Agent: "Over", Model: "Full", Tasks: 4},
		Worker{Peer: "p5", Agent: "Other", Model: "over"},
		Worker{Peer: "p6", Agent: "Slow", Model: "gpu", Busy: true},
	)
	for _, c := range []struct {
		req  Request
		want string
		err  error
	}{
		{req: Request{Model: "p1"}, want: "p1"},                       // a peer id goes before an agent's name
		{req: Request{Model: " hr assistant\n"}, want: "p1"},          // any case, trimmed
		{req: Request{Model: "LLAMA3.2"}, want: "p2"},                 // an agent's name goes before a model
		{req: Request{Model: "mistral"}, want: "p2"},                  // a model
		{req: Request{Model: "over"}, err: ErrBusy},                   // a full tier does not fall to the next
		{req: Request{Model: "gpu"}, err: ErrBusy},                    // busy for a reason of its own
		{req: Request{Model: "P1"}, want: "p3"},                       // peer ids are exact
		{req: Request{Model: "nobody"}, err: ErrNoMatch},              //
		{req: Request{Model: ""}, err: ErrNoMatch},                    //
		{req: Request{Peer: "p3", Model: "p1"}, want: "p3"},           // pinned
		{req: Request{Peer: "mistral"}, err: ErrNoMatch},              // a pin is a peer id
		{req: Request{Model: "mistral", PromptSize: 100}, want: "p2"}, //
		{req: Request{Model: "mistral", PromptSize: 101}, err: ErrPromptTooLong},
		{req: Request{Model: "mistral", Exclude: []string{"p2"}}, want: "p3"},
		{req: Request{Model: "mistral", Exclude: []string{"p2", "p3"}}, err: ErrExcluded},
	} {
		slot, err := r.Acquire(&c.req, first{})
		if !errors.Is(err, c.err) {
			t.Errorf("%+v: error %v, want %v", c.req, err, c.err)
			continue
		}
		if err == nil {
			if slot.Worker.Peer != c.want {
				t.Errorf("%+v: got %s, want %s", c.req, slot.Worker.Peer, c.want)
			}
			slot.Release(Succeeded)
		}
	}
}

// TestPromptLimits wants workers that take the prompt to be preferred to those
// that do not, and the right reason when the ones that do are full.
func TestPromptLimits(t *testing.T) {
	r := newRouter(
		Worker{Peer: "a", Model: "m", MaxPrompt: 10},
		Worker{Peer: "b", Model: "m", MaxPrompt: 1000, MaxTasks: 1},
	)
	slot, err := r.Acquire(&Request{Model: "m", PromptSize: 11}, first{})
	if err != nil || slot.Worker.Peer != "b" {
		t.Fatalf("got %+v, %v", slot, err)
	}
	if _, err := r.Acquire(&Request{Model: "m", PromptSize: 11}, first{}); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v, want ErrBusy", err)
	}
}

// TestLoad follows one worker through reports and tasks of our own.
func TestLoad(t *testing.T) {
	w := Worker{Peer: "p", Model: "m", MaxTasks: 3, MaxPrompt: 1}
	r, c := timedRouter(w)
	acquire := func() Slot {
		t.Helper()
		s, err := r.Acquire(&Request{Model: "m"}, first{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	full := func() {
		t.Helper()
		if _, err := r.Acquire(&Request{Model: "m"}, first{}); !errors.Is(err, ErrBusy) {
			t.Fatalf("got %v, want ErrBusy", err)
		}
	}
	slots := []Slot{acquire(), acquire(), acquire()}
	full()
	r.Update(w) // a report from before the burst arrived after it
	full()
	w.Tasks = 3 // the report that knows of the burst
	r.Update(w)
	full()
	slots[0].Release(Succeeded)
	slots[0].Release(Succeeded) // once is enough
	slots[0] = acquire()
	full()
	for i := range slots {
		slots[i].Release(Succeeded)
	}
	c.pass(3 * reportDelay)
	w.Tasks = 2 // somebody else's
	r.Update(w)
	e := acquire()
	full()
	e.Release(Succeeded)
}

// TestLateReport has a report come that was made before the end of a task whose end was
// heard already: the slot of that is free, though the report counts it.
func TestLateReport(t *testing.T) {
	w := Worker{Peer: "p", Model: "m", MaxTasks: 1, MaxPrompt: 1}
	r, c := timedRouter(w)
	w.Tasks = 1
	for _, spell := range []time.Duration{0, reportDelay / 2, reportDelay + 1, 0, 10 * reportDelay, reportDelay} {
		s, err := r.Acquire(&Request{Model: "m"}, first{})
		if err != nil {
			t.Fatal(err)
		}
		s.Release(Succeeded)
		c.pass(spell)
		late := spell > 2*reportDelay
		if r.Update(w); late {
			if _, err := r.Acquire(&Request{Model: "m"}, first{}); !errors.Is(err, ErrBusy) {
				t.Errorf("a report after %v: got %v, want ErrBusy", spell, err)
			}
			w.Tasks = 0
			r.Update(w)
			w.Tasks = 1
		}
	}
}

// TestRemove wants the slots of a worker that comes and goes to be counted.
func TestRemove(t *testing.T) {
	w := Worker{Peer: "p", Model: "m", MaxTasks: 1, MaxPrompt: 1}
	r := newRouter(w)
	s, _ := r.Acquire(&Request{Model: "m"}, first{})
	r.Remove("p")
	if _, err := r.Acquire(&Request{Model: "m"}, first{}); !errors.Is(err, ErrNoMatch) {
		t.Errorf("removed: got %v, want ErrNoMatch", err)
	}
	r.Update(w)
	if _, err := r.Acquire(&Request{Model: "m"}, first{}); !errors.Is(err, ErrBusy) {
		t.Errorf("back, with its task running: got %v, want ErrBusy", err)
	}
	r.Remove("p")
	s.Release(Succeeded)
	r.Remove("p")
	r.Remove("unknown")
	if len(r.workers)+len(r.names) != 0 {
		t.Errorf("%d workers are still known", len(r.workers))
	}
}

// TestBurst sends as many tasks at once as there are slots: each worker gets as
// many as it takes, and none is refused.
func TestBurst(t *testing.T) {
	const workers, slots = 8, 8
	r := New()
	for i := range workers {
		r.Update(Worker{Peer: "p" + strconv.Itoa(i), Model: "m", MaxTasks: slots, MaxPrompt: 1, CPU: float64(i)})
	}
	var wg sync.WaitGroup
	got := make(chan string, workers*slots)
	for range workers * slots {
		wg.Go(func() {
			s, err := r.Acquire(&Request{Model: "m"}, LeastLoaded{})
			if err != nil {
				t.Error(err)
				return
			}
			got <- s.Worker.Peer
		})
	}
	wg.Wait()
	close(got)
	count := make(map[string]int)
	for p := range got {
		count[p]++
	}
	for p, n := range count {
		if n != slots {
			t.Errorf("%s got %d tasks, want %d", p, n, slots)
		}
	}
}
