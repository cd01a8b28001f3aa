// SPDX-License-Identifier: Apache-2.0

package router

import "math/rand/v2"

// The share of requests for a name that go to its workers on probation while others have room.
// It grows with each of them that ends well, and falls with each other one, most with those
// that fail: where most newcomers are honest they are soon known, and where most cheat they
// hardly get a task, whatever their number.
const (
	mostTrials  = 0.1
	leastTrials = 0.005
	trialGood   = 1.25
	trialLost   = 0.9 // it says nothing, or the worker is full
	trialPoor   = 0.5 // the agent failed
	trialBad    = 0.25

	// mostTrying bounds the trials of a name at one time: a newcomer may keep silent for long.
	mostTrying = 4
	// promising is how much more likely those are to be tried again that did the last task
	// well.
	promising = 10
)

// How many slots are believed of a worker: more than it has filled here before it only gets
// where others have no room. What it announces is its own word.
const (
	firstSlots = 4
	mostSlots  = 1 << 20
)

// SetProbation says whether little good is known of a worker: then it gets a small share of
// the requests, and what the others have no room for. See [Worker.Probation].
func (r *Router) SetProbation(peer string, on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.workers[peer]
	switch {
	case !ok || e.Probation == on:
	case e.online:
		r.unlist(e)
		e.Probation = on
		r.list(e)
	default:
		e.Probation = on
	}
}

// pick chooses one of the workers of a name, or none, and reports whether that is a trial: one
// on probation that goes before others which have room. The policy is for those that are not;
// a newcomer is the one to which this gateway has sent the least of what it runs, any of
// these.
func (r *Router) pick(c *Choices, n *pool, sel Selector) (e *worker, trial bool) {
	if r.mayTry(c, n) {
		if e = n.newcomers[0].worker; c.free(e) {
			return e, true
		}
		r.shuffle(e) // or it stands before all others
	}
	if e = c.either(n, sel); e != nil || len(r.resting) == 0 || n.full() {
		return e, false
	}
	return c.lastResort(n, sel), false
}

// mayTry reports whether a request is to be a trial, if there is a newcomer for it. Who was
// let down once is not sent to strangers again.
func (r *Router) mayTry(c *Choices, n *pool) bool {
	return len(n.newcomers) > 0 && n.newcomers[0].state() == free && len(n.known) > 0 && n.known[0].state() == free &&
		len(c.req.Exclude) == 0 && n.trying < mostTrying && rand.Float64() < n.trials
}

// either chooses among those that are known, else among the newcomers.
func (c *Choices) either(n *pool, sel Selector) *worker {
	if e := c.from(n.known, sel); e != nil {
		return e
	}
	return c.from(n.newcomers, LeastLoaded{})
}

// tried takes in how a trial went.
func (n *pool) tried(o Outcome) {
	n.trying--
	switch o {
	case Succeeded:
		n.trials *= trialGood
	case Failed:
		n.trials *= trialBad
	case AgentFailed:
		n.trials *= trialPoor
	default:
		n.trials *= trialLost
	}
	n.trials = max(leastTrials, min(n.trials, mostTrials))
}

// shuffle gives a worker a place by chance among the newcomers of equal rank. Waiting gives
// none of them a claim, nor that it is new: the time until its turn is distributed
// exponentially, which forgets how long it has waited.
func (r *Router) shuffle(e *worker) {
	wait := rand.ExpFloat64()
	if e.well {
		wait /= promising
	}
	e.tie = r.turn + wait
	if e.online {
		e.moved()
	}
}

// learn takes in how a task ended, for how many slots of the worker are believed: one more for
// each that ends well while half of them are in use, and one less for others; half of them
// when it breaks.
func (e *worker) learn(o Outcome) {
	e.well = o == Succeeded
	switch {
	case o == Refused:
	case o == Failed:
		e.slots /= 2
	case o != Succeeded:
		e.slots--
	case 2*(e.inflight+1) >= e.slots:
		e.slots++
	}
	e.slots = max(firstSlots, min(e.slots, mostSlots))
}
