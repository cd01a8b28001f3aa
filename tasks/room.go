// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
)

// taskRoom is what a task that has no end may come to need in the bucket of the records, in
// bytes, as a rule: it writes two of them that stay, beside what it has there by then.
const taskRoom = 3 << 10

// moreRoom is what a task needs beyond that, whose record has so many bytes in the queue.
func moreRoom(header int) int64 { return int64(max(0, 2*header-taskRoom/2)) }

// Of the room for records, the last sixteenth is for tasks that need more than that. Before
// it comes to that, the tasks that ended first make room.
func refuseAt(room int64) int64 { return room - room/16 }
func evictAt(room int64) int64  { return room - room/8 }

const (
	evictPause = 5 * time.Second
	// evictTime bounds how long it takes to drop evictBatch tasks, evictAtOnce at one time.
	evictTime   = time.Minute
	evictBatch  = 500
	evictAtOnce = 16
)

// errHeld says that there is little room, and that all is to be kept that there is.
var errHeld = errors.New("nothing can be dropped: tasks wait for their webhooks to be delivered, or have an idempotency key of less than 24 hours")

// makeRoom drops the tasks that ended first, before their time, whenever there is little
// room, until the session ends.
func (s *session) makeRoom() {
	var told time.Time // when it was said last that something is wrong
	for s.ctx.Err() == nil {
		pause(s.ctx, s.limits.evict/2+rand.N(s.limits.evict)) // gateways that share a store do not all begin at one time
		n, err := s.evict()
		if n > 0 {
			metrics.AsyncDropped(n)
			s.log().Warn("tasks that have ended were dropped early: there is no room for more", zap.Int("tasks", n))
		}
		if err != nil && s.ctx.Err() == nil && time.Since(told) > time.Minute {
			told = time.Now()
			s.log().Warn("making room for tasks", zap.Error(err))
		}
	}
}

// evict drops as many of them as it takes, and returns how many that were. It goes on past
// those that cannot be dropped.
func (s *session) evict() (n int, err error) {
	enough := evictAt(s.limits.records)
	for after := uint64(0); ; {
		ctx, cancel := context.WithTimeout(s.ctx, evictTime)
		most, last, err := s.evictSome(ctx, after, enough)
		cancel()
		n += most
		switch {
		case n > 0 && errors.Is(err, errHeld):
			return n, nil
		case err != nil || last == 0:
			return n, err
		}
		after, enough = last, evictAt(s.limits.records)-s.limits.records/64 // not one by one
	}
}

// evictSome drops some of those that were last written after a revision, unless no more is
// needed than enough. It returns how many, and the revision that the next are after; 0 for
// none.
func (s *session) evictSome(ctx context.Context, after uint64, enough int64) (n int, last uint64, err error) {
	messages, bytes, err := s.store.length(ctx, queueName)
	if err != nil {
		return 0, 0, err
	}
	stream, err := patiently(ctx, s.store, func(ctx context.Context) (jetstream.Stream, error) { return s.store.js.Stream(ctx, recordName) })
	if err != nil {
		return 0, 0, err
	}
	state := stream.CachedInfo().State
	s.shares.weigh(s.store.records.index, state, s.limits)
	if int64(state.Bytes)+int64(messages)*taskRoom+s.backlog.more(bytes) <= enough || !s.store.records.index.isLoaded() {
		return 0, 0, nil
	}
	found := s.store.records.index.firstEnded(after, evictBatch, s.limits.now())
	if len(found) == 0 {
		return 0, 0, errHeld
	}
	last = found[len(found)-1].revision
	n, err = s.dropAll(ctx, found)
	return n, last, err
}

// dropAll drops tasks. After a power cut, none must be there as it was before its end, in
// the bucket or in the queue: what is older is gone on disk before the end itself goes. What
// another gateway drops at the same time is counted by one of them.
func (s *session) dropAll(ctx context.Context, found []ownedEntry) (n int, err error) {
	err = forEach(found, func(e *ownedEntry) error {
		idle, err := s.isIdle(ctx, e)
		if !idle {
			e.revision = 0
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	idle := slices.DeleteFunc(found, func(e ownedEntry) bool { return e.revision == 0 })
	purge := func(e *ownedEntry, below uint64) (uint64, error) {
		return step(s.store, "purge", e.owner, func() (uint64, error) {
			return s.store.purge(ctx, "$KV."+bucket+"."+e.key(e.owner, false), below)
		})
	}
	if err := s.store.force(queueName); err != nil {
		return 0, s.store.failedTo(ctx, err)
	}
	err = forEach(idle, func(e *ownedEntry) error {
		_, err := purge(e, e.revision)
		return err
	})
	if err != nil {
		return 0, err
	}
	if err := s.store.force(recordName); err != nil {
		return 0, s.store.failedTo(ctx, err)
	}
	var dropped atomic.Int64
	err = forEach(idle, func(e *ownedEntry) error {
		n, err := purge(e, e.revision+1)
		if err == nil {
			s.store.records.index.drop(*e)
			dropped.Add(int64(min(n, 1))) // another gateway may have dropped it meanwhile
		}
		return err
	})
	return int(dropped.Load()), err
}

// purge removes what is older than one from a subject of the records, and returns how many there
// were, which the library keeps to itself.
func (s *store) purge(ctx context.Context, subject string, older uint64) (uint64, error) {
	answer, err := request[struct {
		Purged uint64 `json:"purged"`
	}](ctx, s, "STREAM.PURGE."+recordName, jetstream.StreamPurgeRequest{Subject: subject, Sequence: older})
	return answer.Purged, err
}

// request asks the server for what the library has no call for, or keeps a part of to itself.
func request[T any](ctx context.Context, s *store, what string, question any) (answer T, err error) {
	b, err := json.Marshal(question)
	if err != nil {
		return answer, err
	}
	return patiently(ctx, s, func(ctx context.Context) (answer T, err error) {
		msg, err := s.conn.RequestWithContext(ctx, jetstream.DefaultAPIPrefix+what, b)
		if err != nil {
			return answer, err
		}
		var refusal struct {
			Error *jetstream.APIError `json:"error"`
		}
		if err := json.Unmarshal(msg.Data, &refusal); err != nil {
			return answer, err
		}
		if refusal.Error != nil {
			return answer, refusal.Error
		}
		err = json.Unmarshal(msg.Data, &answer)
		return answer, err
	})
}

// forEach calls do with each of some tasks, with some of them at one time.
func forEach(found []ownedEntry, do func(*ownedEntry) error) error {
	var g errgroup.Group
	g.SetLimit(evictAtOnce)
	for i := range found {
		g.Go(func() error { return do(&found[i]) })
	}
	return g.Wait()
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
	if errors.Is(err, errDamaged) { // it goes with its time
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if e.entry = newEntry(r, revision); !e.canGo(s.limits.now()) {
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

// canGo reports whether a task may be dropped before its time. What has a key is kept for
// as long as that: whoever sends it again must not have the task run again.
func (e entry) canGo(now time.Time) bool {
	return e.revision != 0 && e.finished() &&
		(e.webhook&ofKey == 0 || now.Sub(time.UnixMilli(int64(e.order.milliseconds()))) > KeepKey+time.Minute)
}

// names returns the owners of tasks.
func (x *index) names() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return slices.Collect(maps.Keys(x.owners))
}

// firstEnded returns as many of the tasks that can go, those that were last written first
// after a revision.
func (x *index) firstEnded(after uint64, most int, now time.Time) (found []ownedEntry) {
	end := uint64(math.MaxUint64)
	trim := func() {
		slices.SortFunc(found, func(a, b ownedEntry) int { return cmp.Compare(a.revision, b.revision) })
		found = found[:min(len(found), most)]
	}
	for _, owner := range x.names() {
		x.mu.Lock()
		for _, e := range x.owners[owner] {
			if e.revision <= after || e.revision >= end || !e.canGo(now) {
				continue
			}
			if found = append(found, ownedEntry{e, owner}); len(found) == 2*most {
				trim()
				end = found[most-1].revision
			}
		}
		x.mu.Unlock()
	}
	trim()
	return found
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
