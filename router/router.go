// SPDX-License-Identifier: Apache-2.0

// Package router decides which worker serves a request: the hybrid matcher
// (peer id, then agent name, then model), the load of each worker, the choice
// among equals, who rests after failures and who waits for a slot. It knows no
// libp2p and no HTTP.
package router

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Errors of [Router.Acquire] and [Router.Wait].
var (
	// ErrNoMatch says that no worker has that peer id, agent name or model.
	ErrNoMatch = errors.New("no worker matches")
	// ErrBusy says that workers match and each of them is full.
	ErrBusy = errors.New("every matching worker is at capacity")
	// ErrNoRoute says that no matching worker serves a route that would do.
	ErrNoRoute = errors.New("no matching worker serves the route")
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
	// Models are further model engines that the worker offers.
	Models []string
	// Routes are the routes of OpenAI's API that the worker serves itself; none
	// for one whose agent takes a text and answers with one.
	Routes Routes
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
	// HTTP says that the worker speaks mesh protocol 2.
	HTTP bool
	// Probation says that little good is known of the worker. It gets a small share of the
	// requests while others have room, and what these have no room for.
	Probation bool
}

// Routes is a set of routes of OpenAI's API. Which bit is which is the caller's
// to know.
type Routes uint32

// Request asks for a worker.
type Request struct {
	// Model is what the client asked for: a peer id, an agent name or a model
	// engine. Space around it is ignored.
	Model string
	// Peer, when set, asks for this peer and no other; Model is then ignored.
	Peer string
	// Routes are those of which the worker must serve one. Without any, the request
	// is a task, which is a text, and which every worker takes.
	Routes Routes
	// Text says that a worker will do that serves no route, for its agent takes a
	// text; without Routes, that no other will.
	Text bool
	// PromptSize is the size in bytes of the prompt of who takes a text.
	PromptSize int
	// Exclude lists peers that must not serve the request.
	Exclude []string
	// Affinity is the same for requests that one worker should serve, such as
	// those of a conversation; empty for none. See [Sticky].
	Affinity string
	// May, when set, says whether the client may use a worker with the model that
	// it asks for. To the client there are no others.
	May func(peer, agent, model string) bool
}

// Tier says by which of its names a worker was found.
type Tier int

// The tiers, in the order in which they are tried.
const (
	TierPeer Tier = iota
	TierAgent
	TierModel
)

// String implements fmt.Stringer.
func (t Tier) String() string { return [...]string{"peer", "agent", "model"}[t] }

// Router holds the workers that are online. The zero value is not usable; see [New].
type Router struct {
	now func() time.Time

	mu      sync.Mutex
	workers map[string]*worker // by peer id
	names   map[string]*name   // by folded name
	resting []*worker          // those whose until lies ahead, or did lately
	picks   uint64             // counts the choices
	choices Choices            // of the choice under way; here so that it needs no allocation
	asked   uint64             // counts the requests for a slot
	queue   queue
	alarm   bool    // a look at who rests is to come
	turn    float64 // of the newcomer that was chosen last; see [Router.shuffle]
}

// name is the workers of one agent name and of one model engine.
type name struct{ agents, models pool }

// worker is a Worker with what this process knows of it.
type worker struct {
	Worker
	online   bool
	inflight int // slots held now
	baseline int // slots held when Tasks was reported
	crest    crest

	hash   uint64  // of the peer id
	tie    float64 // the order of equals: random, so that gateways differ; see [Router.shuffle]
	picked uint64  // when it was chosen last
	slots  int     // that are believed of it
	well   bool    // the last task ended well
	health health

	excluded uint64 // by which request last

	keys   []string // by which it is in names: the agent's name, then the models
	places []place  // in self, and in the groups of the keys
	self   pool     // the worker alone
	gone   context.CancelFunc
	here   context.Context // ends when the worker goes offline
}

// New returns an empty router.
func New() *Router {
	return &Router{now: time.Now, workers: make(map[string]*worker), names: make(map[string]*name)}
}

// Update adds a worker, or replaces what is known of it.
func (r *Router) Update(w Worker) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.workers[w.Peer]
	if !ok {
		e = &worker{hash: hashText(w.Peer), tie: r.turn + rand.ExpFloat64(), slots: firstSlots}
		r.workers[w.Peer] = e
	}
	if e.online && (e.Probation != w.Probation || e.Agent != w.Agent || e.Model != w.Model || !slices.Equal(e.Models, w.Models)) {
		r.unlist(e)
		r.serveQueue(e) // as what it was it is gone
	}
	e.Worker, e.baseline, e.health.full = w, e.held(r.now()), false
	if e.online {
		e.moved()
	} else {
		r.list(e)
	}
	r.serveQueue(e)
}

// Remove takes a worker out of the choice that is not there any more: what runs on it is
// told so. Slots held on it stay valid.
func (r *Router) Remove(peer string) { r.remove(peer, true) }

// Bar takes a worker out of the choice, until its next [Router.Update]. What runs on it goes
// on.
func (r *Router) Bar(peer string) { r.remove(peer, false) }

// remove takes a worker out of the choice, which may be gone.
func (r *Router) remove(peer string, gone bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.workers[peer]
	if ok && gone {
		e.gone()
	}
	if ok && e.online {
		r.unlist(e)
		r.drop(e)
		r.serveQueue(e)
	}
}

// list makes a worker one to choose from.
func (r *Router) list(e *worker) {
	e.online = true
	if e.here == nil || e.here.Err() != nil {
		e.here, e.gone = context.WithCancel(context.Background())
	}
	e.keys = e.keys[:0] // what it went by before, until now
	e.self.of(e).add(e)
	if key := fold(e.Agent); key != "" {
		e.keys = append(e.keys, key)
		r.name(key).agents.of(e).add(e)
	}
	models := len(e.keys)
	for i := range 1 + len(e.Models) {
		key := fold(e.engine(i))
		if key != "" && !slices.Contains(e.keys[models:], key) {
			e.keys = append(e.keys, key)
			r.name(key).models.of(e).add(e)
		}
	}
}

// engine returns the i-th of the worker's models.
func (w *Worker) engine(i int) string {
	if i == 0 {
		return w.Model
	}
	return w.Models[i-1]
}

// name returns the groups of a folded name, which it makes.
func (r *Router) name(key string) *name {
	n, ok := r.names[key]
	if !ok {
		n = &name{pool{trials: mostTrials}, pool{trials: mostTrials}}
		r.names[key] = n
	}
	return n
}

// unlist makes a worker none to choose from.
func (r *Router) unlist(e *worker) {
	e.online = false
	for _, p := range e.places {
		p.group.remove(p.index)
	}
	clear(e.places)
	e.places = e.places[:0]
	for _, key := range e.keys {
		if n, ok := r.names[key]; ok && n.agents.size()+n.models.size() == 0 {
			delete(r.names, key)
		}
	}
}

// drop forgets a worker that is offline, on which nothing is held, and which
// would not come back rested.
func (r *Router) drop(e *worker) {
	if !e.online && e.inflight == 0 && !e.health.resting && r.workers[e.Peer] == e { // and not its successor
		delete(r.workers, e.Peer)
	}
}

// load is the number of tasks that the worker is believed to run. A report can
// be older than the tasks that were sent just before it arrived, so it is never
// less than the slots held.
func (e *worker) load() int {
	return max(e.inflight, e.Tasks+e.inflight-e.baseline)
}

// Serves returns the routes that workers serve to whom the request may go by its
// names, and whether there are any that serve none.
func (r *Router) Serves(req *Request) (routes Routes, text bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, _ := r.match(req)
	for e := range n.all() {
		if !req.may(e) {
			continue
		}
		routes |= e.Routes
		if e.Routes == 0 {
			text = true
		}
		if text && routes&req.Routes == req.Routes {
			break
		}
	}
	return routes, text
}

// Acquire matches the request, lets sel choose among the workers of the tier
// that have a free slot, and takes a slot on the chosen one, all in one step:
// a burst of requests spreads. It returns one of this package's errors when
// there is no such worker.
func (r *Router) Acquire(req *Request, sel Selector) (Slot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wake()
	return r.acquire(req, sel)
}

// Visit matches the request as Acquire does, and takes no slot: the request is no
// work for the worker.
func (r *Router) Visit(req *Request) (Slot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, tier := r.match(req)
	err := ErrNoMatch
	for e := range n.all() {
		switch {
		case !req.may(e):
		case !req.fits(e):
			err = ErrNoRoute
		default:
			return Slot{Worker: e.Worker, Tier: tier, Here: e.here, router: r}, nil
		}
	}
	return Slot{}, err
}

// acquire is Acquire under the mutex, when those who have rested are awake.
func (r *Router) acquire(req *Request, sel Selector) (Slot, error) {
	e, tier, trial, err := r.decide(req, sel)
	if err != nil {
		return Slot{}, err
	}
	e.inflight++
	r.picks++
	e.picked = r.picks
	if e.Probation {
		r.turn = max(r.turn, e.tie)
	}
	e.moved()
	if trial != nil {
		trial.trying++
	}
	return Slot{Worker: e.Worker, Trial: trial != nil, Tier: tier, Here: e.here, router: r, held: e, trial: trial}, nil
}

// decide matches the request and lets sel choose. trial is where the request is a trial.
func (r *Router) decide(req *Request, sel Selector) (e *worker, tier Tier, trial *pool, err error) {
	n, tier := r.match(req)
	if n.size() == 0 {
		return nil, tier, nil, ErrNoMatch
	}
	c := &r.choices
	*c = Choices{req: req, asked: r.exclude(req)}
	defer func() { *c = Choices{} }() // it must not keep the request alive
	e, tries := r.pick(c, n, sel)
	switch {
	case e == nil:
		return nil, tier, nil, c.reason(n)
	case tries:
		return e, tier, n, nil
	}
	return e, tier, nil, nil
}

// exclude marks the workers that must not serve the request, and returns the mark.
func (r *Router) exclude(req *Request) uint64 {
	r.asked++
	for _, peer := range req.Exclude {
		if e, ok := r.workers[peer]; ok {
			e.excluded = r.asked
		}
	}
	return r.asked
}

// hashText is a hash that is the same in every process.
func hashText(s string) uint64 {
	h := uint64(14695981039346656037) // FNV-1a
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return mix(h)
}

// mix spreads the bits of a hash over all of it (the finalizer of MurmurHash3).
func mix(h uint64) uint64 {
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
