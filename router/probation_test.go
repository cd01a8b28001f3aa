// SPDX-License-Identifier: Apache-2.0

package router

import (
	"fmt"
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
			{Unjudged, 0.08, 0.12},
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
func TestProbationIsNoBan(t *testing.T) {
	r := newRouter(Worker{Peer: "known", Model: "m", MaxTasks: 2}, Worker{Peer: "new", Model: "m", MaxTasks: 2, Probation: true})
	r.trials = 0
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
	r.trials = 0
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
	if r.newcomers != 0 {
		t.Errorf("%d newcomers", r.newcomers)
	}
	r.Update(Worker{Peer: "new", Model: "m", MaxTasks: 4, Probation: true})
	r.Update(Worker{Peer: "new", Agent: "a", Model: "m", MaxTasks: 4, Probation: true})
	if r.newcomers != 1 {
		t.Errorf("%d newcomers", r.newcomers)
	}
	r.trials = 1
	if got := next(Request{Exclude: []string{"x"}}); got != "known" {
		t.Errorf("who was let down is tried out again: %s", got)
	}
	r.Remove("new")
	if r.newcomers != 0 {
		t.Errorf("%d newcomers", r.newcomers)
	}
}
