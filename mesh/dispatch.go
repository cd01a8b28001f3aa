// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
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
func (l *Lease) Workers(includeOffline bool) []WorkerInfo {
	return l.node.directory.list(includeOffline)
}

// Online counts the workers that are online.
func (l *Lease) Online() int { return l.node.directory.online() }

// OpenArtifact opens the zip of a task; the error is fs.ErrNotExist when there
// is none.
func (l *Lease) OpenArtifact(taskID string) (*os.File, error) {
	if !wire.ValidTaskID(taskID) {
		return nil, os.ErrNotExist
	}
	return os.Open(filepath.Join(l.app.artifacts, taskID+".zip"))
}

// maxBounces is how many workers may refuse a call because they are full.
const maxBounces = 4

// Run is a task that a worker has begun to answer.
type Run struct {
	served  Served
	node    *node
	task    *task
	slot    router.Slot
	stream  network.Stream
	out     *wire.OutputReader
	first   []byte // read by Dispatch
	ctx     context.Context
	begun   time.Time
	stop    func() bool // of the watch over ctx
	timeout time.Duration
	err     error // the end, once it is known
	once    sync.Once
}

// Served names who serves the task.
func (r *Run) Served() Served { return r.served }

// Dispatch sends a task to a worker and returns when its output begins, or when
// the agent ended well without any. A worker that fails before that is replaced
// by another, up to c.Retries times, and one that refuses because it is full by up
// to four. When none answers, the error is an [*AttemptError]. The caller must Close
// the run. The end of ctx stops the agent.
func (l *Lease) Dispatch(ctx context.Context, c Call) (*Run, error) {
	if c.TaskID == "" {
		c.TaskID = wire.NewTaskID()
	}
	if c.Timeout == 0 {
		c.Timeout = TaskTimeout
	}
	frame, err := wire.EncodeTask(c.TaskID, c.Prompt)
	if err != nil {
		return nil, err
	}
	t, err := l.node.tasks.begin(c.TaskID, l.app.artifacts)
	if err != nil {
		return nil, err
	}
	c.Target.PromptSize = len(c.Prompt)
	c.Target.Exclude = slices.Clone(c.Target.Exclude)
	d := &dispatch{Call: c, lease: l, task: t, frame: frame, begun: time.Now()}
	over := true // also when the selector panics
	defer func() {
		if over {
			l.node.tasks.end(t)
		}
	}()
	r, err := d.try(ctx)
	over = err != nil
	if err != nil {
		if d.attempts == 0 {
			observeRejected(d.begun)
		} else {
			observeTask(d.begun, err)
		}
	}
	return r, err
}

// dispatch is a call on its way to a worker.
type dispatch struct {
	Call
	lease    *Lease
	task     *task
	frame    []byte
	begun    time.Time
	queued   time.Duration
	deadline time.Time // of the task; set with the first slot
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
		r, err := d.run(ctx, slot)
		if err == nil {
			return r, nil
		}
		if failure == nil || mayHaveRun(err) || !mayHaveRun(failure) {
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

// mayHaveRun reports whether an attempt that failed may have had an agent do
// something. Of several failures, that one says whether the client should ask again.
func mayHaveRun(err error) bool {
	return !errors.Is(err, wire.ErrCapacity) && !errors.Is(err, wire.ErrRefused) && !errors.Is(err, ErrUnreachable)
}

// again reports whether another worker may be tried.
func (d *dispatch) again(err error, peer string) bool {
	if errors.Is(err, wire.ErrCapacity) { // the router knows that it is full
		d.bounces++
		return d.bounces <= maxBounces
	}
	d.Target.Exclude = append(d.Target.Exclude, peer)
	return d.attempts-d.bounces <= d.Retries
}

// acquire takes a slot, and waits for one where the call may.
func (d *dispatch) acquire(ctx context.Context) (router.Slot, error) {
	workers := d.lease.node.directory.router
	rest := time.Until(d.begun.Add(d.Queue.Wait))
	if d.Queue.Wait == 0 || rest <= 0 {
		slot, err := workers.Acquire(&d.Target, d.Selector)
		return d.acquired(slot, err)
	}
	waitCtx, cancel := context.WithTimeout(ctx, rest)
	defer cancel()
	metrics.Waiting(1)
	defer metrics.Waiting(-1)
	slot, err := workers.Wait(waitCtx, &d.Target, d.Selector, d.Queue.Client, d.Queue.Size)
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

// served names the worker of the slot.
func (d *dispatch) served(slot router.Slot) Served {
	return Served{
		Peer: slot.Worker.Peer, Agent: slot.Worker.Agent, Model: slot.Worker.Model, Tier: slot.Tier,
		TaskID: d.TaskID, Attempts: d.attempts, Queued: d.queued,
	}
}

// run sends the frame to the worker of the slot and waits for its first output.
// The slot is released when that fails.
func (d *dispatch) run(ctx context.Context, slot router.Slot) (*Run, error) {
	r := &Run{
		served: d.served(slot), node: d.lease.node, task: d.task, slot: slot, ctx: ctx, begun: d.begun, timeout: d.Timeout,
	}
	metrics.InFlight(1)
	if err := r.open(d.frame, d.deadline); err != nil {
		r.abandon(err)
		return nil, err
	}
	if err := r.readFirst(d); err != nil {
		r.abandon(err)
		return nil, err
	}
	observeAttempt(router.Succeeded, nil)
	return r, nil
}

// open opens the stream and sends the frame, until the deadline of the task.
func (r *Run) open(frame []byte, deadline time.Time) error {
	id, err := peer.Decode(r.served.Peer)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	dialCtx, cancel := context.WithDeadline(network.WithAllowLimitedConn(r.ctx, "agentfm"), within(DialTimeout, deadline))
	defer cancel()
	r.stream, err = r.node.host.NewStream(dialCtx, id, wire.TaskProtocol)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	stream := r.stream
	r.stop = context.AfterFunc(r.ctx, func() { _ = stream.Reset() })
	r.task.assign(id)

	_ = stream.SetDeadline(within(FrameTimeout, deadline))
	_, err = stream.Write(frame)
	if err == nil && !r.slot.Worker.Duplex {
		err = stream.CloseWrite()
	}
	if err != nil {
		return r.streamError(err)
	}
	return nil
}

// within returns the time in d, or the deadline when that is earlier.
func within(d time.Duration, deadline time.Time) time.Time {
	if t := time.Now().Add(d); t.Before(deadline) {
		return t
	}
	return deadline
}

// readFirst waits for the first output. It does not come when the worker goes
// offline: a process that is frozen keeps its connections.
func (r *Run) readFirst(d *dispatch) error {
	stream := r.stream
	if r.slot.Here != nil {
		defer context.AfterFunc(r.slot.Here, func() { _ = stream.Reset() })()
	}
	first := d.deadline
	if d.FirstByte > 0 {
		first = within(d.FirstByte, d.deadline)
	}
	_ = stream.SetDeadline(first)
	r.out = wire.NewOutputReader(stream, ReadSize)
	r.out.EagerNewline = d.EagerNewline
	buf := make([]byte, ReadSize)
	k, err := r.read(buf)
	switch {
	case err == nil || errors.Is(err, io.EOF):
		r.first, r.err = buf[:k], err
		_ = stream.SetDeadline(d.deadline)
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded) && first.Before(d.deadline):
		return fmt.Errorf("%w: no output within %s: %w", ErrStream, d.FirstByte, os.ErrDeadlineExceeded)
	}
	return err
}

// Read gives out the agent's output, exactly as the agent wrote it. It ends with
// io.EOF when the agent succeeded and its files have arrived; with any other
// error it did not.
func (r *Run) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		k := copy(p, r.first)
		r.first = r.first[k:]
		return k, nil
	}
	if r.err != nil {
		return 0, r.err
	}
	k, err := r.read(p)
	r.err = err
	return k, err
}

// read reads from the stream and, at its end, waits for the files.
func (r *Run) read(p []byte) (int, error) {
	k, err := r.out.Read(p)
	switch {
	case err == nil:
		return k, nil
	case errors.Is(err, io.EOF):
		if r.out.Files() {
			if err := r.task.waitForFiles(r.ctx); err != nil {
				return k, err
			}
		}
		return k, io.EOF
	case errors.Is(err, wire.ErrCapacity), errors.Is(err, wire.ErrRefused),
		errors.Is(err, wire.ErrAgentFailed), errors.Is(err, wire.ErrTruncated):
		return k, err
	default:
		return k, r.streamError(err)
	}
}

// streamError tells a broken stream from one that the client's going away broke.
func (r *Run) streamError(err error) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return fmt.Errorf("%w: the task took longer than %s: %w", ErrStream, r.timeout, os.ErrDeadlineExceeded)
	}
	if r.slot.Here != nil && r.slot.Here.Err() != nil {
		return fmt.Errorf("%w: the worker went offline: %w", ErrStream, err)
	}
	return fmt.Errorf("%w: %w", ErrStream, err)
}

// HasFiles reports, after io.EOF, whether the task left files; they have arrived.
func (r *Run) HasFiles() bool { return errors.Is(r.err, io.EOF) && r.out.Files() }

// Close ends the run; the worker stops the agent when it still works. It may be
// called more than once.
func (r *Run) Close() error {
	r.once.Do(func() {
		err := r.err
		if errors.Is(err, io.EOF) || err == nil { // or the caller has enough
			err = r.ctx.Err()
		}
		o := r.outcome(err)
		r.hangUp(o)
		r.node.tasks.end(r.task)
		observeTask(r.begun, err)
		observeStream(o, err)
	})
	return nil
}

// abandon ends an attempt that failed; the task may go on elsewhere.
func (r *Run) abandon(err error) {
	r.once.Do(func() {
		o := r.outcome(err)
		r.hangUp(o)
		observeAttempt(o, err)
		observeStream(o, err)
	})
}

// hangUp gives back what the attempt holds.
func (r *Run) hangUp(o router.Outcome) {
	if r.stop != nil {
		r.stop()
	}
	if r.stream != nil {
		if errors.Is(r.err, io.EOF) {
			_ = r.stream.Close()
		} else {
			_ = r.stream.Reset()
		}
	}
	r.slot.Release(o)
	metrics.InFlight(-1)
}

// outcome says what the end of an attempt tells of its worker. A client that went
// away is not the worker's fault, whatever broke with it.
func (r *Run) outcome(err error) router.Outcome {
	switch {
	case errors.Is(r.err, io.EOF), err == nil:
		return router.Succeeded
	case r.ctx.Err() != nil:
		return router.Unjudged
	case errors.Is(err, wire.ErrCapacity):
		return router.Refused
	case errors.Is(err, wire.ErrAgentFailed), errors.Is(err, wire.ErrRefused):
		return router.AgentFailed
	case errors.Is(err, os.ErrDeadlineExceeded) && r.first != nil: // it worked, if for too long
		return router.AgentFailed
	default:
		return router.Failed
	}
}
