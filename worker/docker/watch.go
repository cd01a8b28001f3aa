// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

const (
	// watchInterval is how often the engine is asked whether it is there, and
	// watchTimeout how long it may take to say so.
	watchInterval = 2 * time.Second
	watchTimeout  = 5 * time.Second
	// sweepInterval is how often containers are removed that could not be removed before.
	sweepInterval = time.Minute
)

// Away implements worker.MayBeAway: without its engine, or its image, no task can begin.
// A container that serves does so without them, and is not asked about.
func (r *Runtime) Away() wire.Cause {
	if cause := r.away.Load(); cause != nil {
		return *cause
	}
	return ""
}

// watch looks after the engine of an agent until the runtime gets no more tasks.
func (r *Runtime) watch(agent worker.Agent) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for swept := time.Now(); ; {
		select {
		case <-agent.Context.Done():
			return
		case <-tick.C:
		}
		if r.Serve == 0 && !r.look(agent) {
			continue
		}
		if time.Since(swept) >= sweepInterval {
			swept = time.Now()
			if err := r.ready.Load().sweep(agent); err != nil && agent.Context.Err() == nil {
				r.logger.Warn("looking for leftover containers", zap.Error(err))
			}
		}
	}
}

// look asks whether tasks can begin, and tells the agent when that has changed.
func (r *Runtime) look(agent worker.Agent) bool {
	cause, err := r.ready.Load().check(agent.Context)
	if agent.Context.Err() != nil {
		return false
	}
	if r.turn(cause, err) {
		agent.Changed()
		if cause == wire.CauseImageUnavailable { // it may be built or pulled again
			agent.Again()
		}
	}
	return err == nil
}

// turn takes in how the engine is, and reports whether that is news.
func (r *Runtime) turn(cause wire.Cause, err error) bool {
	if cause == r.Away() {
		return false
	}
	if err != nil {
		r.away.Store(&cause)
		r.logger.Error("no task can begin, and the agent is busy until one can", zap.String("cause", string(cause)), zap.Error(err))
		return true
	}
	r.away.Store(nil)
	r.logger.Info("the Docker engine can run tasks again")
	return true
}

// check reports why no task could begin now, if that is so.
func (p *prepared) check(ctx context.Context) (wire.Cause, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, watchTimeout, fmt.Errorf("no answer in %v", watchTimeout))
	defer cancel()
	if _, err := p.engine.Ping(ctx); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return wire.CauseRuntimeError, fmt.Errorf("asking the Docker engine at %s: %w", p.engine.DaemonHost(), err)
	}
	if !p.imageGone.Load() {
		return "", nil
	}
	_, err := p.engine.ImageInspect(ctx, p.spec.image)
	switch {
	case cerrdefs.IsNotFound(err):
		return wire.CauseImageUnavailable, fmt.Errorf("image %s is gone", p.spec.image)
	case err == nil:
		p.imageGone.Store(false)
	}
	return "", nil
}

// sweep removes what is left of an agent's containers.
func (p *prepared) sweep(agent worker.Agent) error {
	ctx, cancel := context.WithTimeout(agent.Context, sweepInterval)
	defer cancel()
	return sweep(ctx, p.engine, agent.PeerID, p.logger)
}
