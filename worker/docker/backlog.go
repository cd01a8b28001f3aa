// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/pkg/stdcopy"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

const (
	// backlogLimit is how much output waits for a slow listener, before the
	// agent has to; as much again may be on its way to the listener.
	backlogLimit = 8 << 20
	// backlogChunk is how much is written at once.
	backlogChunk = 64 << 10
	// engineDrain is how long the engine waits for the output of a container
	// that has exited, before it drops what is left.
	engineDrain = 2 * time.Second
)

// errOutputLimit says that an agent is too talkative.
var errOutputLimit = &worker.Failure{Cause: wire.CauseOutputLimit, Err: errors.New("the output is over the limit")}

var errOutputLost = errors.New("the end of the output is lost: the output was taken too slowly")

// backlog is the output that a container's listener has yet to take.
//
// It is there because the engine loses output without a word: it drops what is
// in the container's pipe two seconds after the exit, and while the listener
// does not read, the pipe is full. With a backlog a listener may be slower than
// that, and where it is too slow for the backlog as well, we know.
type backlog struct {
	more chan struct{} // holds one token: there is output, or the end of it
	room chan struct{} // holds one token: something was taken

	mu      sync.Mutex
	data    []byte
	ended   bool
	stalled bool      // the container's pipe is not being read
	stall   time.Time // when that was last so
}

func newBacklog() *backlog {
	return &backlog{more: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// fill reads both output streams of a container until they close, or until there is
// more than limit. Standard error goes to stderr instead where that is not nil.
func (b *backlog) fill(ctx context.Context, r io.Reader, stderr io.WriteCloser, limit int64) error {
	w := &filler{ctx, b, limit}
	var errors io.Writer = w
	if stderr != nil {
		defer stderr.Close()
		errors = &aside{w, stderr}
	}
	_, err := stdcopy.StdCopy(w, errors, r)
	return err
}

// aside is output that counts, and goes elsewhere.
type aside struct {
	f *filler
	w io.Writer
}

// Write implements io.Writer.
func (a *aside) Write(p []byte) (int, error) {
	if a.f.left -= int64(len(p)); a.f.left < 0 {
		return 0, errOutputLimit
	}
	return a.w.Write(p)
}

// filler is the writing side of a backlog.
type filler struct {
	ctx  context.Context
	b    *backlog
	left int64 // of the limit
}

// Write implements io.Writer.
func (f *filler) Write(p []byte) (int, error) {
	if f.left -= int64(len(p)); f.left < 0 {
		return 0, errOutputLimit
	}
	for !f.b.add(p) {
		select {
		case <-f.b.room:
		case <-f.ctx.Done():
			return 0, context.Cause(f.ctx)
		}
	}
	signal(f.b.more)
	return len(p), nil
}

// add adds output, if there is room.
func (b *backlog) add(p []byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.data) >= backlogLimit {
		b.stalled = true
		return false
	}
	if b.stalled {
		b.stalled, b.stall = false, time.Now()
	}
	b.data = append(b.data, p...)
	return true
}

// end says that nothing more comes.
func (b *backlog) end() {
	b.mu.Lock()
	b.ended = true
	b.mu.Unlock()
	signal(b.more)
}

// deliver writes the backlog to w until its end, an error of w, or the end of ctx.
func (b *backlog) deliver(ctx context.Context, w io.Writer) error {
	var data []byte
	for {
		var ended bool
		data, ended = b.take(data)
		for chunk := range slices.Chunk(data, backlogChunk) {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if _, err := w.Write(chunk); err != nil {
				return err
			}
		}
		if len(data) > 0 {
			continue
		}
		if ended {
			return nil
		}
		select {
		case <-b.more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// take returns what is there and leaves the memory of spare in its place.
func (b *backlog) take(spare []byte) (data []byte, ended bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	data, b.data = b.data, spare[:0]
	signal(b.room)
	return data, b.ended
}

// stalledSince reports whether the container's pipe was left unread after t.
func (b *backlog) stalledSince(t time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stalled || b.stall.After(t)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
