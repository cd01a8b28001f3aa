// SPDX-License-Identifier: Apache-2.0

package router

import "math/rand/v2"

// Selector chooses one of the workers that match a request. It is called under
// the router's lock and must not block or keep the choices.
type Selector interface {
	// Select returns the index of a worker that is [Choices.Free], or -1 when
	// there is none.
	Select(c *Choices) int
}

// Choices are the workers of the tier that a request matches, those on probation left out.
// Their order has no meaning.
type Choices struct {
	workers group
	req     *Request
	asked   uint64 // marks who is excluded
	resort  resort
}

// resort says which workers that rest may be chosen, too.
type resort int

// Resorts, each of which includes the ones before it.
const (
	rested       resort = iota // none
	failedAgents               // those whose agents failed, which may have been the prompts' fault
	failed                     // all, one request at a time
)

// Len returns the number of workers.
func (c *Choices) Len() int { return len(c.workers) }

// Worker returns the i-th worker. It must not be changed.
func (c *Choices) Worker(i int) *Worker { return &c.workers[i].worker.Worker }

// Load is the number of tasks that the worker is believed to run: what it
// reported, and what was sent to it since, less what ended since.
func (c *Choices) Load(i int) int { return c.workers[i].load() }

// Share is the load as a share of the worker's slots, of which no more are believed than what
// it has done well here bears out.
func (c *Choices) Share(i int) float64 { return c.workers[i].share() }

// Less reports whether worker i is to be preferred to worker j by load, then CPU,
// then by which was not chosen for longer.
func (c *Choices) Less(i, j int) bool { return c.workers[i].rank.less(&c.workers[j].rank) }

// Picked tells, by comparison, which of two workers was chosen later.
func (c *Choices) Picked(i int) uint64 { return c.workers[i].rank.picked }

// Affinity is the affinity of the request; see [Request.Affinity].
func (c *Choices) Affinity() string { return c.req.Affinity }

// Free reports whether the request may go to the worker now. One that rests may be
// tried when there is no other.
func (c *Choices) Free(i int) bool { return c.free(c.workers[i].worker) }

func (c *Choices) free(e *worker) bool {
	switch e.state() {
	case full:
		return false
	case resting:
		if !c.mayWake(e) {
			return false
		}
	}
	return e.excluded != c.asked && c.fits(e)
}

// mayWake reports whether a worker that rests may be tried now.
func (c *Choices) mayWake(e *worker) bool {
	switch {
	case c.req.Peer != "": // the client wants this one
		return true
	case e.health.failures == 0:
		return c.resort >= failedAgents
	default:
		return c.resort >= failed && e.inflight == 0
	}
}

// fits reports whether the worker would take the request if it had a slot.
func (c *Choices) fits(e *worker) bool { return c.req.fits(e) && c.req.may(e) }

// fits reports whether the worker could serve the request, if not for its load.
func (q *Request) fits(e *worker) bool {
	return q.Routes&e.Routes != 0 || q.servedAsText(e) && q.PromptSize <= e.MaxPrompt
}

// servedAsText reports whether the worker would be sent the request as a text.
func (q *Request) servedAsText(e *worker) bool {
	if q.Text {
		return e.Routes == 0
	}
	return q.Routes == 0
}

// Least returns the free worker with the smallest share of its slots in use,
// among those the one with the lowest CPU use; -1 when none is free.
func (c *Choices) Least() int {
	if c.Free(0) { // the best of all
		return 0
	}
	if c.resort == rested && c.req.Peer == "" && c.workers[0].state() != free {
		return -1
	}
	best := -1
	for i := range c.workers {
		if (best < 0 || c.Less(i, best)) && c.Free(i) {
			best = i
		}
	}
	return best
}

// from asks the selector for a worker of a group, and does not trust its answer.
func (c *Choices) from(g group, sel Selector) *worker {
	if len(g) == 0 {
		return nil
	}
	c.workers = g
	i := sel.Select(c)
	if i < 0 || i >= len(g) || !c.Free(i) {
		i = c.Least()
	}
	if i < 0 {
		return nil
	}
	return g[i].worker
}

// lastResort looks among the workers that rest. Those whose agents failed are
// tried when nobody else is free: else a client could have others refused with
// prompts that make agents fail. Those that broke are tried when nobody else is
// there at all.
func (c *Choices) lastResort(n *pool, sel Selector) *worker {
	c.resort = failedAgents
	e := c.either(n, sel)
	if e == nil && c.allRest(n) {
		c.resort = failed
		e = c.either(n, sel)
	}
	return e
}

// allRest reports whether all of the workers that could serve the request rest.
func (c *Choices) allRest(n *pool) bool {
	found := false
	for e := range n.all() {
		if e.excluded == c.asked || !c.fits(e) {
			continue
		}
		if !e.health.resting {
			return false
		}
		found = true
	}
	return found
}

// reason says why no worker is free.
func (c *Choices) reason(n *pool) error {
	err := ErrNoRoute
	for e := range n.all() {
		switch {
		case !c.req.may(e):
		case !c.req.fits(e):
			if c.req.servedAsText(e) && err == ErrNoRoute {
				err = ErrPromptTooLong
			}
		case e.excluded != c.asked:
			return ErrBusy
		default:
			err = ErrExcluded
		}
	}
	return err
}

// LeastLoaded chooses the worker with the smallest share of its slots in use;
// among those the one with the lowest CPU use, and of equals each in turn.
type LeastLoaded struct{}

// Select implements [Selector].
func (LeastLoaded) Select(c *Choices) int { return c.Least() }

// PowerOfTwo chooses the less loaded of two workers that it takes at random:
// many gateways that share a mesh and know little of each other do not all
// choose the same worker.
type PowerOfTwo struct{}

// Select implements [Selector].
func (PowerOfTwo) Select(c *Choices) int {
	i, j := rand.IntN(c.Len()), rand.IntN(c.Len())
	switch {
	case c.Free(i) && (!c.Free(j) || c.Less(i, j)):
		return i
	case c.Free(j):
		return j
	}
	return c.Least()
}

// RoundRobin chooses the worker that was not chosen for the longest time.
type RoundRobin struct{}

// Select implements [Selector].
func (RoundRobin) Select(c *Choices) int {
	best := -1
	for i := range c.Len() {
		if (best < 0 || c.Picked(i) < c.Picked(best)) && c.Free(i) {
			best = i
		}
	}
	return best
}

// Sticky sends requests of one affinity to one worker, as long as it has a slot
// and is not much busier than the least loaded. When workers come and go, only
// those affinities move whose worker went, or for whom the new one is best.
// Requests without an affinity go to the least loaded.
type Sticky struct{}

// stickyShare is how much more of its slots than the least loaded worker one may
// have in use and still be chosen for its affinity.
const stickyShare = 0.5

// Select implements [Selector].
func (Sticky) Select(c *Choices) int {
	least := c.Least()
	if least < 0 || c.Affinity() == "" {
		return least
	}
	limit := c.Share(least) + stickyShare
	best, bestRank := least, uint64(0)
	affinity := hashText(c.Affinity())
	for i := range c.Len() {
		rank := mix(affinity ^ c.workers[i].hash) // most are out by that, without a look at them
		if rank >= bestRank && c.Share(i) <= limit && c.Free(i) {
			best, bestRank = i, rank
		}
	}
	return best
}

// Interface guards
var (
	_ Selector = LeastLoaded{}
	_ Selector = PowerOfTwo{}
	_ Selector = RoundRobin{}
	_ Selector = Sticky{}
)
