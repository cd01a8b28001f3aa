// SPDX-License-Identifier: Apache-2.0

package router

import (
	"slices"
	"time"
)

// Outcome says how a task went, as far as it tells something of its worker.
type Outcome int

// The outcomes.
const (
	// Unjudged says nothing: the client went away, for example.
	Unjudged Outcome = iota
	// Succeeded ends whatever earlier failures have earned.
	Succeeded
	// Refused says that the worker is full, whatever it has announced. It gets no
	// tasks until its next telemetry or the end of a task there, or for refusedRest. One that announces room
	// again and refuses again, with nothing done in between, rests.
	Refused
	// Failed says that the worker could not be reached, or broke off. It rests.
	Failed
	// AgentFailed says that the agent failed, which can be the prompt's fault:
	// the worker rests from the third in a row on.
	AgentFailed
)

// How long workers rest. Each further failure doubles the time.
const (
	firstRest   = time.Second
	longestRest = 30 * time.Second
	refusedRest = 2 * time.Second
	// agentFailures is how often an agent may fail in a row before its worker rests.
	agentFailures = 3
)

// health is what lately went wrong with a worker.
type health struct {
	failures int // in a row, of the worker
	agent    int // in a row, of its agent
	refusals int // in a row, each after telemetry that said otherwise
	resting  bool
	full     bool // it refused a task
	until    time.Time
}

// judge takes the outcome of a task into account.
func (r *Router) judge(e *worker, o Outcome) {
	h := &e.health
	switch o {
	case Succeeded:
		*h = health{until: h.until} // nor is it full: a slot of it is free now
	case Refused:
		if !h.full {
			h.refusals++
		}
		h.full = true
		r.rest(e, refusedRest)
		if h.refusals > 1 {
			r.tire(e, h.refusals-1)
		}
	case Failed:
		h.failures++
		r.tire(e, h.failures)
	case AgentFailed:
		if h.agent++; h.agent >= agentFailures {
			r.tire(e, h.agent-agentFailures+1)
		}
	}
}

// tire lets a worker rest after its n-th failure.
func (r *Router) tire(e *worker, n int) {
	e.health.resting = true
	r.rest(e, min(firstRest<<min(n-1, 10), longestRest))
}

// rest notes when a worker is to be looked at again.
func (r *Router) rest(e *worker, d time.Duration) {
	if until := r.now().Add(d); until.After(e.health.until) {
		e.health.until = until
	}
	if !slices.Contains(r.resting, e) {
		r.resting = append(r.resting, e)
	}
}

// wake ends the rests whose time is over.
func (r *Router) wake() {
	if len(r.resting) == 0 {
		return
	}
	var awake []*worker
	now := r.now()
	r.resting = slices.DeleteFunc(r.resting, func(e *worker) bool {
		if now.Before(e.health.until) {
			return false
		}
		e.health.resting, e.health.full = false, false
		r.shuffle(e)
		if e.online {
			awake = append(awake, e)
		}
		r.drop(e)
		return true
	})
	for _, e := range awake {
		r.serveQueue(e)
	}
}

// state is the first thing that decides between two workers.
type state int

// The states, best first.
const (
	free state = iota
	resting
	full
)

func (e *worker) state() state {
	switch {
	case e.Busy || e.health.full || e.load() >= e.MaxTasks:
		return full
	case e.health.resting:
		return resting
	default:
		return free
	}
}
