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
	workers map[string]*WorkerInfo
	up      int                     // workers that are online
	opening atomic.Bool             // nobody gets tasks before the services of the app have started
	trust   func(peer string) Trust // how far each is trusted
}

func newDirectory(log func() *zap.Logger) *directory {
	return &directory{router: router.New(), now: time.Now, log: log, events: NewEvents(), workers: make(map[string]*WorkerInfo),
		trust: func(string) Trust { return Trusted }}
}

// update takes in valid telemetry.
func (d *directory) update(t wire.Telemetry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.now()
	w, ok := d.workers[t.PeerID]
	if !ok {
		if len(d.workers) >= maxWorkers && !d.evict() {
			return
		}
		w = &WorkerInfo{FirstSeen: now}
		w.id, _ = peer.Decode(t.PeerID)
		d.workers[t.PeerID] = w
	}
	w.Telemetry, w.LastSeen = t, now
	if d.learn(w) {
		d.serves(w)
	}
}

// id returns the peer id of a worker. To decode it each time would cost more than to
// look it up.
func (d *directory) id(worker string) (peer.ID, error) {
	d.mu.RLock()
	w := d.workers[worker]
	d.mu.RUnlock()
	if w != nil && w.id != "" {
		return w.id, nil
	}
	return peer.Decode(worker)
}

// serves makes a worker one that requests may go to, by what it last said.
func (d *directory) serves(w *WorkerInfo) {
	if !w.Online {
		w.Online = true
		d.log().Info("worker is online", zap.String("peer", w.PeerID), zap.String("agent", w.AgentName), zap.String("model", w.Model))
		d.changed(w, WorkerOnline, 1)
	}
	d.offer(w)
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
			d.enlist(w)
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

func (d *directory) setOffline(w *WorkerInfo, why string) {
	w.Online = false
	d.router.Remove(w.PeerID)
	d.log().Info("worker is offline", zap.String("peer", w.PeerID), zap.String("agent", w.AgentName), zap.String("reason", why))
	d.changed(w, WorkerOffline, -1)
}

// changed tells that a worker came or went. It blocks on nobody.
func (d *directory) changed(w *WorkerInfo, event string, by int) {
	d.up += by
	metrics.WorkersOnline(d.up)
	d.events.Publish(Event{Name: event, Peer: w.PeerID, Agent: w.AgentName, Model: w.Model})
}

// evict forgets the worker that has been offline the longest; false when all
// are online.
func (d *directory) evict() bool {
	var oldest *WorkerInfo
	for _, w := range d.workers {
		if !w.Online && (oldest == nil || w.LastSeen.Before(oldest.LastSeen)) {
			oldest = w
		}
	}
	if oldest == nil {
		return false
	}
	delete(d.workers, oldest.PeerID)
	return true
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
	for id, w := range d.workers {
		switch silent := now.Sub(w.LastSeen); {
		case w.Online && silent > workerStale:
			d.setOffline(w, "no telemetry")
		case !w.Online && silent > workerForget:
			delete(d.workers, id)
		}
	}
}

// list returns the workers, online first, newest first.
func (d *directory) list(includeOffline bool) []WorkerInfo {
	d.mu.RLock()
	defer d.mu.RUnlock()
	out := make([]WorkerInfo, 0, len(d.workers))
	for _, w := range d.workers {
		if w.Online || includeOffline {
			out = append(out, *w)
		}
	}
	slices.SortFunc(out, func(a, b WorkerInfo) int {
		if a.Online != b.Online {
			if a.Online {
				return -1
			}
			return 1
		}
		return cmp.Or(b.FirstSeen.Compare(a.FirstSeen), cmp.Compare(a.PeerID, b.PeerID))
	})
	return out
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
