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

// isGone reports whether the process that had a call is no more.
func (s *session) isGone(ctx context.Context, holder string) bool {
	if holder == s.id || !s.store.shared {
		return holder != s.id
	}
	_, err := patiently(ctx, s.store, func(ctx context.Context) (jetstream.KeyValueEntry, error) {
		return s.store.calls.Get(ctx, holderKey(holder))
	})
	return errors.Is(err, jetstream.ErrKeyNotFound)
}

// sweepCalls ends the records of calls whose process has not done so.
func (s *session) sweepCalls() {
	s.readThrough(&s.store.calls, s.mendCall)
}

// mendCall ends a record of a call whose process is gone.
func (s *session) mendCall(r *Record, revision uint64) {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	if r.State.Ended() || !s.isGone(ctx, r.Holder) {
		return
	}
	before := *r
	_ = r.end(Failed, ReasonStopped, "the gateway was stopped while the task ran, or before it could store the end")
	r.note(&before)
	_ = s.store.putCall(ctx, r, jetstream.WithExpectLastSequencePerSubject(revision)) // or it has begun anew
}
