// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"math/rand/v2"
	"sync"
	"time"
)

// oracle is what a gateway is measured against: one that sees every worker as it is
// now, at no cost, and of which there is only one. A request goes to the worker with
// the most free slots, and waits for the first free slot of all where there is none.
type oracle struct {
	cell
	mu      sync.Mutex
	free    [][]*machine // by how many free slots they have
	waiting []chan *machine
}

func newOracle(c cell) *oracle {
	o := &oracle{cell: c, free: make([][]*machine, c.Slots+1)}
	for i := range workers {
		m := &machine{slots: c.Slots, factor: c.factor(i)}
		o.free[c.Slots] = append(o.free[c.Slots], m)
	}
	return o
}

func (o *oracle) run() []time.Duration {
	return arrivals(&o.cell, func(_ int, size float64) {
		time.Sleep(oneWay)
		m := o.take()
		time.Sleep(time.Duration(size * m.factor * float64(o.Service)))
		o.release(m)
		time.Sleep(oneWay)
	})
}

func (o *oracle) take() *machine {
	o.mu.Lock()
	for n := o.Slots; n > 0; n-- {
		if list := o.free[n]; len(list) > 0 {
			m := o.remove(n, rand.IntN(len(list)))
			o.put(m, 1)
			o.mu.Unlock()
			return m
		}
	}
	turn := make(chan *machine, 1)
	o.waiting = append(o.waiting, turn)
	o.mu.Unlock()
	return <-turn
}

// release gives a slot to who waits the longest.
func (o *oracle) release(m *machine) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.waiting) > 0 {
		o.waiting[0] <- m
		o.waiting = o.waiting[1:]
		return
	}
	n := m.slots - m.running
	for i, at := range o.free[n] {
		if at == m {
			o.remove(n, i)
			break
		}
	}
	o.put(m, -1)
}

// put files a worker that runs so many more.
func (o *oracle) put(m *machine, more int) {
	m.running += more
	n := m.slots - m.running
	o.free[n] = append(o.free[n], m)
}

func (o *oracle) remove(n, i int) *machine {
	list := o.free[n]
	m := list[i]
	list[i] = list[len(list)-1]
	o.free[n] = list[:len(list)-1]
	return m
}
