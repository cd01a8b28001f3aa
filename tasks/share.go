// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// How often the store is looked at that several gateways share.
const (
	pulsePause = 5 * time.Second
	sweepPause = 10 * time.Minute
	// firstSweep is how long after the first look the second follows: longer than it takes
	// to accept a task.
	firstSweep = 30 * time.Second
)

// share begins what a store takes that other gateways use, too.
func (s *session) share(ctx context.Context) error {
	output, err := s.store.watchOutput(ctx, s.followers.wake)
	if err != nil {
		return err
	}
	s.running.Go(func() {
		<-s.ctx.Done()
		output.Stop()
		<-output.Closed()
	})
	changes, err := s.store.watch(s.ctx, &s.store.records, jetstream.UpdatesOnly())
	if err != nil {
		return err
	}
	s.running.Go(func() {
		defer endWatch(changes)
		s.follow(changes)
	})
	if err := s.shareCalls(); err != nil {
		return err
	}
	s.running.Go(s.pulse)
	s.running.Go(s.sweepShared)
	return nil
}

// follow stops what runs here and was cancelled at another gateway, or taken by it.
func (s *session) follow(changes jetstream.KeyWatcher) {
	for {
		select {
		case <-s.ctx.Done():
			return
		case entry, ok := <-changes.Updates():
			if !ok {
				_ = s.store.failedTo(s.ctx, errors.New("the changes of tasks cannot be followed"))
				return
			}
			if entry == nil || s.silent.Load() {
				continue
			}
			s.followers.wake(entry.Key())
			r, err := decode(entry.Value())
			if err == nil {
				s.store.records.index.note(r, entry.Revision())
			}
			s.store.records.index.follow(entry.Revision())
			c := s.claimOf(entry.Key())
			switch {
			case err != nil, c == nil:
			case r.State == Cancelled:
				c.cancel(ErrCancelled)
			case int64(r.Lost) > c.lost.Load():
				c.cancel(errTaken)
			}
		}
	}
}

// pulse looks again and again whether the store can be written. The servers may be away
// while nobody has anything to store; those who look at the health want to know.
func (s *session) pulse() {
	const key = "pulse" // no record's: it has no owner
	for s.ctx.Err() == nil {
		pause(s.ctx, pulsePause)
		_, err := patiently(s.ctx, s.store, func(ctx context.Context) (uint64, error) { return s.store.records.Put(ctx, key, nil) })
		if err != nil && s.ctx.Err() == nil {
			_ = s.store.failedTo(s.ctx, err)
			return
		}
	}
}

// sweepShared does what sweep does, for a store where others may be about to put a task
// into the queue: a record is left over when nothing has become of it between two looks.
func (s *session) sweepShared() {
	before := make(map[string]uint64) // revisions of the records of tasks without an end
	for wait := min(firstSweep, s.limits.sweep); s.ctx.Err() == nil; wait = s.limits.sweep {
		now := make(map[string]uint64)
		s.readThrough(&s.store.records, func(r *Record, revision uint64) {
			if r.State.Ended() {
				return
			}
			if before[r.ID] == revision {
				s.mend(r, revision)
			}
			now[r.ID] = revision
		})
		before = now
		pause(s.ctx, wait)
	}
}
