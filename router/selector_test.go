// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"testing"
)

// pick takes a slot and returns whose.
func pick(t *testing.T, r *Router, sel Selector, req Request) Slot {
	t.Helper()
	s, err := r.Acquire(&req, sel)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLeastLoaded(t *testing.T) {
	w := func(peer string, load, slots int, cpu float64) Worker {
		return Worker{Peer: peer, Model: "m", Tasks: load, MaxTasks: slots, CPU: cpu}
	}
	for name, c := range map[string]struct {
		workers []Worker
		want    string
	}{
		"one":               {[]Worker{w("a", 3, 4, 99)}, "a"},
		"share, not number": {[]Worker{w("a", 1, 2, 0), w("b", 3, 8, 90)}, "b"},
		"CPU breaks ties":   {[]Worker{w("a", 1, 4, 50), w("b", 2, 8, 20), w("c", 1, 4, 30)}, "b"},
		"not a full one":    {[]Worker{w("a", 4, 4, 0), w("b", 7, 8, 90)}, "b"},
	} {
		if s := pick(t, newRouter(c.workers...), LeastLoaded{}, Request{Model: "m"}); s.Worker.Peer != c.want {
			t.Errorf("%s: got %s, want %s", name, s.Worker.Peer, c.want)
		}
	}
	// of equals each in turn, however long that goes on
	idle := newRouter(w("a", 0, 4, 1), w("b", 0, 4, 1), w("c", 0, 4, 1))
	used := make(map[string]int)
	for range 300 {
		s := pick(t, idle, LeastLoaded{}, Request{Model: "m"})
		used[s.Worker.Peer]++
		s.Release(Succeeded)
	}
	if used["a"] != 100 || used["b"] != 100 || used["c"] != 100 {
		t.Errorf("of 300 tasks three idle workers got %v", used)
	}
	// different routers choose differently
	seen := make(map[string]int)
	for range 300 {
		r := newRouter(w("a", 0, 4, 1), w("b", 0, 4, 1), w("c", 0, 4, 1))
		seen[pick(t, r, LeastLoaded{}, Request{Model: "m"}).Worker.Peer]++
	}
	for _, p := range []string{"a", "b", "c"} {
		if seen[p] < 50 {
			t.Errorf("%s was chosen %d times of 300", p, seen[p])
		}
	}
}

// TestLeast compares the heap with a search, over random changes.
func TestLeast(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	r := New()
	var held []Slot
	for range 20_000 {
		peer := "p" + strconv.Itoa(rnd.IntN(40))
		switch rnd.IntN(10) {
		case 0:
			r.Remove(peer)
		case 1, 2, 3:
			r.Update(Worker{Peer: peer, Agent: "a" + strconv.Itoa(rnd.IntN(3)), Model: "m" + strconv.Itoa(rnd.IntN(3)),
				Tasks: rnd.IntN(4), MaxTasks: 1 + rnd.IntN(4), CPU: float64(rnd.IntN(3)), Busy: rnd.IntN(5) == 0, MaxPrompt: 1})
		case 4, 5, 6:
			if len(held) > 0 {
				i := rnd.IntN(len(held))
				held[i].Release(Outcome(rnd.IntN(5)))
				held[i] = held[len(held)-1]
				held = held[:len(held)-1]
			}
		default:
			req := Request{Model: "m" + strconv.Itoa(rnd.IntN(3)), PromptSize: 1}
			best := searchLeast(r, req.Model)
			s, err := r.Acquire(&req, LeastLoaded{})
			switch {
			case err == nil && best != nil && s.Worker.Peer != best.Peer:
				t.Fatalf("got %s, want %s", s.Worker.Peer, best.Peer)
			case err != nil && best != nil:
				t.Fatalf("got %v, want %s", err, best.Peer)
			}
			if err == nil {
				held = append(held, s)
			}
		}
	}
	for i := range held {
		held[i].Release(Unjudged)
	}
	for p, e := range r.workers {
		if e.inflight != 0 {
			t.Errorf("%s: %d slots are still held", p, e.inflight)
		}
	}
}

// before reports whether a goes before b.
func before(a, b *worker) bool {
	of, than := a.rank(), b.rank()
	return of.less(&than)
}

// searchLeast returns the worker that goes before all others of a model; nil when
// none is free.
func searchLeast(r *Router, model string) *worker {
	r.wake()
	var best *worker
	for _, e := range r.workers {
		if e.online && e.Model == model && e.state() == free && (best == nil || before(e, best)) {
			best = e
		}
	}
	return best
}

func TestRoundRobin(t *testing.T) {
	r := newRouter(Worker{Peer: "a", Model: "m", CPU: 90}, Worker{Peer: "b", Model: "m"}, Worker{Peer: "c", Model: "m", Tasks: 2})
	seen := make(map[string]int)
	for range 9 {
		s := pick(t, r, RoundRobin{}, Request{Model: "m"})
		seen[s.Worker.Peer]++
		s.Release(Succeeded)
	}
	if fmt.Sprint(seen) != "map[a:3 b:3 c:3]" {
		t.Errorf("got %v", seen)
	}
}

func TestPowerOfTwo(t *testing.T) {
	r := New()
	for i := range 10 {
		r.Update(Worker{Peer: "p" + strconv.Itoa(i), Model: "m", Tasks: i % 2 * 8, MaxTasks: 8, MaxPrompt: 1})
	}
	// half of them are full: every request still finds a place, also the last
	for range 5 * 8 {
		if s := pick(t, r, PowerOfTwo{}, Request{Model: "m"}); s.Worker.Tasks == 8 {
			t.Fatalf("%s is full", s.Worker.Peer)
		}
	}
	if _, err := r.Acquire(&Request{Model: "m"}, PowerOfTwo{}); err != ErrBusy {
		t.Errorf("got %v, want ErrBusy", err)
	}
}

func TestSticky(t *testing.T) {
	const workers = 10
	build := func(n int) *Router {
		r := New()
		for i := range n {
			r.Update(Worker{Peer: "p" + strconv.Itoa(i), Model: "m", MaxTasks: 8, MaxPrompt: 1})
		}
		return r
	}
	where := func(r *Router, session string) string {
		s := pick(t, r, Sticky{}, Request{Model: "m", Affinity: session})
		defer s.Release(Succeeded)
		return s.Worker.Peer
	}
	a, b, more := build(workers), build(workers), build(workers+1)
	seen, moved := make(map[string]int), 0
	for i := range 500 {
		session := "session " + strconv.Itoa(i)
		p := where(a, session)
		seen[p]++
		if again, other := where(a, session), where(b, session); again != p || other != p {
			t.Fatalf("%s went to %s, then to %s, and of another gateway to %s", session, p, again, other)
		}
		if q := where(more, session); q != p {
			if moved++; q != "p10" {
				t.Errorf("%s moved from %s to %s", session, p, q)
			}
		}
	}
	if len(seen) != workers {
		t.Errorf("used %v", seen)
	}
	if moved == 0 || moved > 120 {
		t.Errorf("%d of 500 moved to the eleventh worker", moved)
	}
	// one session does not fill its worker while others idle
	count := make(map[string]int)
	for range 16 {
		count[pick(t, a, Sticky{}, Request{Model: "m", Affinity: "busy"}).Worker.Peer]++
	}
	if len(count) < 3 {
		t.Errorf("one session went to %v", count)
	}
}

// wild answers nonsense.
type wild struct{ n int }

func (w wild) Select(*Choices) int { return w.n }

// TestSelectorFaults wants a selector's mistakes to do no harm.
func TestSelectorFaults(t *testing.T) {
	for _, n := range []int{-1, 0, 1, 2, 99} {
		r := newRouter(Worker{Peer: "a", Model: "m", Tasks: 4}, Worker{Peer: "b", Model: "m"})
		if s := pick(t, r, wild{n}, Request{Model: "m"}); s.Worker.Peer != "b" {
			t.Errorf("%d: got %s, which is full", n, s.Worker.Peer)
		}
	}
}

// TestNoAllocation holds for the choice by an index.
func TestNoAllocation(t *testing.T) {
	r := benchRouter(1000)
	for name, sel := range policies {
		req := &Request{Model: "Model 7", PromptSize: 1, Affinity: "x"}
		if n := testing.AllocsPerRun(100, func() {
			s, err := r.Acquire(req, sel)
			if err != nil {
				t.Fatal(err)
			}
			s.Release(Succeeded)
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

var policies = map[string]Selector{
	"least_loaded": LeastLoaded{}, "power_of_two": PowerOfTwo{}, "round_robin": RoundRobin{}, "sticky": Sticky{},
}

// benchRouter returns a router of n workers: 50 models, each with 20 agents.
func benchRouter(n int) *Router {
	r := New()
	for i := range n {
		r.Update(benchWorker(i))
	}
	return r
}

func benchWorker(i int) Worker {
	return Worker{Peer: "12D3KooW" + strconv.Itoa(i), Agent: "Agent " + strconv.Itoa(i%1000), Model: "model " + strconv.Itoa(i%50),
		MaxTasks: 8, CPU: float64(i % 100), MaxPrompt: 1 << 20}
}

// BenchmarkDecide only decides: the load of nobody changes.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{1000, 100_000} {
		r := benchRouter(n)
		reqs := make([]Request, 50)
		for i := range reqs {
			reqs[i] = Request{Model: fmt.Sprintf("model %d", i), PromptSize: 1}
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				r.mu.Lock()
				_, _, _, err := r.decide(&reqs[i%len(reqs)], LeastLoaded{})
				r.mu.Unlock()
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkPick takes and releases a slot.
func BenchmarkPick(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		r := benchRouter(n)
		for _, by := range []struct{ name, model string }{
			{"peer", "12D3KooW42"}, {"agent", "Agent 42"}, {"model", "model 7"},
		} {
			for _, policy := range []string{"least_loaded", "power_of_two", "round_robin", "sticky"} {
				if by.name != "model" && policy != "least_loaded" {
					continue
				}
				b.Run(fmt.Sprintf("%d/%s/%s", n, by.name, policy), func(b *testing.B) {
					req := &Request{Model: by.model, PromptSize: 1, Affinity: "session"}
					b.ReportAllocs()
					for b.Loop() {
						s, err := r.Acquire(req, policies[policy])
						if err != nil {
							b.Fatal(err)
						}
						s.Release(Succeeded)
					}
				})
			}
		}
	}
}

// BenchmarkPickScan is what it is measured against: a look at each worker.
func BenchmarkPickScan(b *testing.B) {
	const n = 100_000
	r := benchRouter(n)
	var all []*worker
	for _, e := range r.workers {
		all = append(all, e)
	}
	for b.Loop() {
		var best *worker
		for _, e := range all {
			if e.Model == "model 7" && e.state() == free && (best == nil || before(e, best)) {
				best = e
			}
		}
		if best == nil {
			b.Fatal("none")
		}
	}
}

// BenchmarkPickUpdated picks while telemetry arrives all the time.
func BenchmarkPickUpdated(b *testing.B) {
	const n = 100_000
	r := benchRouter(n)
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; !stop.Load(); i++ {
			w := benchWorker(i % n)
			w.Tasks, w.CPU = i%8, float64(i%90)
			r.Update(w)
		}
	}()
	req := &Request{Model: "model 7", PromptSize: 1}
	b.ReportAllocs()
	for b.Loop() {
		s, err := r.Acquire(req, LeastLoaded{})
		if err != nil {
			b.Fatal(err)
		}
		s.Release(Succeeded)
	}
	stop.Store(true)
	<-done
}

func BenchmarkUpdate(b *testing.B) {
	const n = 100_000
	r := benchRouter(n)
	workers := make([]Worker, n)
	for i := range workers {
		workers[i] = benchWorker(i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		w := workers[i%n]
		w.Tasks, w.CPU = i%8, float64(i%90)
		r.Update(w)
	}
}
