// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// Reasons not to declare an epoch.
var (
	// ErrNotForked says that the own log was not continued twice, as far as is known.
	ErrNotForked = errors.New("this node's log was not continued twice, as far as it knows; there is nothing to recover from")
	// ErrSecondEpoch says that the own log has had its epoch.
	ErrSecondEpoch = errors.New("this node's log was recovered once, which no peer forgives again; the node needs another identity")
)

// Numbers of how the own log was continued twice.
const (
	// forked is not 0 when it was.
	forked = "forked"
	// latest is the latest time at which something of the other log was signed, as far as is known.
	latest = "latest"
)

// skew is how far the clock may have been ahead by which the other log was signed.
const skew = maxAhead / 2

// begin takes in the epoch of the own log. Of the entries that it makes void, those from a place
// on are appended anew: see finish.
func (t *tx) begin(e *wire.Epoch, from uint64) (news bool, err error) {
	s := t.s
	news, left, err := t.declare(e, 0, from)
	switch {
	case err != nil || !news:
		return news, err
	case t.owners.epochs[s.self].Twice:
		s.forked = true
		return true, nil
	}
	shown, err := t.number(published)
	if err != nil {
		return false, err
	}
	for name, n := range map[string]int64{published: min(shown, int64(left)), forked: 0, latest: 0} {
		if err := t.setNumber(name, n); err != nil {
			return false, err
		}
	}
	if _, err := t.Exec("DELETE FROM cosigned WHERE peer = ?", []byte(s.self)); err != nil {
		return false, err
	}
	s.forked = t.owners.liars[s.self]
	if s.lost != nil && e.Voids(s.lost.Time) {
		s.lost = nil
	}
	s.head = nil
	if t.owners.epochs[s.self].voiding {
		return true, nil
	}
	return true, t.signAll()
}

// signAll signs the head of the own log, unless it is empty.
func (t *tx) signAll() error {
	if size, _, err := t.end(t.s.me); err != nil || size == 0 {
		t.s.head = nil
		return err
	}
	return t.signHead()
}

// MayRecover returns why the own log cannot have an epoch now; nil when it can.
func (s *Store) MayRecover() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mayRecover(s.owners.Load())
}

func (s *Store) mayRecover(o *owners) error {
	_, had := o.epochs[s.self]
	switch {
	case s.other:
		return ErrOther
	case !s.forked:
		return ErrNotForked
	case had:
		return ErrSecondEpoch
	}
	return nil
}

// Recover declares the epoch of the own log, which was continued twice: what was signed for it up
// to now is void, and what of that is stored here is appended anew. Nobody may be shown that before
// [Store.Publish]. With an error, the epoch is nil unless it is declared: then the rest is done when
// [Store.Sweep] is called, or the store opened again.
func (s *Store) Recover(ctx context.Context) (e *wire.Epoch, err error) {
	err = s.write(ctx, func(t *tx) error {
		if err := s.mayRecover(t.owners); err != nil {
			return err
		}
		if e, err = t.epoch(); err != nil {
			return err
		}
		_, err = t.begin(e, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	return e, s.finish(context.WithoutCancel(ctx), s.self) // half of it helps nobody
}

// Resumed reports whether the own log was being recovered when the store was closed, or its process
// ended: the rest of that was done when it was opened.
func (s *Store) Resumed() bool { return s.resumed }

// epoch makes and signs the epoch of the own log. It is of a time that is a little ahead: the clock
// may have been by which something of the other log was signed that is not known here.
func (t *tx) epoch() (*wire.Epoch, error) {
	s, now := t.s, t.s.now()
	last, err := t.number(latest)
	if err != nil {
		return nil, err
	}
	e := &wire.Epoch{Peer: s.self, Time: max(last, now.Add(skew).UnixNano())}
	if s.head != nil {
		e.Time = max(e.Time, s.head.Time)
	}
	if e.Time > now.Add(maxAhead).UnixNano() {
		return nil, fmt.Errorf("%w: this node has signed its log at %s, and its clock is behind that", ErrFuture, time.Unix(0, e.Time).UTC().Format(time.RFC3339))
	}
	return e, e.Sign(s.key)
}

// fork remembers that the own log was continued twice, as what was signed at a time tells.
func (t *tx) fork(at int64) error {
	t.s.forked = true
	last, err := t.number(latest)
	if err == nil && at > last {
		err = t.setNumber(latest, at)
	}
	if err != nil {
		return err
	}
	return t.setNumber(forked, 1)
}

// stamp is the time of what this node signs now for its log: no epoch of it makes that void.
func (t *tx) stamp() int64 {
	now := t.s.now().UnixNano()
	if e, ok := t.owners.epochs[t.s.self]; ok {
		now = max(now, e.Time+1)
	}
	return now
}
