// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// taskRoom is what a task that has no end may come to need in the bucket of the records, in
// bytes, as a rule: it writes two of them that stay, beside what it has there by then.
const taskRoom = 3 << 10

// Of the room for records, the last sixteenth is for tasks that need more than that. Before
// it comes to that, the tasks that ended first make room.
func refuseAt(room int64) int64 { return room - room/16 }
func evictAt(room int64) int64  { return room - room/8 }

const (
	evictPause = 5 * time.Second
	// maxEvicted bounds how many tasks are dropped in one go.
	maxEvicted = 20_000
)

// makeRoom drops the tasks that ended first, before their time, whenever there is little
// room, until the session ends.
func (s *session) makeRoom() {
	for s.ctx.Err() == nil {
		pause(s.ctx, s.limits.evict)
		n, err := s.evict()
		if n > 0 {
			s.log().Warn("tasks that have ended were dropped early: there is no room for more", zap.Int("tasks", n))
		}
		if err != nil && s.ctx.Err() == nil {
			s.log().Warn("making room for tasks", zap.Error(err))
		}
	}
}

// evict drops as many of them as it takes, and returns how many that were.
func (s *session) evict() (n int, err error) {
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	unfinished, _, err := s.store.length(ctx, queueName)
	if err != nil {
		return 0, err
	}
	stream, err := patiently(ctx, s.store, func(ctx context.Context) (jetstream.Stream, error) { return s.store.js.Stream(ctx, recordName) })
	if err != nil {
		return 0, err
	}
	state := stream.CachedInfo().State
	excess := int64(state.Bytes) + int64(unfinished)*taskRoom - evictAt(s.limits.records)
	if excess <= 0 || state.Msgs == 0 {
		return 0, nil
	}
	excess += s.limits.records / 64 // not one by one
	most := min(maxEvicted, int(1+excess/(2*int64(state.Bytes/state.Msgs))))
	found := s.store.records.index.firstEnded(state.FirstSeq, state.LastSeq, most)
	return s.dropAll(ctx, stream, found)
}

// dropAll drops tasks. After a power cut, none must be there as it was before its end, in
// the bucket or in the queue: what is older is gone on disk before the end itself goes.
func (s *session) dropAll(ctx context.Context, stream jetstream.Stream, found []ownedEntry) (n int, err error) {
	idle := found[:0]
	for _, e := range found {
		ok, err := s.isIdle(ctx, &e)
		if err != nil {
			return 0, err
		}
		if ok {
			idle = append(idle, e)
		}
	}
	if err := s.store.force(queueName); err != nil {
		return 0, s.store.failedTo(ctx, err)
	}
	purge := func(e ownedEntry, below uint64) error {
		_, err := patiently(ctx, s.store, func(ctx context.Context) (any, error) {
			return nil, stream.Purge(ctx, jetstream.WithPurgeSubject("$KV."+bucket+"."+e.key(e.owner, false)), jetstream.WithPurgeSequence(below))
		})
		return err
	}
	for _, e := range idle {
		if err := purge(e, e.revision); err != nil {
			return 0, err
		}
	}
	if err := s.store.force(recordName); err != nil {
		return 0, s.store.failedTo(ctx, err)
	}
	for _, e := range idle {
		if err := purge(e, e.revision+1); err != nil {
			return n, err
		}
		s.store.records.index.drop(e)
		n++
	}
	return n, nil
}

// isIdle reports whether nothing is to be done for a task any more, and brings its entry up
// to date.
func (s *session) isIdle(ctx context.Context, e *ownedEntry) (bool, error) {
	key := e.key(e.owner, false)
	r, revision, err := s.store.kept(ctx, key)
	if errors.Is(err, ErrNotFound) {
		s.store.records.index.drop(*e)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if e.entry = newEntry(r, revision); !e.finished() {
		return false, nil
	}
	there, err := s.store.waiting(ctx, s.store.queue, inQueue(key))
	return err == nil && !there, err
}

// ownedEntry is one with the key of its owner.
type ownedEntry struct {
	entry
	owner string
}

// firstEnded returns about so many of the tasks that nothing becomes of any more, those that
// were written first. The bucket has the revisions from first to last.
func (x *index) firstEnded(first, last uint64, most int) (found []ownedEntry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.isLoaded() {
		return nil
	}
	for width := uint64(2 * most); len(found) < most; width *= 2 {
		found = found[:0]
		for owner, all := range x.owners {
			for _, e := range all {
				if e.revision != 0 && e.revision < first+width && e.finished() {
					found = append(found, ownedEntry{e, owner})
				}
			}
		}
		if first+width > last {
			break
		}
	}
	slices.SortFunc(found, func(a, b ownedEntry) int { return cmp.Compare(a.revision, b.revision) })
	return found[:min(len(found), most)]
}

// drop takes a task out.
func (x *index) drop(e ownedEntry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := x.owners[e.owner]
	at, there := slices.BinarySearchFunc(all, e.order, func(e entry, o order) int { return e.order.compare(o) })
	if there && all[at].revision <= e.revision {
		all[at].revision = 0 // see forget
	}
}
