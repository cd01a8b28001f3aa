// SPDX-License-Identifier: Apache-2.0

package router

import "cmp"

// group is workers of one name. It is a heap: the first is the one that goes
// before all others, and a change of one of them costs the logarithm of its
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
// that rest, then the rest; among these who is not on probation, then the one with
// the smallest share of its slots in use, then the one with the lowest CPU use, and of equals the one that
// was not chosen for the longest time.
func less(a, b *worker) bool {
	if c := cmp.Compare(a.state(), b.state()); c != 0 {
		return c < 0
	}
	if a.Probation != b.Probation {
		return b.Probation
	}
	// a.load/a.MaxTasks < b.load/b.MaxTasks, without the division
	if c := cmp.Compare(a.load()*b.MaxTasks, b.load()*a.MaxTasks); c != 0 {
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

// any reports whether there is a worker in the group that the client may use.
func (g group) any(req *Request) bool {
	if req.May == nil {
		return len(g) > 0
	}
	for _, m := range g {
		if req.may(m.worker) {
			return true
		}
	}
	return false
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
