// SPDX-License-Identifier: Apache-2.0

package router

import (
	"cmp"
	"iter"
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
func (n *pool) any(req *Request) bool {
	if req.May == nil {
		return n.size() > 0
	}
	for e := range n.all() {
		if req.may(e) {
			return true
		}
	}
	return false
}

// group is workers of one name, all or none of them on probation. It is a heap: the first is
// the one that goes before all others, and a change of one of them costs the logarithm of its
// size. Each worker knows its place.
type group []member

// member is a worker in a group.
type member struct {
	*worker
	at int // which of the worker's places this is
}

// place is where a worker is in a group.
type place struct {
	group *group
	index int
}

// less reports whether a goes before b: those with a free slot first, then those
// that rest, then the rest; among these the one with the smallest share of its slots in use,
// then the one with the lowest CPU use, and of equals the one that was not chosen for the
// longest time. Of two on probation it is the one to which this gateway has sent the least of
// what it runs: what they say of their load, and that one was never chosen, does not make them
// more likely, for the one is their own word, and new names are free.
func less(a, b *worker) bool {
	if c := cmp.Compare(a.state(), b.state()); c != 0 {
		return c < 0
	}
	if a.Probation {
		if a.inflight != b.inflight {
			return a.inflight < b.inflight
		}
		return a.tie < b.tie
	}
	if c := cmp.Compare(a.share(), b.share()); c != 0 {
		return c < 0
	}
	if c := cmp.Compare(a.CPU, b.CPU); c != 0 {
		return c < 0
	}
	if c := cmp.Compare(a.picked, b.picked); c != 0 {
		return c < 0
	}
	return a.tie < b.tie
}

// share is the load as a share of the worker's slots. What this gateway runs there is also
// held against how many it is believed to have.
func (e *worker) share() float64 {
	return max(float64(e.load())/float64(e.MaxTasks), float64(e.inflight)/float64(e.slots))
}

// add puts a worker into the group.
func (g *group) add(e *worker) {
	*g = append(*g, member{e, len(e.places)})
	e.places = append(e.places, place{group: g, index: len(*g) - 1})
	g.up(len(*g) - 1)
}

// remove takes the worker at an index out of the group.
func (g *group) remove(i int) {
	last := len(*g) - 1
	g.swap(i, last)
	(*g)[last] = member{}
	*g = (*g)[:last]
	if i < last {
		g.fix(i)
	}
}

// moved restores the order after a change of the worker.
func (e *worker) moved() {
	for _, p := range e.places {
		if len(*p.group) > 1 {
			p.group.fix(p.index)
		}
	}
}

func (g group) fix(i int) {
	if !g.down(i) {
		g.up(i)
	}
}

func (g group) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !less(g[i].worker, g[parent].worker) {
			return
		}
		g.swap(i, parent)
		i = parent
	}
}

// down reports whether it moved the worker.
func (g group) down(i int) (moved bool) {
	for {
		child := 2*i + 1
		if child >= len(g) {
			return moved
		}
		if right := child + 1; right < len(g) && less(g[right].worker, g[child].worker) {
			child = right
		}
		if !less(g[child].worker, g[i].worker) {
			return moved
		}
		g.swap(i, child)
		i, moved = child, true
	}
}

func (g group) swap(i, j int) {
	g[i], g[j] = g[j], g[i]
	g[i].places[g[i].at].index, g[j].places[g[j].at].index = i, j
}
