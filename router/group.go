// SPDX-License-Identifier: Apache-2.0

package router

import "cmp"

// group is workers of one name. It is a heap: the first is the one that goes
// before all others, and a change of one of them costs the logarithm of its
// size. Each worker knows its place.
type group []*worker

// place is where a worker is in a group.
type place struct {
	group *group
	index int
}

// less reports whether a goes before b: those with a free slot first, then those
// that rest, then the rest; among these the one with the smallest share of its
// slots in use, then the one with the lowest CPU use, and of equals the one that
// was not chosen for the longest time.
func less(a, b *worker) bool {
	if c := cmp.Compare(a.state(), b.state()); c != 0 {
		return c < 0
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
	for _, e := range g {
		if req.may(e) {
			return true
		}
	}
	return false
}

// add puts a worker into the group.
func (g *group) add(e *worker, t Tier) {
	*g = append(*g, e)
	e.place[t] = place{group: g, index: len(*g) - 1}
	g.up(len(*g)-1, t)
}

// remove takes a worker out of the group.
func (g *group) remove(e *worker, t Tier) {
	i, last := e.place[t].index, len(*g)-1
	g.swap(i, last, t)
	(*g)[last] = nil
	*g = (*g)[:last]
	e.place[t] = place{}
	if i < last {
		g.fix(i, t)
	}
}

// moved restores the order after a change of the worker.
func (e *worker) moved() {
	for t := range e.place {
		if p := e.place[t]; p.group != nil && len(*p.group) > 1 {
			p.group.fix(p.index, Tier(t))
		}
	}
}

func (g group) fix(i int, t Tier) {
	if !g.down(i, t) {
		g.up(i, t)
	}
}

func (g group) up(i int, t Tier) {
	for i > 0 {
		parent := (i - 1) / 2
		if !less(g[i], g[parent]) {
			return
		}
		g.swap(i, parent, t)
		i = parent
	}
}

// down reports whether it moved the worker.
func (g group) down(i int, t Tier) (moved bool) {
	for {
		child := 2*i + 1
		if child >= len(g) {
			return moved
		}
		if right := child + 1; right < len(g) && less(g[right], g[child]) {
			child = right
		}
		if !less(g[child], g[i]) {
			return moved
		}
		g.swap(i, child, t)
		i, moved = child, true
	}
}

func (g group) swap(i, j int, t Tier) {
	g[i], g[j] = g[j], g[i]
	g[i].place[t].index, g[j].place[t].index = i, j
}
