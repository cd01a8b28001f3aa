// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// patience is how many questions the server may leave without an answer, one after
// the other, before nothing is offered: one can be lost, or come too late under load.
const patience = 2

// watch looks after the server until ctx ends.
func (r *Runtime) watch(ctx context.Context, agent worker.Agent) {
	defer r.transport.CloseIdleConnections()
	if r.conns != nil {
		defer r.conns.closeIdle()
	}
	tick := time.NewTicker(time.Duration(r.HealthInterval))
	defer tick.Stop()
	failures, anew := 0, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-r.doubt:
		}
		before := r.view.Load()
		anew = r.replaced.Swap(false) || anew
		v, err := r.look(ctx, agent, before, anew)
		anew = err != nil
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failures = 0
			r.turn(before, v, agent.Changed)
			continue
		case errors.Is(err, errSlow) && r.working.Load() > 0 && r.ear.silence() < r.maxSilence: // some servers do one thing at a time
			continue
		}
		failures++
		if before.up && (failures >= patience || errors.Is(err, syscall.ECONNREFUSED)) {
			r.logger.Error("the server does not answer; nothing is offered until it does", zap.Error(err))
			down := *before
			down.up = false
			r.view.Store(&down)
			agent.Changed()
		}
	}
}

// turn makes v what is known of the server, and tells of a difference.
func (r *Runtime) turn(before, v *view, changed func()) {
	r.view.Store(v)
	if before.equal(v) {
		return
	}
	r.tell(v, before)
	changed()
}

// doubtful has the server looked after now: a request could not reach it.
func (r *Runtime) doubtful() {
	if v := r.view.Load(); v == nil || !v.up {
		return // nothing is offered already
	}
	r.wake()
}

// wake has the server looked after now, and not at the next interval.
func (r *Runtime) wake() {
	select {
	case r.doubt <- struct{}{}:
	default:
	}
}
