// SPDX-License-Identifier: Apache-2.0

// Package router decides which worker serves a request: the hybrid matcher
// (peer id, then agent name, then model), the load of each worker, and the
// choice among equals. It knows no libp2p and no HTTP.
package router

import (
	"errors"
	"iter"
	"slices"
	"strings"
	"sync"
)

// Errors of [Router.Acquire].
var (
	// ErrNoMatch says that no worker has that peer id, agent name or model.
	ErrNoMatch = errors.New("no worker matches")
	// ErrBusy says that workers match and each of them is full.
	ErrBusy = errors.New("every matching worker is at capacity")
	// ErrPromptTooLong says that no matching worker takes a prompt of that size.
	ErrPromptTooLong = errors.New("prompt is too long")
	// ErrExcluded says that every matching worker was excluded by the caller.
	ErrExcluded = errors.New("every matching worker was tried")
)

// Worker is what the router knows of one worker, from its telemetry.
type Worker struct {
	// Peer is the worker's peer id.
	Peer string
	// Agent is the advertised name, Model the advertised model engine.
	Agent, Model string
	// Tasks is the number of running tasks that the worker reports, MaxTasks
	// how many it takes at once.
	Tasks, MaxTasks int
	// CPU is the worker's CPU use in percent.
	CPU float64
	// Busy says that the worker refuses work for another reason than its
	// number of tasks.
	Busy bool
	// MaxPrompt is the largest prompt in bytes that the worker takes.
	MaxPrompt int
	// Duplex says that a task's stream may stay open on the gateway's side.
	Duplex bool
}

// Request asks for a worker.
type Request struct {
	// Model is what the client asked for: a peer id, an agent name or a model
	// engine. Space around it is ignored.
	Model string
	// Peer, when set, asks for this peer and no other; Model is then ignored.
	Peer string
	// PromptSize is the size of the prompt in bytes.
	PromptSize int
	// Exclude lists peers that were tried already.
	Exclude []string
}

// Candidate is a worker with a free slot, as a [Selector] sees it.
type Candidate struct {
	Worker
	// Load is the number of tasks that the worker is believed to run: what it
	// reported, and what was sent to it since, less what ended since.
	Load int
}

// Selector chooses one of several candidates. It is called with at least one,
// sorted by peer id, and returns the index of its choice. It is called under
// the router's lock and must not block.
type Selector interface {
	Select(candidates []Candidate) int
}

// Router holds the workers that are online. The zero value is not usable; see [New].
type Router struct {
	mu      sync.Mutex
	workers map[string]*worker // by peer id
}

// worker is a Worker with the slots that this process holds on it.
type worker struct {
	Worker
	online   bool
	inflight int // slots held now
	baseline int // slots held when Tasks was reported
}

// New returns an empty router.
func New() *Router {
	return &Router{workers: make(map[string]*worker)}
}

// Update adds a worker, or replaces what is known of it.
func (r *Router) Update(w Worker) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.workers[w.Peer]
	if !ok {
		e = new(worker)
		r.workers[w.Peer] = e
	}
	e.Worker, e.online, e.baseline = w, true, e.inflight
}

// Remove takes a worker out of the choice. Slots held on it stay valid.
func (r *Router) Remove(peer string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e, ok := r.workers[peer]; ok {
		e.online = false
		r.drop(e)
	}
}

// drop forgets a worker that is offline and on which nothing is held.
func (r *Router) drop(e *worker) {
	if !e.online && e.inflight == 0 {
		delete(r.workers, e.Peer)
	}
}

// load is the number of tasks that the worker is believed to run. A report can
// be older than the tasks that were sent just before it arrived, so it is never
// less than the slots held.
func (e *worker) load() int {
	return max(e.inflight, e.Tasks+e.inflight-e.baseline)
}

// Slot is a place for one task on one worker. It is held until Release.
type Slot struct {
	// Worker is the chosen worker, as it was known when the slot was taken.
	Worker Worker

	router *Router
	once   sync.Once
}

// Release gives the slot back. It may be called more than once.
func (s *Slot) Release() {
	s.once.Do(func() {
		s.router.mu.Lock()
		defer s.router.mu.Unlock()
		if e, ok := s.router.workers[s.Worker.Peer]; ok {
			e.inflight--
			s.router.drop(e)
		}
	})
}

// Acquire matches the request, lets sel choose among the workers of the tier
// that have a free slot, and takes a slot on the chosen one, all in one step:
// a burst of requests spreads. It returns one of this package's errors when
// there is no such worker.
func (r *Router) Acquire(req Request, sel Selector) (*Slot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	tier := Match(r.online, req, func(e *worker) (string, string, string) { return e.Peer, e.Agent, e.Model })
	if len(tier) == 0 {
		return nil, ErrNoMatch
	}
	candidates, err := eligible(tier, req)
	if err != nil {
		return nil, err
	}
	chosen := candidates[sel.Select(candidates)].Worker
	r.workers[chosen.Peer].inflight++
	return &Slot{Worker: chosen, router: r}, nil
}

// Match returns those of the workers to whom a request may go, the first tier
// that has any: the peer id exactly, then the agent's name, then the model engine,
// both in any case. names tells them apart.
func Match[T any](workers iter.Seq[T], req Request, names func(T) (peer, agent, model string)) []T {
	name := req.Peer
	if name == "" {
		name = strings.TrimSpace(req.Model)
	}
	if name == "" {
		return nil
	}
	var agents, models []T
	for w := range workers {
		peer, agent, model := names(w)
		switch {
		case peer == name:
			return []T{w}
		case req.Peer != "":
		case strings.EqualFold(agent, name):
			agents = append(agents, w)
		case strings.EqualFold(model, name):
			models = append(models, w)
		}
	}
	if len(agents) > 0 {
		return agents
	}
	return models
}

// online yields the workers that are online.
func (r *Router) online(yield func(*worker) bool) {
	for _, e := range r.workers {
		if e.online && !yield(e) {
			return
		}
	}
}

// eligible returns the workers of a tier that can take the request now, sorted
// by peer id, or the reason why there is none.
func eligible(tier []*worker, req Request) ([]Candidate, error) {
	var out []Candidate
	reason := ErrPromptTooLong
	for _, e := range tier {
		if req.PromptSize > e.MaxPrompt {
			continue
		}
		if slices.Contains(req.Exclude, e.Peer) {
			if reason == ErrPromptTooLong {
				reason = ErrExcluded
			}
			continue
		}
		if e.Busy || e.load() >= e.MaxTasks {
			reason = ErrBusy
			continue
		}
		out = append(out, Candidate{Worker: e.Worker, Load: e.load()})
	}
	if len(out) == 0 {
		return nil, reason
	}
	slices.SortFunc(out, func(a, b Candidate) int { return strings.Compare(a.Peer, b.Peer) })
	return out, nil
}
