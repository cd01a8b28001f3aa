// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Limits of what is kept of a task's output.
const (
	// MaxOutput is how much one task may have, in bytes; with more it fails.
	MaxOutput = 32 << 20

	// chunkSize is how much is written at one time, and chunkTime how long less than
	// that may wait.
	chunkSize = 128 << 10
	chunkTime = 200 * time.Millisecond
)

// errTooMuch says that the output is over the limit.
var errTooMuch = errors.New("too much output")

// ErrExpired says that the output of a task is not kept any more.
var ErrExpired = errors.New("the output is not kept any more")

// ErrNotKept says that the output went to the client that waited for it, and is not kept.
var ErrNotKept = errors.New("the output is not kept")

// offsetHeader says where a chunk begins in the output.
const offsetHeader = "Agentfm-Offset"

// outputOf is the subject of the output of the attempts at a task since the last loss.
func (r *Record) outputOf() string { return outputSubject + r.key() + "." + strconv.Itoa(r.Lost) }

// keepOutput stores what an agent writes, to its end, and returns how much of it is there,
// also of one that fails. When storing fails, it calls stop, which makes the agent end.
func (s *store) keepOutput(ctx context.Context, r *Record, limit int64, from io.Reader, stop func()) (int64, error) {
	w := &outputWriter{store: s, ctx: ctx, key: r.key(), subject: r.outputOf(), attempt: r.Attempts, limit: limit}
	chunks := make(chan []byte)
	ended := make(chan error, 1)
	go func() { // reads: a chunk must not wait for what the agent has yet to say
		defer close(chunks)
		for {
			buf := make([]byte, 8<<10)
			n, err := from.Read(buf)
			if n > 0 {
				chunks <- buf[:n]
			}
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	err := w.copy(chunks)
	if err != nil {
		stop()
		for range chunks { // until the reader has ended
		}
	} else if err = <-ended; err == io.EOF {
		err = nil
	}
	if errors.Is(err, ErrStore) {
		return 0, err
	}
	if err := s.sync(outputName, w.last); err != nil {
		return 0, s.failedTo(ctx, err)
	}
	return w.size, err
}

// outputWriter writes chunks of an output.
type outputWriter struct {
	store   *store
	ctx     context.Context
	key     string // of the task
	subject string
	attempt int
	limit   int64
	buf     []byte
	size    int64  // written
	last    uint64 // the last message
}

// copy writes what comes.
func (w *outputWriter) copy(chunks <-chan []byte) error {
	tick := time.NewTicker(chunkTime)
	defer tick.Stop()
	for {
		select {
		case b, ok := <-chunks:
			if !ok {
				return w.flush()
			}
			if err := w.add(b); err != nil {
				return err
			}
		case <-tick.C:
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
}

// add takes what comes, and writes when there is enough.
func (w *outputWriter) add(b []byte) error {
	if w.size+int64(len(w.buf)+len(b)) > w.limit {
		return errTooMuch
	}
	if w.buf = append(w.buf, b...); len(w.buf) < chunkSize {
		return nil
	}
	return w.flush()
}

// flush writes what is held.
func (w *outputWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	msg := &nats.Msg{Subject: w.subject, Data: w.buf, Header: nats.Header{offsetHeader: {strconv.FormatInt(w.size, 10)}}}
	var opts []jetstream.PublishOpt
	if w.store.shared { // which may be given it twice
		opts = append(opts, jetstream.WithMsgID(fmt.Sprint(w.subject, "@", w.attempt, "@", w.size)))
	}
	message, err := w.store.publish(w.ctx, msg, opts...)
	if err != nil {
		if w.ctx.Err() != nil {
			return context.Cause(w.ctx)
		}
		return w.store.failedTo(w.ctx, err)
	}
	w.last = message
	w.size += int64(len(w.buf))
	w.buf = w.buf[:0]
	w.store.changed(w.key)
	return nil
}

// forget removes the output of attempts that were lost, and all of it when the task
// did not come to an end.
func (s *store) forgetOutput(ctx context.Context, r *Record, lost int) {
	old := *r
	old.Lost = lost
	_ = s.output.Purge(ctx, jetstream.WithPurgeSubject(old.outputOf()))
}

// Output is the output of a task as far as it has come.
type Output struct {
	store   *store
	stream  jetstream.Stream // that it is in
	subject string
	ctx     context.Context
	next    uint64
	size    int64 // where the next piece begins
	first   []byte
}

// ErrOffset says that an offset is beyond the end of an output.
var ErrOffset = errors.New("the output is not as long as that")

// openOutput returns a task's output from an offset on. The error is [ErrExpired] when
// there was some, and it is gone.
func (s *store) openOutput(ctx context.Context, r *Record, offset int64) (*Output, error) {
	o, err := s.outputAt(ctx, r, offset)
	if err != nil || r.State.Ended() && r.Bytes == offset {
		return o, err
	}
	o.first, err = o.chunk()
	switch {
	case err == nil, errors.Is(err, io.EOF) && (!r.State.Ended() || r.Bytes == 0):
		return o, nil
	case errors.Is(err, io.EOF):
		return nil, ErrExpired
	}
	return nil, err
}

// outputAt returns a task's output from an offset on, whether there is any or not.
func (s *store) outputAt(ctx context.Context, r *Record, offset int64) (*Output, error) {
	o := &Output{store: s, stream: s.output, ctx: ctx, subject: r.outputOf(), next: 1, size: offset}
	if offset == 0 {
		return o, nil
	}
	last, err := s.last(ctx, s.output, o.subject)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound) && offset <= r.Bytes:
		return nil, ErrExpired
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, ErrOffset
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrStore, err)
	}
	if end := endOf(last); end < offset {
		return nil, ErrOffset
	}
	// What ends after the offset comes after what does not.
	for low, high := uint64(1), last.Sequence+1; ; {
		if o.next = low; low >= high || low > last.Sequence {
			return o, nil
		}
		middle := low + (high-low)/2
		msg, err := s.next(ctx, s.output, middle, o.subject)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%w: %w", ErrStore, err)
		case endOf(msg) <= offset:
			low = msg.Sequence + 1
		default:
			high = middle
		}
	}
}

// beginOf returns where a piece begins in the output; -1 where it does not say so.
func beginOf(msg *jetstream.RawStreamMsg) int64 {
	n, err := strconv.ParseInt(msg.Header.Get(offsetHeader), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// endOf returns where a piece ends.
func endOf(msg *jetstream.RawStreamMsg) int64 { return beginOf(msg) + int64(len(msg.Data)) }

// Next returns the next piece; io.EOF after the last that there is now.
func (o *Output) Next() ([]byte, error) {
	if first := o.first; first != nil {
		o.first = nil
		return first, nil
	}
	return o.chunk()
}

// chunk reads the next piece.
func (o *Output) chunk() ([]byte, error) {
	msg, err := o.store.next(o.ctx, o.stream, o.next, o.subject)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, io.EOF
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrStore, err)
	}
	begin, end := beginOf(msg), endOf(msg)
	if begin < 0 || begin > o.size || end <= o.size { // what was before it is gone
		return nil, ErrExpired
	}
	piece := msg.Data[o.size-begin:]
	o.next, o.size = msg.Sequence+1, end
	return piece, nil
}

// watchOutput calls wake with the key of each task that has more output, of all gateways. A
// wake can be lost: those who wait look by themselves, too, every now and then.
func (s *store) watchOutput(ctx context.Context, wake func(key string)) (jetstream.ConsumeContext, error) {
	c, err := patiently(ctx, s, func(ctx context.Context) (jetstream.Consumer, error) {
		return s.js.OrderedConsumer(ctx, outputName, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy, HeadersOnly: true})
	})
	if err != nil {
		return nil, err
	}
	return c.Consume(func(msg jetstream.Msg) {
		key := strings.TrimPrefix(msg.Subject(), outputSubject)
		if i := strings.IndexByte(key, '.'); i >= 0 { // the owner, the id, and what the attempt is told by
			if j := strings.IndexByte(key[i+1:], '.'); j >= 0 {
				wake(key[:i+1+j])
			}
		}
	}, jetstream.PullHeartbeat(time.Second), jetstream.PullExpiry(5*time.Second))
}
