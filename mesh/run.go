// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// Run is a task that a worker has begun to answer.
type Run struct {
	served  Served
	node    *node
	task    *task // nil where the worker serves the request itself
	slot    router.Slot
	answer  answer
	first   []byte          // read by Dispatch, and not yet given out
	buf     *firstBuffer    // what first is in; nil once it is given out
	ctx     context.Context // of the call
	attempt context.Context // ends with it, and when the worker goes before its first output
	release context.CancelCauseFunc
	begun   time.Time
	timeout time.Duration
	aside   bool  // see [Call]
	working bool  // its output has begun
	enough  bool  // see Enough
	err     error // the end, once it is known
	once    sync.Once
}

// answer is what a worker sends back in one attempt.
type answer interface {
	// Read gives out the agent's output, or the body of the worker's answer. It ends
	// with io.EOF when all went well and the files that it left have arrived.
	io.Reader
	// limit sets the deadline for what is still to be read.
	limit(time.Time)
	// left returns, after io.EOF, what files there are; nil for none.
	left() *wire.Artifact
	// usage returns, after io.EOF, what the agent's model has counted; nil where that is
	// not known.
	usage() *wire.Usage
	// end gives back what the answer holds. The worker stops when it was not whole.
	end(whole bool)
}

// Served names who serves the task.
func (r *Run) Served() Served { return r.served }

// Response returns the head of the answer when the worker serves the request of
// the call itself, and what is read is its body; nil when it is an agent's output.
func (r *Run) Response() *Response {
	a, ok := r.answer.(*httpAnswer)
	if !ok {
		return nil
	}
	return &a.head
}

// open sends the task to the worker, by the newest protocol that it speaks.
func (r *Run) open(d *dispatch) error {
	id, err := r.node.directory.id(r.served.Peer)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	switch {
	case d.Request != nil:
		err = r.sendRequest(d, id)
	case r.slot.Worker.HTTP:
		err = r.sendTask(d, id)
	default:
		err = r.writeTask(d, id)
	}
	if err != nil {
		return r.failure(err)
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

// firstBuffer is for the first output of a task, from Dispatch to the first reads.
type firstBuffer [ReadSize]byte

var firstBuffers = sync.Pool{New: func() any { return new(firstBuffer) }}

// readFirst waits for the first output. The time for it is set.
func (r *Run) readFirst(d *dispatch) error {
	buf := firstBuffers.Get().(*firstBuffer)
	k, err := r.read(buf[:])
	if err == nil || errors.Is(err, io.EOF) {
		r.working, r.buf, r.first = true, buf, buf[:k]
		r.ended(err)
		if d.first.Before(d.deadline) {
			r.answer.limit(d.deadline)
		}
		return nil
	}
	firstBuffers.Put(buf)
	return err
}

// Read gives out the agent's output, exactly as the agent wrote it. It ends with
// io.EOF when the agent succeeded and its files have arrived; with any other
// error it did not.
func (r *Run) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		k := copy(p, r.first)
		if r.first = r.first[k:]; len(r.first) == 0 {
			firstBuffers.Put(r.buf)
			r.first, r.buf = nil, nil
		}
		return k, nil
	}
	if r.err != nil {
		return 0, r.err
	}
	k, err := r.read(p)
	r.ended(err)
	return k, err
}

// ended notes the end, unless err is nil. The slot of a task that is whole is free at once:
// who gets the last of its answer may send the next one before Close.
func (r *Run) ended(err error) {
	if r.err = err; errors.Is(err, io.EOF) {
		r.slot.Release(r.statusOutcome())
	}
}

// read reads from the worker.
func (r *Run) read(p []byte) (int, error) {
	k, err := r.answer.Read(p)
	if err == nil || errors.Is(err, io.EOF) {
		return k, err
	}
	return k, r.failure(err)
}

// failure tells what a worker has said from what happened on the way.
func (r *Run) failure(err error) error {
	for _, told := range []error{
		wire.ErrCapacity, wire.ErrRefused, wire.ErrAgentFailed, wire.ErrTruncated, ErrArtifact, ErrUnreachable, ErrUnavailable,
	} {
		if errors.Is(err, told) {
			return err
		}
	}
	return r.streamError(err)
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
func (r *Run) HasFiles() bool { return r.Artifact() != nil }

// Artifact says, after io.EOF, what the zip of the task's files is, with the hash of what
// has arrived; nil where there are none.
func (r *Run) Artifact() *wire.Artifact {
	if !errors.Is(r.err, io.EOF) {
		return nil
	}
	return r.answer.left()
}

// Usage returns, after io.EOF, what the agent's model has counted; nil where that is not
// known.
func (r *Run) Usage() *wire.Usage {
	if !errors.Is(r.err, io.EOF) {
		return nil
	}
	return r.answer.usage()
}

// Enough says that the caller wants no more of an answer that is well so far.
func (r *Run) Enough() { r.enough = true }

// errUnread says that an answer was not read to its end.
var errUnread = fmt.Errorf("%w: nobody takes the rest of the answer", context.Canceled)

// Close ends the run; the worker stops the agent when it still works. It may be
// called more than once.
func (r *Run) Close() error {
	r.once.Do(func() {
		err := r.err
		switch {
		case errors.Is(err, io.EOF):
			err = r.ctx.Err()
		case err == nil:
			if err = r.ctx.Err(); err == nil && !r.enough {
				err = errUnread
			}
		}
		o := r.outcome(err)
		r.hangUp(o, err)
		if r.task != nil {
			r.node.tasks.end(r.task)
		}
		if !r.aside {
			observeTask(r.begun, errors.Join(err, r.statusError()))
		}
		observeStream(o, err)
	})
	return nil
}

// statusError is the error of an answer whose status says that the worker failed.
func (r *Run) statusError() error {
	if resp := r.Response(); resp != nil && resp.Status >= http.StatusInternalServerError {
		return fmt.Errorf("%w: status %d", wire.ErrAgentFailed, resp.Status)
	}
	return nil
}

// abandon ends an attempt that failed; the task may go on elsewhere.
func (r *Run) abandon(err error) {
	r.once.Do(func() {
		o := r.outcome(err)
		r.hangUp(o, err)
		if !r.aside {
			observeAttempt(o, err)
		}
		observeStream(o, err)
	})
}

// hangUp gives back what the attempt holds.
func (r *Run) hangUp(o router.Outcome, err error) {
	if r.answer != nil {
		r.answer.end(errors.Is(r.err, io.EOF))
	}
	r.release(nil)
	r.slot.Release(o)
	if !r.aside {
		r.node.judged(r.served.Peer, o, err)
		metrics.InFlight(-1)
	}
}

// outcome says what the end of an attempt tells of its worker. A client that went
// away is not the worker's fault, whatever broke with it.
func (r *Run) outcome(err error) router.Outcome {
	switch {
	case errors.Is(r.err, io.EOF), err == nil:
		return r.statusOutcome()
	case errors.Is(err, errUnread):
		if o := r.statusOutcome(); o != router.Succeeded {
			return o
		}
		return router.Unjudged
	case r.ctx.Err() != nil, errors.Is(err, ErrNoRoom), errors.Is(err, ErrNoModel): // what it has, it may serve well
		return router.Unjudged
	case errors.Is(err, wire.ErrCapacity):
		return router.Refused
	case errors.Is(err, wire.ErrAgentFailed), errors.Is(err, wire.ErrRefused):
		return router.AgentFailed
	case errors.Is(err, os.ErrDeadlineExceeded) && r.working: // it worked, if for too long
		return router.AgentFailed
	default:
		return router.Failed
	}
}

// statusOutcome is the outcome of an answer that came whole. Where a worker serves
// the request itself, the status tells, also before the rest has come.
func (r *Run) statusOutcome() router.Outcome {
	resp := r.Response()
	switch {
	case resp == nil:
		return router.Succeeded
	case resp.Status == http.StatusForbidden, resp.Status == http.StatusNotModified: // of the worker, or of what was asked
		return router.Unjudged
	case RefusesWorker(resp.Status):
		return router.AgentFailed
	case resp.Status < http.StatusInternalServerError && !limited(resp.Status), resp.Status == http.StatusNotImplemented:
		return router.Succeeded
	case limited(resp.Status):
		return router.Refused
	default:
		return router.AgentFailed
	}
}

// RefusesWorker reports whether with a status a model server refuses its worker, or sends it
// elsewhere: a client would take that to be about itself.
func RefusesWorker(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusProxyAuthRequired ||
		status >= 300 && status < 400 || status < 200
}

// limited reports whether a status says that a server is full.
func limited(status int) bool {
	return status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable
}
