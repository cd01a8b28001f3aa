// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// shelf is a bucket of records, with its index.
type shelf struct {
	jetstream.KeyValue
	stream string
	index  *index
}

// readThrough looks at each record of a shelf, as often as that fails. Then its index is loaded.
func (s *session) readThrough(from *shelf, look func(*Record, uint64)) {
	for s.ctx.Err() == nil {
		newest, err := step(s.store, "read", from.stream, func() (uint64, error) {
			return s.store.eachRecord(s.ctx, from, 0, func(r *Record, revision uint64) {
				from.index.note(r, revision)
				look(r, revision)
			})
		})
		if err == nil {
			from.index.load(newest)
			return
		}
		from.index.again()
		if s.ctx.Err() == nil {
			s.log().Warn("reading what is kept of tasks", zap.String("bucket", from.Bucket()), zap.Error(err))
			pause(s.ctx, time.Second)
		}
	}
}

// upToDate waits until the index of a shelf is loaded, and has it know of what others wrote,
// and of what was written without an answer.
func (s *store) upToDate(ctx context.Context, of *shelf) error {
	select {
	case <-of.index.loaded:
	case <-ctx.Done():
		return fmt.Errorf("they are still being read: %w", context.Cause(ctx))
	}
	if !of.index.isBehind() && !s.shared {
		return nil
	}
	end, err := s.lastMessage(ctx, of.stream)
	if known := of.index.followed(); err == nil && known < end {
		if _, err = s.eachRecord(ctx, of, known, of.index.note); err == nil {
			of.index.follow(end)
		}
	}
	if err != nil {
		of.index.failed()
	}
	return err
}

// forgetPause is how often the indexes drop what is not kept any more.
const forgetPause = time.Minute

// forget has them do so, until the session ends.
func (s *session) forget() {
	for s.ctx.Err() == nil {
		pause(s.ctx, forgetPause)
		for _, of := range []*shelf{&s.store.records, &s.store.calls} {
			ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
			stream, err := patiently(ctx, s.store, func(ctx context.Context) (jetstream.Stream, error) { return s.store.js.Stream(ctx, of.stream) })
			if err == nil {
				of.index.forget(stream.CachedInfo().State.FirstSeq)
			}
			cancel()
		}
	}
}

// fewChanges are read one by one.
const fewChanges = 64

// eachRecord calls look with each record of a shelf that was written after a revision, and
// returns the newest. One that changes meanwhile may come in its old form and in its new one.
func (s *store) eachRecord(ctx context.Context, from *shelf, after uint64, look func(*Record, uint64)) (newest uint64, err error) {
	begun, err := s.lastMessage(ctx, from.stream)
	if err != nil {
		return 0, err
	}
	opts := []jetstream.WatchOpt{jetstream.IgnoreDeletes()}
	if newest = after; after > 0 {
		if begun < after+fewChanges {
			return s.eachChange(ctx, from, after, look)
		}
		opts = append(opts, jetstream.ResumeFromRevision(after+1))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := s.watch(ctx, from, opts...)
	if err != nil {
		return 0, err
	}
	defer endWatch(w)
	silence := time.NewTimer(callTimeout)
	defer silence.Stop()
	for {
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-silence.C:
			return 0, fmt.Errorf("nothing came after record %d for %s: %w", newest, callTimeout, context.DeadlineExceeded)
		case entry, ok := <-w.Updates():
			if !ok || entry == nil { // all that there were, or almost
				return s.eachChange(ctx, from, min(begun, newest), look)
			}
			newest = entry.Revision()
			if r, err := decode(entry.Value()); err == nil {
				look(r, newest)
			}
			silence.Reset(callTimeout)
		}
	}
}

// eachChange goes on after a revision, up to the newest. A watcher goes through the records
// in the order of their revisions, but it may not say of one that changes while it looks,
// and says that there are no more when there are.
func (s *store) eachChange(ctx context.Context, from *shelf, after uint64, look func(*Record, uint64)) (newest uint64, err error) {
	stream, err := patiently(ctx, s, func(ctx context.Context) (jetstream.Stream, error) { return s.js.Stream(ctx, from.stream) })
	if err != nil {
		return 0, err
	}
	end := stream.CachedInfo().State.LastSeq // as it was a moment ago
	for newest = after; newest < end; {
		msg, err := s.next(ctx, stream, newest+1, "$KV."+from.Bucket()+".>")
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return newest, nil
		}
		if err != nil {
			return 0, err
		}
		newest = msg.Sequence
		if r, err := decode(msg.Data); err == nil {
			look(r, newest)
		}
	}
	return newest, nil
}
