// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// Limits of the directory.
const (
	// workerStale is how long a worker is online without telemetry.
	workerStale = 15 * time.Second
	// workerForget is how long a worker that is offline is remembered.
	workerForget = 24 * time.Hour
	// maxWorkers bounds the workers that are known, online or not.
	maxWorkers = 10_000
)

// directory holds the workers that announced themselves, and keeps the router
// in step with who of them is online.
type directory struct {
	router *router.Router
	now    func() time.Time
	log    func() *zap.Logger
	events *Events
	ask    func(peer, tag string) bool // for a worker's profile; nil in tests that have none

	mu      sync.RWMutex
	workers map[string]*entry
	order   []*entry                // the newest first
	up      int                     // workers that are online
	heard   time.Time               // when the newest telemetry of any worker came
	opening atomic.Bool             // nobody gets tasks before the services of the app have started
	trust   func(peer string) Trust // how far each is trusted
}

// entry is a worker of the directory. What lists of workers have of it is replaced, and not
// changed.
type entry struct {
	*WorkerInfo
	profile profileState
	probed  time.Time // when it was asked last whether it is there
}

// renew replaces what is known of the worker by a copy, to change.
func (e *entry) renew() {
	w := *e.WorkerInfo
	e.WorkerInfo = &w
}

// byAge orders the newest first.
func byAge(a, b *entry) int {
	return cmp.Or(b.FirstSeen.Compare(a.FirstSeen), cmp.Compare(a.PeerID, b.PeerID))
}

func newDirectory(log func() *zap.Logger) *directory {
	return &directory{router: router.New(), now: time.Now, log: log, events: NewEvents(), workers: make(map[string]*entry),
		trust: func(string) Trust { return Trusted }}
}

// update takes in valid telemetry.
func (d *directory) update(t wire.Telemetry) {
	now := d.now()
	d.mu.Lock()
	defer d.mu.Unlock()
	w, ok := d.workers[t.PeerID]
	if !ok {
		if len(d.workers) >= maxWorkers && !d.evict() {
			return
		}
		w = &entry{WorkerInfo: &WorkerInfo{Telemetry: t, FirstSeen: now}}
		w.ID, _ = peer.Decode(t.PeerID)
		d.workers[t.PeerID] = w
		i, _ := slices.BinarySearchFunc(d.order, w, byAge)
		d.order = slices.Insert(d.order, i, w)
	}
	w.renew()
	w.Telemetry, w.LastSeen, w.Memo = t, now, new(Memo)
	d.heard = now
	if d.learn(w) {
		d.serves(w)
	}
}

// id returns the peer id of a worker. To decode it each time would cost more than to
// look it up.
func (d *directory) id(worker string) (peer.ID, error) {
	if w := d.worker(worker); w != nil && w.ID != "" {
		return w.ID, nil
	}
	return peer.Decode(worker)
}

// serves makes a worker one that requests may go to, by what it last said.
func (d *directory) serves(w *entry) {
	if !w.Online {
		w.Online = true
		d.log().Info("worker is online", zap.String("peer", w.PeerID), zap.String("agent", w.AgentName), zap.String("model", w.Model))
		d.changed(w, WorkerOnline, 1)
	}
	d.offer(w.WorkerInfo)
}

// open lets workers have tasks.
func (d *directory) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.opening.Load() {
		return
	}
	for _, w := range d.workers {
		if w.Online {
			d.enlist(w.WorkerInfo)
		}
	}
	d.opening.Store(false)
}

// offer gives a worker to the router, unless it gets no tasks or nobody does yet.
func (d *directory) offer(w *WorkerInfo) {
	if !d.opening.Load() {
		d.enlist(w)
	}
}

// enlist gives a worker to the router, unless it gets no tasks.
func (d *directory) enlist(w *WorkerInfo) {
	trust := d.trust(w.PeerID)
	if trust == Barred {
		return
	}
	d.router.Update(router.Worker{
		Peer: w.PeerID, Agent: w.AgentName, Model: w.Model, Models: w.Models, Routes: w.Routes,
		Tasks: w.CurrentTasks, MaxTasks: w.MaxTasks, CPU: w.CPUPercent,
		// busy with tasks is the router's to know; busy for another reason is not
		Busy:      w.Status == wire.StatusBusy && w.CurrentTasks < w.MaxTasks,
		MaxPrompt: w.PromptLimit(),
		Duplex:    w.Duplex,
		HTTP:      w.Protocol >= wire.ProtocolHTTP,
		Probation: trust == OnProbation,
	})
}

// offline takes a worker out until its next telemetry, because its connection
// ended.
func (d *directory) offline(peer string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w, ok := d.workers[peer]; ok && w.Online {
		d.setOffline(w, "its connection ended")
	}
}

func (d *directory) setOffline(w *entry, why string) {
	w.renew()
	w.Online = false
	d.router.Remove(w.PeerID)
	d.log().Info("worker is offline", zap.String("peer", w.PeerID), zap.String("agent", w.AgentName), zap.String("reason", why))
	d.changed(w, WorkerOffline, -1)
}

// changed tells that a worker came or went. It blocks on nobody.
func (d *directory) changed(w *entry, event string, by int) {
	d.up += by
	metrics.WorkersOnline(d.up)
	d.events.Publish(Event{Name: event, Peer: w.PeerID, Agent: w.AgentName, Model: w.Model})
}

// evict forgets the worker that has been offline the longest; false when all
// are online.
func (d *directory) evict() bool {
	var oldest *entry
	for _, w := range d.workers {
		if !w.Online && (oldest == nil || w.LastSeen.Before(oldest.LastSeen)) {
			oldest = w
		}
	}
	if oldest == nil {
		return false
	}
	d.forget(oldest)
	return true
}

// forget takes a worker out of the directory.
func (d *directory) forget(w *entry) {
	delete(d.workers, w.PeerID)
	if i, ok := slices.BinarySearchFunc(d.order, w, byAge); ok {
		d.order = slices.Delete(d.order, i, i+1)
	}
}

// sweep takes out who has been silent, every second until ctx ends.
func (d *directory) sweep(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			d.expire()
		}
	}
}

func (d *directory) expire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	for _, w := range d.workers {
		switch silent := now.Sub(w.LastSeen); {
		case w.Online && silent > workerStale:
			d.setOffline(w, "no telemetry")
		case !w.Online && silent > workerForget:
			d.forget(w)
		}
	}
}

// list returns the workers, online first, newest first.
func (d *directory) list(includeOffline bool) []*WorkerInfo {
	d.mu.RLock()
	defer d.mu.RUnlock()
	out := make([]*WorkerInfo, 0, len(d.order))
	for _, w := range d.order {
		if w.Online {
			out = append(out, w.WorkerInfo)
		}
	}
	for _, w := range d.order {
		if !w.Online && includeOffline {
			out = append(out, w.WorkerInfo)
		}
	}
	return out
}

// worker returns what is known of a worker; nil for none.
func (d *directory) worker(id string) *WorkerInfo {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if w, ok := d.workers[id]; ok {
		return w.WorkerInfo
	}
	return nil
}

// online counts the workers that are online.
func (d *directory) online() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.up
}

// close ends the events, and the count of workers.
func (d *directory) close() {
	d.events.Close()
	metrics.WorkersOnline(0)
}
