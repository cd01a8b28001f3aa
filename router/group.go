// SPDX-License-Identifier: Apache-2.0

package router

import (
	"iter"
	"slices"
)

// pool is the workers of one agent name, or of one model engine, or one worker alone: those
// that are known, and those on probation.
type pool struct {
	known, newcomers group

	trials float64 // the share of requests that go to newcomers before others
	trying int     // how many of these run
}

// of returns the group in the pool that a worker belongs to.
func (n *pool) of(e *worker) *group {
	if e.Probation {
		return &n.newcomers
	}
	return &n.known
}

func (n *pool) size() int { return len(n.known) + len(n.newcomers) }

// full reports whether no worker has room: the first of each group is the best of it.
func (n *pool) full() bool {
	for _, g := range []group{n.known, n.newcomers} {
		if len(g) > 0 && g[0].state() != full {
			return false
		}
	}
	return true
}

// all returns the workers, in no order.
func (n *pool) all() iter.Seq[*worker] {
	return func(yield func(*worker) bool) {
		for _, g := range []group{n.known, n.newcomers} {
			for _, m := range g {
				if !yield(m.worker) {
					return
				}
			}
		}
	}
}

// any reports whether there is a worker that the client may use.
func (g group) any(req *Request) bool {
	return slices.ContainsFunc(g, func(m member) bool { return req.may(m.worker) })
}

// group is workers of one name, all or none of them on probation. It is a heap: the first is
// the one that goes before all others, and a change of one of them costs the logarithm of its
// size. Each worker knows its place.
type group []member

// member is a worker in a group, with what a look at many of them needs: to go to each
// worker for that would be a wait for memory each time.
type member struct {
	*worker
	rank rank
	hash uint64 // the worker's
	at   int    // which of the worker's places this is
}

// place is where a worker is in a group.
type place struct {
	group *group
	index int
}

// rank is what decides who goes before whom in a group: who has a free slot, then who rests,
// then the others; among these the one with the smallest share of its slots in use,
// then the one with the lowest CPU use, and of equals the one that was not chosen for the
// longest time.
type rank struct {
	state  state
	share  float64
	cpu    float64
	picked uint64
	tie    float64
}

// rank returns the worker's rank as it is now. Of two on probation the one goes first to
// which this gateway has sent the least of what it runs: what they say of their load, and that
// one was never chosen, does not make them more likely, for the one is their own word, and new
// names are free.
func (e *worker) rank() rank {
	if e.Probation {
		return rank{state: e.state(), share: float64(e.inflight), tie: e.tie}
	}
	return rank{e.state(), e.share(), e.CPU, e.picked, e.tie}
}

// less reports whether a goes before b.
func (a *rank) less(b *rank) bool {
	switch {
	case a.state != b.state:
		return a.state < b.state
	case a.share != b.share:
		return a.share < b.share
	case a.cpu != b.cpu:
		return a.cpu < b.cpu
	case a.picked != b.picked:
		return a.picked < b.picked
	}
	return a.tie < b.tie
}

// share is the load as a share of the worker's slots. What this gateway runs there is also
// held against how many it is believed to have.
func (e *worker) share() float64 {
	return max(float64(e.load())/float64(max(e.MaxTasks, 1)), float64(e.inflight)/float64(e.slots))
}

// add puts a worker into the group.
func (g *group) add(e *worker) {
	e.places = append(e.places, place{group: g, index: len(*g)})
	*g = append(*g, member{e, e.rank(), e.hash, len(e.places) - 1})
	g.up(len(*g) - 1)
}

// remove takes the worker at an index out of the group.
func (g *group) remove(i int) {
	last := len(*g) - 1
	m := (*g)[last]
	(*g)[last] = member{}
	*g = (*g)[:last]
	if i < last {
		g.put(i, m)
		g.fix(i)
	}
}

// moved restores the order after a change of the worker.
func (e *worker) moved() {
	now := e.rank()
	for _, p := range e.places {
		(*p.group)[p.index].rank = now
		p.group.fix(p.index)
	}
}

func (g group) fix(i int) {
	if len(g) > 1 && !g.down(i) {
		g.up(i)
	}
}

// put puts a member at an index.
func (g group) put(i int, m member) {
	g[i] = m
	m.places[m.at].index = i
}

// children is how many members stand below each: more than two make the heap less deep.
const children = 4

func (g group) up(i int) {
	for i > 0 {
		parent := (i - 1) / children
		if !g[i].rank.less(&g[parent].rank) {
			return
		}
		g.swap(i, parent)
		i = parent
	}
}

// down reports whether it moved the worker.
func (g group) down(i int) (moved bool) {
	for {
		first := children*i + 1
		if first >= len(g) {
			return moved
		}
		best := first
		for child := first + 1; child < min(first+children, len(g)); child++ {
			if g[child].rank.less(&g[best].rank) {
				best = child
			}
		}
		if !g[best].rank.less(&g[i].rank) {
			return moved
		}
		g.swap(i, best)
		i, moved = best, true
	}
}

func (g group) swap(i, j int) {
	m := g[i]
	g.put(i, g[j])
	g.put(j, m)
}
