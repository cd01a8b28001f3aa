// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

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
