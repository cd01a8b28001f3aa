// SPDX-License-Identifier: Apache-2.0

package router

import "context"

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
