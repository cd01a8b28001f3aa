// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Errors of [Router.Wait], beside those of [Router.Acquire].
var (
	// ErrQueueFull says that as many requests wait as may.
	ErrQueueFull = errors.New("too many requests are waiting")
	// ErrCrowdedOut says that the client has more requests waiting than its share
	// of a queue that is full.
	ErrCrowdedOut = errors.New("too many requests of this client are waiting")
)

// queue holds the requests that wait for a slot, in one line for each client.
type queue struct {
	lines []*line // that have waiters; the first is the next to be served
	size  int     // of all lines
}

// line is the waiting requests of one client, the longest waiting first.
type line struct {
	key     string
	waiters []*waiter
}

// waiter is a request that waits.
type waiter struct {
	req    *Request
	folded string // what it asks for
	sel    Selector
	line   *line
	served chan waited // receives once, without blocking
}

// waited is how a wait ended.
type waited struct {
	slot     Slot
	err      error
	panicked any // the selector's panic
}

// end is the end of Wait. A panic of the selector is the request's own.
func (w waited) end() (Slot, error) {
	if w.panicked != nil {
		panic(w.panicked)
	}
	return w.slot, w.err
}

// Wait is Acquire for a request that waits for a slot until ctx ends when all
// workers are full; the error is then [ErrBusy]. Free slots go to the clients in
// turn, whatever the number of their requests: key names the client. At most
// size requests wait; beyond, the client with the most of them loses its newest.
func (r *Router) Wait(ctx context.Context, req *Request, sel Selector, key string, size int) (Slot, error) {
	w, slot, err := r.enqueue(req, sel, key, size)
	if w == nil {
		return slot, err
	}
	select {
	case res := <-w.served:
		return res.end()
	case <-ctx.Done():
	}
	r.mu.Lock()
	left := r.queue.leave(w)
	r.mu.Unlock()
	if !left { // served in this very moment
		return (<-w.served).end()
	}
	return Slot{}, ErrBusy
}

// Waiting returns how many requests wait for a slot.
func (r *Router) Waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.queue.size
}

// enqueue takes a slot, or puts the request into the queue. Who waits already has
// had its chance of every slot that is free: none of them is what it waits for.
func (r *Router) enqueue(req *Request, sel Selector, key string, size int) (*waiter, Slot, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wake()
	if slot, err := r.acquire(req, sel); !errors.Is(err, ErrBusy) {
		return nil, slot, err
	}
	if r.queue.size >= size {
		if err := r.queue.makeRoom(key); err != nil {
			return nil, Slot{}, err
		}
	}
	w := &waiter{req: req, folded: fold(req.asked()), sel: sel, served: make(chan waited, 1)}
	r.queue.join(w, key)
	r.setAlarm()
	return w, Slot{}, nil
}

// join puts a waiter at the end of its client's line.
func (q *queue) join(w *waiter, key string) {
	w.line = q.of(key)
	if w.line == nil {
		w.line = &line{key: key}
		q.lines = append(q.lines, w.line)
	}
	w.line.waiters = append(w.line.waiters, w)
	q.size++
}

// of returns the line of a client; nil when it has none.
func (q *queue) of(key string) *line {
	if i := slices.IndexFunc(q.lines, func(l *line) bool { return l.key == key }); i >= 0 {
		return q.lines[i]
	}
	return nil
}

// leave takes a waiter out; false when it is not in the queue any more.
func (q *queue) leave(w *waiter) bool {
	i := slices.Index(w.line.waiters, w)
	if i < 0 {
		return false
	}
	w.line.waiters = slices.Delete(w.line.waiters, i, i+1)
	q.size--
	if len(w.line.waiters) == 0 {
		at := slices.Index(q.lines, w.line)
		q.lines = slices.Delete(q.lines, at, at+1)
	}
	return true
}

// makeRoom takes a request out of a full queue so that another client's can get
// in, or says why not.
func (q *queue) makeRoom(key string) error {
	own := 0
	if l := q.of(key); l != nil {
		own = len(l.waiters)
	}
	if len(q.lines) == 0 {
		return ErrQueueFull // of size 0
	}
	longest := slices.MaxFunc(q.lines, func(a, b *line) int { return len(a.waiters) - len(b.waiters) })
	if len(longest.waiters) > own+1 {
		w := longest.waiters[len(longest.waiters)-1]
		q.leave(w)
		w.served <- waited{err: ErrCrowdedOut}
		return nil
	}
	if own > 0 && len(q.lines) > 1 {
		return ErrCrowdedOut
	}
	return ErrQueueFull
}

// serveQueue gives free slots to those who wait, to each client in turn, after
// news of a worker: for whom that is no news, there is no slot still.
func (r *Router) serveQueue(e *worker) {
	for r.queue.size > 0 && r.serveNext(e) {
	}
}

// serveNext serves one request; false when there is nothing for any of them.
func (r *Router) serveNext(e *worker) bool {
	if e.online && !e.health.resting && e.state() == full {
		return false
	}
	q := &r.queue
	for i, l := range q.lines {
		for _, w := range l.waiters {
			if !w.concerns(e) {
				continue
			}
			res := r.acquireFor(w)
			if res.err != nil {
				continue
			}
			// the others go first the next time
			q.lines = append(slices.Delete(q.lines, i, i+1), l)
			q.leave(w)
			w.served <- res
			return true
		}
	}
	return false
}

// concerns reports whether news of the worker may end the wait: that it has a slot
// for it, or does not stand before others any more.
func (w *waiter) concerns(e *worker) bool {
	q := w.req
	named := e.Peer == q.asked() || q.Peer == "" && slices.Contains(e.keys, w.folded)
	if !named || !q.may(e) {
		return false
	}
	return !e.online || e.health.resting || q.fits(e) && !slices.Contains(q.Exclude, e.Peer)
}

// acquireFor takes a slot for a request that waits. A selector that panics ends the
// wait of its own request, and harms nobody who made room for it.
func (r *Router) acquireFor(w *waiter) (res waited) {
	defer func() {
		if p := recover(); p != nil {
			res = waited{panicked: p}
		}
	}()
	res.slot, res.err = r.acquire(w.req, w.sel)
	return res
}

// setAlarm has the ends of rests serve those who wait: time passes without news.
func (r *Router) setAlarm() {
	if r.alarm || r.queue.size == 0 || len(r.resting) == 0 {
		return
	}
	d := firstRest // others may begin to rest
	for now, i := r.now(), 0; i < len(r.resting); i++ {
		d = min(d, r.resting[i].health.until.Sub(now))
	}
	r.alarm = true
	time.AfterFunc(d, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.alarm = false
		r.wake()
		r.setAlarm()
	})
}
