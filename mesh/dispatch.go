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
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

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

// Run is a task that a worker has begun to answer.
type Run struct {
	served Served
	node   *node
	task   *task
	slot   *router.Slot
	stream network.Stream
	out    *wire.OutputReader
	first  []byte // read by Dispatch
	ctx    context.Context
	stop   func() bool // of the watch over ctx
	err    error       // the end, once it is known
	once   sync.Once
}

// Served names who serves the task.
func (r *Run) Served() Served { return r.served }

// Dispatch sends a task to a worker and returns when its output begins, or when
// the agent ended well without any. A worker that fails before that is replaced
// by another, up to c.Retries times. The caller must Close the run. The end of
// ctx stops the agent.
func (l *Lease) Dispatch(ctx context.Context, c Call) (*Run, error) {
	if c.TaskID == "" {
		c.TaskID = wire.NewTaskID()
	}
	frame, err := wire.EncodeTask(c.TaskID, c.Prompt)
	if err != nil {
		return nil, err
	}
	t, err := l.node.tasks.begin(c.TaskID, l.app.artifacts)
	if err != nil {
		return nil, err
	}
	target := c.Target
	target.PromptSize = len(c.Prompt)
	target.Exclude = nil
	deadline := time.Now().Add(TaskTimeout)
	var failure error
	for attempt := 1; attempt <= 1+c.Retries; attempt++ {
		slot, err := l.node.directory.router.Acquire(target, c.Selector)
		if err != nil {
			if failure == nil {
				failure = err
			}
			break
		}
		r, err := l.node.run(ctx, t, slot, frame, deadline, c.EagerNewline)
		if err == nil {
			r.served.Attempts = attempt
			return r, nil
		}
		failure = err
		if ctx.Err() != nil || !time.Now().Before(deadline) {
			break
		}
		l.app.logger.Info("worker failed before its first output",
			zap.String("peer", slot.Worker.Peer), zap.String("task", c.TaskID), zap.Int("attempt", attempt), zap.Error(err))
		target.Exclude = append(target.Exclude, slot.Worker.Peer)
	}
	l.node.tasks.end(t)
	return nil, failure
}

// run sends the frame to the worker of the slot and waits for its first output.
// The slot is released when that fails.
func (n *node) run(ctx context.Context, t *task, slot *router.Slot, frame []byte, deadline time.Time, eager bool) (*Run, error) {
	r := &Run{
		served: Served{Peer: slot.Worker.Peer, Agent: slot.Worker.Agent, Model: slot.Worker.Model, TaskID: t.id},
		node:   n, task: t, slot: slot, ctx: ctx,
	}
	if err := r.open(frame, deadline); err != nil {
		r.abandon()
		return nil, err
	}
	r.out = wire.NewOutputReader(r.stream, ReadSize)
	r.out.EagerNewline = eager
	buf := make([]byte, ReadSize)
	k, err := r.read(buf)
	if err != nil && !errors.Is(err, io.EOF) {
		r.abandon()
		return nil, err
	}
	r.first, r.err = buf[:k], err
	return r, nil
}

// open opens the stream and sends the frame. The deadline is that of the task, in
// all its attempts.
func (r *Run) open(frame []byte, deadline time.Time) error {
	id, err := peer.Decode(r.served.Peer)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	dialCtx, cancel := context.WithTimeout(network.WithAllowLimitedConn(r.ctx, "agentfm"), DialTimeout)
	defer cancel()
	r.stream, err = r.node.host.NewStream(dialCtx, id, wire.TaskProtocol)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	stream := r.stream
	r.stop = context.AfterFunc(r.ctx, func() { _ = stream.Reset() })
	r.task.assign(id)

	_ = stream.SetDeadline(time.Now().Add(FrameTimeout))
	_, err = stream.Write(frame)
	if err == nil && !r.slot.Worker.Duplex {
		err = stream.CloseWrite()
	}
	if err != nil {
		return r.streamError(err)
	}
	return stream.SetDeadline(deadline)
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
		return fmt.Errorf("%w: the task took longer than %s: %w", ErrStream, TaskTimeout, os.ErrDeadlineExceeded)
	}
	return fmt.Errorf("%w: %w", ErrStream, err)
}

// HasFiles reports, after io.EOF, whether the task left files; they have arrived.
func (r *Run) HasFiles() bool { return errors.Is(r.err, io.EOF) && r.out.Files() }

// Close ends the run; the worker stops the agent when it still works. It may be
// called more than once.
func (r *Run) Close() error {
	r.once.Do(func() {
		r.hangUp()
		r.node.tasks.end(r.task)
	})
	return nil
}

// abandon ends an attempt whose task goes on elsewhere.
func (r *Run) abandon() {
	r.once.Do(r.hangUp)
}

// hangUp gives back what the attempt holds.
func (r *Run) hangUp() {
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
	r.slot.Release()
}
