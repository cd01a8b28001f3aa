// SPDX-License-Identifier: Apache-2.0

package router

import "math/rand/v2"

// The share of requests that go to workers on probation while others have room. It grows
// with each of them that ends well and falls with each that fails: where most newcomers are
// honest they are soon known, and where most cheat they hardly get a task, whatever their
// number.
const (
	mostTrials  = 0.1
	leastTrials = 0.005
	trialGood   = 1.25
	trialBad    = 0.25
)

// SetProbation says whether little good is known of a worker: then it gets a small share of
// the requests, and what the others have no room for. See [Worker.Probation].
func (r *Router) SetProbation(peer string, on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.workers[peer]
	if !ok || e.Probation == on {
		return
	}
	r.count(e, -1)
	e.Probation = on
	r.count(e, 1)
	if e.online {
		e.moved()
	}
}

// count counts a worker that is online, or counts it no more.
func (r *Router) count(e *worker, by int) {
	switch {
	case !e.online:
	case e.Probation:
		r.newcomers += by
	default:
		r.proven += by
	}
}

// pick chooses one of the workers of a group, or -1, and reports whether that is a trial:
// one on probation that goes before others which have room. The policy is for those that
// are not, or for all where everybody is.
func (r *Router) pick(c *Choices, sel Selector) (i int, trial bool) {
	best := c.workers[0]
	switch {
	case r.newcomers == 0 || r.proven == 0 || best.state() != free || c.req.Peer != "":
		return c.choose(sel), false
	case best.Probation: // no other has room
		if i = c.newcomer(); i < 0 {
			i = c.choose(sel)
		}
		return i, false
	}
	// who was let down once is not sent to strangers again
	if len(c.req.Exclude) == 0 && rand.Float64() < r.trials {
		if i := c.newcomer(); i >= 0 {
			return i, true
		}
	}
	c.known = true
	i = c.choose(sel)
	c.known = false
	if i < 0 {
		i = c.newcomer()
	}
	return i, false
}

// newcomer returns the worker on probation to which this gateway has sent the least of what
// it runs, any of these; -1 for none. What it says of its load, and that it was never chosen,
// does not make it more likely: the one is its own word, and new names are free.
func (c *Choices) newcomer() int {
	found, n := -1, 0
	for i := range c.workers {
		if !c.workers[i].Probation || !c.Free(i) {
			continue
		}
		switch held := c.workers[i].inflight; {
		case found < 0 || held < c.workers[found].inflight:
			found, n = i, 1
		case held == c.workers[found].inflight:
			if n++; rand.IntN(n) == 0 {
				found = i
			}
		}
	}
	return found
}

// tried takes in how a trial went.
func (r *Router) tried(o Outcome) {
	switch o {
	case Succeeded:
		r.trials = min(mostTrials, r.trials*trialGood)
	case Failed:
		r.trials = max(leastTrials, r.trials*trialBad)
	}
}
