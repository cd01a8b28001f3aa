// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"io"
	"slices"

	"github.com/nats-io/nats.go/jetstream"
)

// KeyClaim is the use of a key by the request that is served. Its answer is written to it as
// it comes. It must be ended, by one of Keep, Lose, Free and Leave. Others see it in use
// until then.
type KeyClaim struct {
	// Task is the id for the task that the request submits.
	Task string
	// Accepted says that this task was accepted already: it must not be submitted.
	Accepted bool

	part     *Part
	flights  *flights
	subject  string
	record   keyRecord
	revision uint64
	answer   outputWriter
	failure  error // of keeping the answer
}

// Write implements io.Writer. It never fails: an answer that cannot be kept is lost in the
// end.
func (c *KeyClaim) Write(p []byte) (int, error) {
	if c.failure == nil {
		c.failure = c.answer.add(p)
	}
	return len(p), nil
}

// Keep ends the claim with the answer: from now on, requests with the key get it.
func (c *KeyClaim) Keep(h Head) error {
	if c.failure == nil && c.answer.size+int64(len(c.answer.buf)) > maxInline {
		c.failure = c.answer.flush()
	}
	if c.failure == nil && c.answer.size > 0 {
		if c.failure = c.answer.store.sync(answerName, c.answer.last); c.failure != nil {
			c.failure = c.answer.store.failedTo(c.answer.ctx, c.failure)
		}
	}
	switch {
	case errors.Is(c.failure, errTooMuch):
		return c.Lose(LostSize)
	case c.failure != nil:
		return c.Lose(LostStore)
	case c.answer.size > 0:
		c.record.Place = c.answer.subject
	}
	c.record.State, c.record.Head = keyAnswered, &h
	c.record.Size, c.record.body = c.answer.size+int64(len(c.answer.buf)), slices.Clone(c.answer.buf)
	return c.end()
}

// Lose ends the claim without an answer. Requests with the key are told so.
func (c *KeyClaim) Lose(why Lost) error {
	c.record.State, c.record.Lost = keyLost, why
	return c.end()
}

// Free gives the key back: nothing was begun. Should its record be back after a power cut,
// it has no answer.
func (c *KeyClaim) Free() error {
	return c.settle(func(ctx context.Context, s *session) error {
		return s.store.keys.Purge(ctx, jetstream.WithPurgeSubject(c.subject))
	})
}

// Leave ends the claim of a request of which it is not known whether its task was
// accepted. The next one with the key finds out.
func (c *KeyClaim) Leave() { c.flights.end(c.subject) }

// end stores what became of the request.
func (c *KeyClaim) end() error {
	return c.settle(func(ctx context.Context, s *session) error {
		_, err := s.store.putKey(ctx, c.subject, &c.record, c.revision, c.record.Created.Add(KeepKey).Sub(s.limits.now()))
		return err
	})
}

// settle ends the claim by a write to the store.
func (c *KeyClaim) settle(write func(context.Context, *session) error) error {
	defer c.Leave()
	s, release, err := c.part.use()
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithTimeout(c.answer.ctx, callTimeout)
	defer cancel()
	return write(ctx, s)
}

// Kept is the answer to a request with a key.
type Kept struct {
	Head
	// Size is that of the body.
	Size int64

	body   []byte
	output *Output // where the body is not with the record
}

// openKept returns a kept answer. The error is a [*LostError] when its body is gone.
func (s *store) openKept(ctx context.Context, r *keyRecord) (*Kept, error) {
	k := &Kept{Head: *r.Head, Size: r.Size, body: r.body}
	if r.Place == "" {
		return k, nil
	}
	k.output = &Output{store: s, stream: s.answers, ctx: ctx, subject: r.Place, next: 1}
	first, err := k.output.chunk()
	switch {
	case err == io.EOF, errors.Is(err, ErrExpired):
		return nil, &LostError{LostAge}
	case err != nil:
		return nil, err
	}
	k.output.first = first
	return k, nil
}

// Next returns the next piece of the body; io.EOF after the last.
func (k *Kept) Next() ([]byte, error) {
	if k.output != nil {
		b, err := k.output.Next()
		if err == io.EOF && k.output.size != k.Size {
			return nil, ErrExpired
		}
		return b, err
	}
	if b := k.body; len(b) > 0 {
		k.body = nil
		return b, nil
	}
	return nil, io.EOF
}
