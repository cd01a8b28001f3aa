// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// ReadSize is how much of an agent's output is read at a time. Escaped as JSON
// it can grow sixfold, and a line of an event stream must stay under 64 KiB.
const ReadSize = 8 << 10

// Lease is the use of the node by one request.
type Lease struct {
	app  *App
	node *node
	once sync.Once
}

// Release ends the use. It may be called more than once.
func (l *Lease) Release() { l.once.Do(l.node.Release) }

// Workers returns the known workers: online first, newest first.
func (l *Lease) Workers(includeOffline bool) []*WorkerInfo {
	return l.node.directory.list(includeOffline)
}

// Worker returns what is known of a worker; nil for none.
func (l *Lease) Worker(peer string) *WorkerInfo { return l.node.directory.worker(peer) }

// Serves returns the routes that workers serve to whom a request may go, and
// whether any takes a text instead; see [router.Router.Serves].
func (l *Lease) Serves(req *router.Request) (routes router.Routes, text bool) {
	return l.node.directory.router.Serves(req)
}

// Online counts the workers that are online.
func (l *Lease) Online() int { return l.node.directory.online() }

// OpenArtifact opens the zip of a task; the error is fs.ErrNotExist when there
// is none.
func (l *Lease) OpenArtifact(taskID string) (*os.File, error) {
	if !wire.ValidTaskID(taskID) {
		return nil, os.ErrNotExist
	}
	return os.Open(l.app.artifacts.file(taskID))
}

// How many workers may refuse a call because they are full. One that may wait for a
// slot waits once more: what it heard last is that there is none.
const (
	maxBounces        = 4
	maxWaitingBounces = 64
)

// Dispatch sends a task to a worker and returns when its output begins, or when
// the agent ended well without any. A worker that fails before that is replaced
// by another, up to c.Retries times, and one that refuses because it is full by up
// to four, or by up to 64 where the call may wait. When none answers, the error is an
// [*AttemptError]. The caller must Close the run. The end of ctx stops the agent.
func (l *Lease) Dispatch(ctx context.Context, c Call) (*Run, error) {
	if c.TaskID == "" {
		c.TaskID = wire.NewTaskID()
	}
	if c.Timeout == 0 {
		c.Timeout = TaskTimeout
	}
	c.Target.PromptSize = len(c.Prompt)
	c.Target.Exclude = slices.Clone(c.Target.Exclude)
	d := &dispatch{Call: c, lease: l, begun: time.Now()}
	over := true // also when the selector panics
	defer func() {
		if over && d.task != nil {
			l.node.tasks.end(d.task)
		}
	}()
	if c.Request == nil {
		if err := d.encode(); err != nil {
			return nil, err
		}
	}
	r, err := d.try(ctx)
	over = err != nil
	if err != nil {
		switch {
		case d.Aside: // no task
		case d.attempts > 0:
			observeTask(d.begun, err)
		case !d.Again:
			metrics.TaskEnded(metrics.Rejected, time.Since(d.begun))
		}
	}
	return r, err
}

// encode makes a task of the call, for workers that take a text.
func (d *dispatch) encode() error {
	var err error
	if d.frame, err = wire.EncodeTask(d.TaskID, d.Prompt); err != nil {
		return err
	}
	d.task, err = d.lease.node.tasks.begin(d.TaskID, d.lease.app.artifacts)
	return err
}

// wholeFrame returns the frame of the task for mesh protocol 2: with the request that it
// was made of, where there is one and it fits.
func (d *dispatch) wholeFrame() []byte {
	if d.whole == nil && d.Original != nil {
		if whole, err := wire.EncodeTaskOf(d.TaskID, d.Prompt, d.Original); err == nil {
			d.whole = whole
		}
	}
	if d.whole == nil {
		d.whole = d.frame
	}
	return d.whole
}

// dispatch is a call on its way to a worker.
type dispatch struct {
	Call
	lease    *Lease
	task     *task  // nil for a request that is passed on
	frame    []byte // of the task
	whole    []byte // see wholeFrame
	begun    time.Time
	queued   time.Duration
	waited   time.Duration // for slots, of Queue.Wait
	deadline time.Time     // of the task; set with the first slot
	first    time.Time     // of the first output of the attempt
	attempts int
	bounces  int
}

// try sends the task to one worker after another, until one answers or none is left.
func (d *dispatch) try(ctx context.Context) (*Run, error) {
	var failure *AttemptError
	for {
		slot, err := d.acquire(ctx)
		switch {
		case err != nil && failure != nil:
			return nil, failure
		case err != nil:
			return nil, err
		}
		d.attempts++
		if d.Begin != nil {
			if err := d.Begin(d.served(slot)); err != nil {
				slot.Release(router.Unjudged)
				return nil, err
			}
		}
		r, err := d.run(ctx, slot)
		if err == nil {
			return r, nil
		}
		if failure == nil || MayHaveRun(err) || !MayHaveRun(failure) {
			failure = &AttemptError{Served: d.served(slot), Err: err}
		}
		failure.Served.Attempts = d.attempts
		if ctx.Err() == nil {
			d.lease.app.logger.Info("worker failed before its first output", zap.String("peer", slot.Worker.Peer),
				zap.String("task", d.TaskID), zap.Int("attempt", d.attempts), zap.Error(err))
		}
		if ctx.Err() != nil || !time.Now().Before(d.deadline) || !d.again(err, slot.Worker.Peer) {
			return nil, failure
		}
	}
}

// MayHaveRun reports whether an attempt that failed may have had an agent do
// something. Of several failures, that one says whether the client should ask again.
func MayHaveRun(err error) bool {
	return !errors.Is(err, wire.ErrCapacity) && !errors.Is(err, wire.ErrRefused) && !errors.Is(err, ErrUnreachable) &&
		!errors.Is(err, ErrUnavailable)
}

// again reports whether another worker may be tried.
func (d *dispatch) again(err error, peer string) bool {
	if errors.Is(err, ErrNoRoom) || errors.Is(err, ErrArtifactSize) { // nor is there for another's
		return false
	}
	if errors.Is(err, wire.ErrCapacity) { // the router knows that it is full
		d.bounces++
		return d.bounces <= maxBounces || d.Queue.Wait > 0 && d.bounces <= maxWaitingBounces
	}
	d.Target.Exclude = append(d.Target.Exclude, peer)
	return d.attempts-d.bounces <= d.Retries
}

// acquire takes a slot, and waits for one where the call may.
func (d *dispatch) acquire(ctx context.Context) (router.Slot, error) {
	workers := d.lease.node.directory.router
	if d.Aside {
		return d.acquired(workers.Visit(&d.Target))
	}
	rest := d.Queue.Wait - d.waited
	if rest <= 0 {
		slot, err := workers.Acquire(&d.Target, d.Selector)
		return d.acquired(slot, err)
	}
	waitCtx, cancel := context.WithTimeout(ctx, rest)
	defer cancel()
	metrics.Waiting(1)
	defer metrics.Waiting(-1)
	from := time.Now()
	slot, err := workers.Wait(waitCtx, &d.Target, d.Selector, d.Queue.Client, d.Queue.Size)
	d.waited += time.Since(from)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return d.acquired(slot, err)
}

// acquired notes when the task's time began.
func (d *dispatch) acquired(slot router.Slot, err error) (router.Slot, error) {
	if err == nil && d.attempts == 0 {
		d.queued = time.Since(d.begun)
		d.deadline = time.Now().Add(d.Timeout)
	}
	return slot, err
}

// trialPart is the part of a task's time after which a newcomer that goes before others, and
// has said nothing, is replaced.
const trialPart = 10

// firstLimit returns how long the worker may say nothing; 0 for as long as the task may take.
func (d *dispatch) firstLimit(slot router.Slot) time.Duration {
	if trial := d.Timeout / trialPart; slot.Trial && d.attempts-d.bounces <= d.Retries && (d.FirstByte == 0 || trial < d.FirstByte) {
		return trial
	}
	return d.FirstByte
}

// served names the worker of the slot.
func (d *dispatch) served(slot router.Slot) Served {
	return Served{
		Peer: slot.Worker.Peer, Agent: slot.Worker.Agent, Model: slot.Worker.Model, Tier: slot.Tier,
		TaskID: d.TaskID, Attempts: d.attempts, Queued: d.queued,
	}
}

// run sends the task to the worker of the slot and waits for its first output,
// which does not come when the worker goes offline: a process that is frozen keeps
// its connections. The slot is released when that fails.
func (d *dispatch) run(ctx context.Context, slot router.Slot) (*Run, error) {
	r := &Run{
		served: d.served(slot), node: d.lease.node, task: d.task, slot: slot, ctx: ctx, begun: d.begun, timeout: d.Timeout, aside: d.Aside,
	}
	r.attempt, r.release = context.WithCancelCause(ctx)
	if slot.Here != nil {
		defer context.AfterFunc(slot.Here, func() { r.release(ErrUnreachable) })()
	}
	if !d.Aside {
		metrics.InFlight(1)
	}
	d.first = d.deadline
	limit := d.firstLimit(slot)
	if limit > 0 {
		d.first = within(limit, d.deadline)
	}
	err := r.open(d)
	if err == nil {
		err = r.readFirst(d)
	}
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) && d.first.Before(d.deadline) {
			err = fmt.Errorf("%w: no output within %s: %w", ErrStream, limit, os.ErrDeadlineExceeded)
		}
		r.abandon(err)
		return nil, err
	}
	if !d.Aside {
		observeAttempt(router.Succeeded, nil)
	}
	return r, nil
}
