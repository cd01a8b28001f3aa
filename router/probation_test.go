// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
	"slices"
	"testing"
)

// TestProbation has one worker that is known and nine that are not: while it has room they get
// a share of the requests, which falls to nearly none when they fail, whatever the policy.
func TestProbation(t *testing.T) {
	const requests = 20_000
	for _, sel := range []Selector{LeastLoaded{}, PowerOfTwo{}, RoundRobin{}, Sticky{}} {
		for _, c := range []struct {
			outcome     Outcome
			least, most float64
		}{
			{Succeeded, 0.08, 0.12},
			{Unjudged, 0.003, 0.012},
			{Refused, 0.003, 0.012},
			{AgentFailed, 0.003, 0.012},
			{Failed, 0.003, 0.012},
		} {
			workers := []Worker{{Peer: "known", Model: "m", Tasks: 1, CPU: 99}}
			for i := range 9 {
				workers = append(workers, Worker{Peer: fmt.Sprint("new", i), Model: "m", Probation: true, MaxTasks: 1000})
			}
			r := newRouter(workers...)
			tried := make(map[string]int)
			for i := range requests {
				s, err := r.Acquire(&Request{Model: "m", Affinity: fmt.Sprint(i)}, sel)
				if err != nil {
					t.Fatal(err)
				}
				o := Succeeded
				if s.Worker.Probation {
					tried[s.Worker.Peer]++
					o = c.outcome
				}
				s.Release(o)
				r.workers[s.Worker.Peer].health = health{} // nobody rests
				r.workers[s.Worker.Peer].moved()
			}
			n := 0
			for _, k := range tried {
				n += k
			}
			if share := float64(n) / requests; share < c.least || share > c.most {
				t.Errorf("%T, outcome %d: newcomers got %.4f", sel, c.outcome, share)
			}
			if len(tried) != 9 {
				t.Errorf("%T, outcome %d: some were not tried: %v", sel, c.outcome, tried)
			}
		}
	}
}

// TestProbationIsNoBan sends requests to newcomers for which nobody else has room, and to
// those who are known no more.
// TestNewcomerNamedLikeModel wants an agent of a newcomer that has the name of a model not to
// get the requests for it, as long as proven workers offer the model. Lists say the same.
func TestNewcomerNamedLikeModel(t *testing.T) {
	proven, impostor := Worker{Peer: "good", Model: "llama", MaxTasks: 1, MaxPrompt: 1}, Worker{Peer: "new", Agent: "Llama", Model: "x", MaxPrompt: 1, Probation: true}
	of := func(workers ...Worker) (string, Tier, []Worker) {
		s, err := newRouter(workers...).Acquire(&Request{Model: "llama"}, first{})
		if err != nil {
			t.Fatal(err)
		}
		return s.Worker.Peer, s.Tier, Match(slices.Values(workers), Request{Model: "llama"}, func(w Worker) Worker { return w })
	}
	if peer, tier, list := of(impostor, proven); peer != "good" || tier != TierModel || len(list) != 1 || list[0].Peer != "good" {
		t.Errorf("beside a proven worker: %s, %s, %v", peer, tier, list)
	}
	proven.Probation = true
	if peer, tier, list := of(impostor, proven); peer != "new" || tier != TierAgent || len(list) != 1 || list[0].Peer != "new" {
		t.Errorf("among newcomers: %s, %s, %v", peer, tier, list)
	}
	impostor.Probation, proven.Probation = false, false
	if peer, tier, _ := of(impostor, proven); peer != "new" || tier != TierAgent {
		t.Errorf("among proven workers: %s, %s", peer, tier)
	}
}

func TestProbationIsNoBan(t *testing.T) {
	r := newRouter(Worker{Peer: "known", Model: "m", MaxTasks: 2}, Worker{Peer: "new", Model: "m", MaxTasks: 2, Probation: true})
	r.names["m"].models.trials = 0
	next := func(req Request) string {
		t.Helper()
		req.Model = "m"
		s, err := r.Acquire(&req, LeastLoaded{})
		if err != nil {
			return err.Error()
		}
		return s.Worker.Peer
	}
	for i, want := range []string{"known", "known", "new", "new", ErrBusy.Error()} {
		if got := next(Request{}); got != want {
			t.Errorf("request %d: %s, want %s", i, got, want)
		}
	}
	r = newRouter(Worker{Peer: "known", Model: "m"}, Worker{Peer: "new", Model: "m", Probation: true})
	r.names["m"].models.trials = 0
	for _, c := range []struct {
		req  Request
		want string
	}{
		{Request{Exclude: []string{"known"}}, "new"},
		{Request{Peer: "new"}, "new"},
		{Request{}, "known"},
		{Request{}, "known"},
	} {
		if got := next(c.req); got != c.want {
			t.Errorf("%+v: %s", c.req, got)
		}
	}
	r.SetProbation("new", false)
	r.SetProbation("nobody", true)
	if got := next(Request{}); got != "new" { // it has less to do
		t.Errorf("it is known now: %s", got)
	}
	r.SetProbation("new", true)
	r.Bar("new")
	if len(r.names["m"].models.newcomers) != 0 {
		t.Errorf("%d newcomers", len(r.names["m"].models.newcomers))
	}
	r.Update(Worker{Peer: "new", Model: "m", MaxTasks: 4, Probation: true})
	r.Update(Worker{Peer: "new", Agent: "a", Model: "m", MaxTasks: 4, Probation: true})
	if len(r.names["m"].models.newcomers) != 1 {
		t.Errorf("%d newcomers", len(r.names["m"].models.newcomers))
	}
	r.names["m"].models.trials = 1
	if got := next(Request{Exclude: []string{"x"}}); got != "known" {
		t.Errorf("who was let down is tried out again: %s", got)
	}
	r.Remove("new")
	if len(r.names["m"].models.newcomers) != 0 {
		t.Errorf("%d newcomers", len(r.names["m"].models.newcomers))
	}
}

// TestTrialsAtOnce has newcomers keep silent: few requests at a time hang there.
func TestTrialsAtOnce(t *testing.T) {
	r := newRouter(Worker{Peer: "known", Model: "m", MaxTasks: 10_000}, Worker{Peer: "new", Model: "m", MaxTasks: 100_000, Probation: true})
	trials := 0
	for range 5000 {
		if pick(t, r, LeastLoaded{}, Request{Model: "m"}).Trial {
			trials++
		}
	}
	if trials != mostTrying {
		t.Errorf("%d trials at a time", trials)
	}
}

// TestTrialsByName has the newcomers of one model fail: those of others are tried as before.
func TestTrialsByName(t *testing.T) {
	r := New()
	for _, m := range []string{"bad", "good"} {
		r.Update(Worker{Peer: "known " + m, Model: m, MaxTasks: 4})
		r.Update(Worker{Peer: "new " + m, Model: m, MaxTasks: 4, Probation: true})
	}
	got := make(map[string]int)
	for i := range 10_000 {
		m := []string{"bad", "good"}[i%2]
		s := pick(t, r, LeastLoaded{}, Request{Model: m})
		o := Succeeded
		if s.Trial {
			got[m]++
			if m == "bad" {
				o = AgentFailed
			}
		}
		s.Release(o)
		r.workers[s.Worker.Peer].health = health{}
		r.workers[s.Worker.Peer].moved()
	}
	if got["good"] < 400 || got["bad"] > 100 {
		t.Errorf("of 5,000 requests for each, newcomers got %v", got)
	}
}

// TestNewNames has newcomers come back under new names all the time: they are not chosen before
// those that wait, and who did well is tried again soon.
func TestNewNames(t *testing.T) {
	r := New()
	add := func(peer string) {
		r.Update(Worker{Peer: peer, Model: "m", MaxTasks: 4, Probation: true})
	}
	for i := range 10 {
		add(fmt.Sprint("waits", i))
		add(fmt.Sprint("renames", i))
	}
	names, renamed := 10, 0
	for range 10_000 {
		s := pick(t, r, LeastLoaded{}, Request{Model: "m"})
		s.Release(Unjudged)
		if p := s.Worker.Peer; p[0] == 'r' {
			renamed++
			r.Remove(p)
			add(fmt.Sprint("renames", names))
			names++
		}
	}
	if renamed < 4500 || renamed > 5500 {
		t.Errorf("of 10,000 requests, half of the workers got %d under new names", renamed)
	}
	tries, good := 0, "waits0"
	s := pick(t, r, LeastLoaded{}, Request{Peer: good})
	s.Release(Succeeded)
	for range 1000 {
		s := pick(t, r, LeastLoaded{}, Request{Model: "m"})
		o := Unjudged
		if s.Worker.Peer == good {
			tries, o = tries+1, Succeeded
		}
		s.Release(o)
	}
	if tries < 250 || tries > 450 { // 10 of 29
		t.Errorf("who did well got %d of 1,000 requests", tries)
	}
}

// TestSlotsBelieved has a worker announce room without end: it holds no more than it has done
// well at one time while others have room, and what they have none for.
func TestSlotsBelieved(t *testing.T) {
	for _, probation := range []bool{false, true} {
		r := New()
		for i := range 20 {
			r.Update(Worker{Peer: fmt.Sprint("honest", i), Model: "m", MaxTasks: 4, CPU: 9, Probation: probation})
		}
		r.Update(Worker{Peer: "thief", Model: "m", MaxTasks: 100_000, Probation: probation})
		held := func(n int) int {
			for range n {
				pick(t, r, LeastLoaded{}, Request{Model: "m"})
			}
			return r.workers["thief"].inflight
		}
		if got := held(80); got > firstSlots {
			t.Errorf("probation %v: it holds %d of 80 tasks", probation, got)
		}
		if got := held(500); got < 500 {
			t.Errorf("probation %v: it holds %d tasks for which nobody else has room", probation, got)
		}
	}
	// with each task done well while it is busy it is believed more, and less with others
	r := newRouter(Worker{Peer: "a", Model: "m", MaxTasks: 100})
	var held []Slot
	for range 60 {
		held = append(held, pick(t, r, LeastLoaded{}, Request{Model: "m"}))
	}
	for i := range held[:20] {
		held[i].Release(Succeeded)
	}
	if got := r.workers["a"].slots; got != firstSlots+20 {
		t.Errorf("%d slots are believed", got)
	}
	held[20].Release(Unjudged)
	held[21].Release(AgentFailed)
	held[22].Release(Failed)
	if got := r.workers["a"].slots; got != (firstSlots+20-2)/2 {
		t.Errorf("%d slots are believed", got)
	}
	for i := range held {
		held[i].Release(Failed)
	}
	if got := r.workers["a"].slots; got != firstSlots {
		t.Errorf("%d slots are believed", got)
	}
}

// BenchmarkTrials picks where all but one are newcomers, which has room or has none.
func BenchmarkTrials(b *testing.B) {
	for _, slots := range []int{0, 1_000_000_000} {
		for _, n := range []int{100, 10_000} {
			b.Run(fmt.Sprintf("%d/%d", slots, n), func(b *testing.B) {
				r := New()
				r.Update(Worker{Peer: "known", Model: "m", MaxTasks: slots})
				for i := range n {
					r.Update(Worker{Peer: fmt.Sprint("new", i), Model: "m", MaxTasks: 4, Probation: true})
				}
				req := &Request{Model: "m"}
				b.ReportAllocs()
				for b.Loop() {
					s, err := r.Acquire(req, LeastLoaded{})
					if err != nil {
						b.Fatal(err)
					}
					s.Release(Succeeded)
				}
			})
		}
	}
}
