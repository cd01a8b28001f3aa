// SPDX-License-Identifier: Apache-2.0

package router

import (
	"context"
	"time"
)

// Slot is a place for one task on one worker. It is held until Release.
type Slot struct {
	// Worker is the chosen worker, as it was known when the slot was taken.
	Worker Worker
	// Tier says by which name it was found.
	Tier Tier
	// Trial says that a worker of which little is known goes before others that have room.
	Trial bool
	// Here ends when the worker goes offline.
	Here context.Context

	router *Router
	held   *worker
	trial  *pool // whose trial it is
}

// Release gives the slot back and says how the task went. It may be called more
// than once, but not by two at a time; the first call counts.
func (s *Slot) Release(o Outcome) {
	e := s.held
	if e == nil {
		return
	}
	s.held = nil
	r := s.router
	r.mu.Lock()
	defer r.mu.Unlock()
	if o != Refused && o != Failed { // else the worker may never have had it
		e.crest.note(e.inflight, r.now())
	}
	e.inflight--
	r.judge(e, o)
	e.learn(o)
	if s.trial != nil {
		s.trial.tried(o)
	}
	r.shuffle(e)
	r.drop(e)
	r.serveQueue(e)
	r.setAlarm()
}

// Report takes in how many tasks the worker says that it runs, that of the slot
// included. It is newer than the worker's telemetry.
func (s *Slot) Report(tasks int) {
	if s.held == nil {
		return
	}
	s.router.mu.Lock()
	defer s.router.mu.Unlock()
	e := s.held
	e.Tasks, e.baseline = tasks, e.held(s.router.now())
	if e.online {
		e.moved()
	}
}

// reportDelay is how old a report may be.
const reportDelay = 100 * time.Millisecond

// crest is the most slots that were held lately when one was given back: now, and in the
// spell of reportDelay before.
type crest struct {
	since       time.Time
	now, before int
}

// note notes how many are held when one is given back.
func (c *crest) note(held int, at time.Time) {
	switch spell := at.Sub(c.since); {
	case spell > 2*reportDelay:
		*c = crest{since: at}
	case spell > reportDelay:
		*c = crest{since: at, before: c.now}
	}
	c.now = max(c.now, held)
}

// of returns it.
func (c *crest) of(at time.Time) int {
	if at.Sub(c.since) > 2*reportDelay {
		return 0
	}
	return max(c.now, c.before)
}

// held returns how many slots of the worker may be among the tasks of a report that comes
// now: it can have been made before the end of tasks whose end was heard first. A worker that
// is taken for full because of such a task would get none until its next report; one that is
// full after all refuses the next.
func (e *worker) held(at time.Time) int { return max(e.inflight, e.crest.of(at)) }
