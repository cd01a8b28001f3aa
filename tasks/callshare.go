// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// cancelElsewhere has another gateway cancel a call.
func (s *session) cancelElsewhere(ctx context.Context, key string) (*Record, error) {
	for {
		if err := s.store.conn.Publish(cancelSubject+key, nil); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrStore, err)
		}
		pause(ctx, 200*time.Millisecond)
		r, _, err := s.store.getCall(ctx, key)
		switch {
		case err != nil:
			return nil, err
		case r.State == Cancelled:
			return r, nil
		case r.State.Ended():
			return r, ErrEnded
		}
	}
}

// shareCalls begins what calls take where several gateways use the store: to hear what is
// cancelled, to say that this gateway lives, and to look for those that do not.
func (s *session) shareCalls() error {
	_, err := s.store.conn.Subscribe(cancelSubject+">", func(m *nats.Msg) {
		if c := s.calls.find(strings.TrimPrefix(m.Subject, cancelSubject)); c != nil {
			c.cancel(ErrCancelled)
		}
	})
	if err != nil {
		return err
	}
	if err := s.live(); err != nil {
		return err
	}
	s.running.Go(func() {
		for s.ctx.Err() == nil {
			pause(s.ctx, s.limits.lease/3)
			_ = s.live()
		}
	})
	s.running.Go(func() { // by itself: it may take long, and who does not live loses its calls
		for s.ctx.Err() == nil {
			s.sweepCalls()
			pause(s.ctx, 2*s.limits.lease)
		}
	})
	return nil
}

// live says that this gateway lives.
func (s *session) live() error {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	_, err := s.store.publish(ctx, &nats.Msg{Subject: callSubject + holderKey(s.id)}, jetstream.WithMsgTTL(s.limits.lease))
	return err
}

// holderKey is where a gateway says that it lives.
func holderKey(id string) string { return "holder." + id }

// isGone reports whether nobody has a call any more: its process is no more, or it is this
// one, and has ended it. A call is among those of its process before its record is written,
// and until its end is.
func (s *session) isGone(ctx context.Context, r *Record) bool {
	if r.Holder == s.id {
		return s.calls.find(r.key()) == nil
	}
	if !s.store.shared {
		return true
	}
	_, err := patiently(ctx, s.store, func(ctx context.Context) (jetstream.KeyValueEntry, error) {
		return s.store.calls.Get(ctx, holderKey(r.Holder))
	})
	return errors.Is(err, jetstream.ErrKeyNotFound)
}

// sweepCalls ends the records of calls that nobody has any more.
func (s *session) sweepCalls() {
	s.readThrough(&s.store.calls, func(r *Record, revision uint64) { _ = s.mendCall(r, revision) })
}

// mendCall ends a record of a call that nobody has any more.
func (s *session) mendCall(r *Record, revision uint64) error {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	if r.State.Ended() || !s.isGone(ctx, r) {
		return nil
	}
	before := *r
	_ = r.end(Failed, ReasonStopped, "the gateway was stopped while the task ran, or before it could store the end")
	r.note(&before)
	return s.store.putCall(ctx, r, jetstream.WithExpectLastSequencePerSubject(revision)) // or it has begun anew
}

// storeEnds stores the ends of calls that could not be stored, until the session ends.
func (s *session) storeEnds() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case c := <-s.calls.late:
			if s.storeEnd(c) == nil {
				s.calls.forget(c.record.key(), c)
				continue
			}
			s.calls.later(c)
			pause(s.ctx, time.Second)
		}
	}
}

// storeEnd stores the end of a call, unless its record has one, or is another's.
func (s *session) storeEnd(c *Call) error {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	last := c.record // it does not change any more
	r, revision, err := s.store.getCall(ctx, last.key())
	switch {
	case errors.Is(err, ErrNotFound): // not even its beginning was stored
	case err != nil:
		return err
	case r.State.Ended(), r.Holder != last.Holder, !r.Created.Equal(last.Created), s.calls.find(last.key()) != c:
		return nil
	}
	return s.store.putCall(ctx, &last, jetstream.WithExpectLastSequencePerSubject(revision))
}
