// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Agent-FM/caddy-agentfm/router"
)

// What is the same in all cells. Times and limits of gateways and workers are those of
// packages mesh, worker and handler.
const (
	workers = 200
	oneWay  = time.Millisecond // from gateway to worker, or back
	gossip  = 20 * time.Millisecond

	announceEvery   = 2 * time.Second
	announceSpacing = 250 * time.Millisecond
	bounces         = 4  // refusals of workers that a request has without a queue
	waitingBounces  = 64 // and with one
	queueWait       = 10 * time.Second
	queueSize       = 1 << 20
	retryAfter      = time.Second // when a client that was refused asks again
)

// cell is what is simulated.
type cell struct {
	Policy   string        `json:"policy"`
	Gateways int           `json:"gateways"`
	Service  time.Duration `json:"service_ns"` // the mean time of a task; each is exponential
	Load     float64       `json:"load"`       // of all slots, as a share
	Slots    int           `json:"slots"`      // of a worker
	Mixed    bool          `json:"mixed"`      // workers of different speed: 1/2, 1, 1 and 3/2 times the time
	OnTick   bool          `json:"on_tick"`    // workers announce themselves every two seconds alone, as those of others do
	NoQueue  bool          `json:"no_queue"`   // a request does not wait for a slot
	Tasks    int           `json:"tasks"`
}

// factor is how much longer than the mean tasks take on the i-th worker.
func (c *cell) factor(i int) float64 {
	if !c.Mixed {
		return 1
	}
	return [...]float64{0.5, 1, 1, 1.5}[i%4]
}

// rate is how many tasks begin in a second.
func (c *cell) rate() float64 {
	capacity := 0.0
	for i := range workers {
		capacity += float64(c.Slots) / c.factor(i)
	}
	return c.Load * capacity / c.Service.Seconds()
}

// tally is what becomes of a cell.
type tally struct {
	took     []time.Duration
	attempts atomic.Int64
	refused  atomic.Int64 // answers that told a client to come again
}

// machine is a worker.
type machine struct {
	peer    string
	slots   int
	factor  float64
	changed chan struct{}

	mu      sync.Mutex
	running int
}

// take takes a slot when there is one.
func (m *machine) take() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.running == m.slots {
		return false
	}
	m.running++
	m.touch()
	return true
}

func (m *machine) free() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running--
	m.touch()
}

func (m *machine) load() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.running
}

func (m *machine) touch() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// world is all that there is in a cell.
type world struct {
	cell
	sel      router.Selector
	machines map[string]*machine
	all      []*machine
	gateways []*router.Router
	tally
}

func newWorld(c cell, sel router.Selector) *world {
	w := &world{cell: c, sel: sel, machines: make(map[string]*machine)}
	for range c.Gateways {
		w.gateways = append(w.gateways, router.New())
	}
	for i := range workers {
		m := &machine{peer: "peer" + strconv.Itoa(i), slots: c.Slots, factor: c.factor(i), changed: make(chan struct{}, 1)}
		w.all = append(w.all, m)
		w.machines[m.peer] = m
		w.heard(m, 0)
	}
	return w
}

// heard has all gateways hear of a worker.
func (w *world) heard(m *machine, running int) {
	for _, g := range w.gateways {
		g.Update(router.Worker{Peer: m.peer, Model: "m", Tasks: running, MaxTasks: m.slots, MaxPrompt: 1, HTTP: true})
	}
}

// announce has a worker announce itself until ctx ends, as package worker does.
func (w *world) announce(ctx context.Context, m *machine, rnd *rand.Rand) {
	changed := m.changed
	if w.OnTick {
		changed = nil
	}
	time.Sleep(rand.N(announceEvery)) // not in step
	tick := time.NewTicker(announceEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-changed:
		}
		running := m.load()
		time.AfterFunc(gossip/2+time.Duration(rnd.Int64N(int64(gossip))), func() { w.heard(m, running) })
		time.Sleep(announceSpacing)
	}
}

// run runs the cell.
func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	for i, m := range w.all {
		group.Go(func() { w.announce(ctx, m, rand.New(rand.NewPCG(7, uint64(i)))) })
	}
	w.took = arrivals(&w.cell, func(i int, size float64) { w.request(w.gateways[i%len(w.gateways)], size) })
	cancel()
	group.Wait()
	time.Sleep(2 * gossip) // for the last announcements
}

// request is one of a client, who comes again when it is refused.
func (w *world) request(g *router.Router, size float64) {
	for !w.dispatch(g, size) {
		w.refused.Add(1)
		time.Sleep(retryAfter)
	}
}

// dispatch does what mesh.Lease.Dispatch does; false when the client is refused.
func (w *world) dispatch(g *router.Router, size float64) bool {
	ctx, cancel := context.WithTimeout(context.Background(), queueWait)
	defer cancel()
	limit := waitingBounces
	if w.NoQueue {
		limit = bounces
	}
	for range limit + 1 {
		slot, err := w.acquire(ctx, g)
		if errors.Is(err, router.ErrBusy) {
			return false
		}
		if err != nil {
			panic(err)
		}
		w.attempts.Add(1)
		if w.attempt(&slot, size) {
			return true
		}
	}
	return false
}

// acquire takes a slot, and waits for one where requests do.
func (w *world) acquire(ctx context.Context, g *router.Router) (router.Slot, error) {
	req := &router.Request{Model: "m", PromptSize: 1}
	if w.NoQueue {
		return g.Acquire(req, w.sel)
	}
	return g.Wait(ctx, req, w.sel, "client", queueSize)
}

// attempt has the worker of a slot work; false when it is full.
func (w *world) attempt(slot *router.Slot, size float64) bool {
	m := w.machines[slot.Worker.Peer]
	time.Sleep(oneWay)
	if !m.take() {
		running := m.load()
		time.Sleep(oneWay)
		slot.Report(running + 1) // with the one that it did not take
		slot.Release(router.Refused)
		return false
	}
	time.Sleep(time.Duration(size * m.factor * float64(w.Service)))
	running := m.load()
	m.free()
	time.Sleep(oneWay)
	slot.Report(running) // the head of an answer comes with its first byte
	slot.Release(router.Succeeded)
	return true
}

// arrivals has the requests of a cell arrive, which are the same for every policy, and
// returns how long those took that came when all was in its stride.
func arrivals(c *cell, serve func(i int, size float64)) []time.Duration {
	rnd := rand.New(rand.NewPCG(1, 2))
	took := make([]time.Duration, c.Tasks)
	var group sync.WaitGroup
	for i := range c.Tasks {
		time.Sleep(time.Duration(rnd.ExpFloat64() / c.rate() * 1e9))
		size := rnd.ExpFloat64()
		group.Go(func() {
			begun := time.Now()
			serve(i, size)
			took[i] = time.Since(begun)
		})
	}
	group.Wait()
	return took[c.Tasks/10:]
}
