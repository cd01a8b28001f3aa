// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrManyKeys says that so many keys are kept that their owner gets no more for now.
var ErrManyKeys = fmt.Errorf("too many idempotency keys are kept; each is kept for %v", KeepKey)

// keyRoom shares the room for the records of keys among their owners. Its last eighth is
// for the answers to requests that were begun. Once half of it is taken, an owner has at
// most the part of all keys that the free room is of the whole: one alone comes to half
// of it, and leaves the rest to the others. The zero value asks first.
type keyRoom struct {
	mu    sync.Mutex
	at    time.Time // when the store was asked
	keys  int
	bytes int64 // as it said, and what was taken since
}

// take takes room for a key of an owner, out of so many bytes. The error is [ErrManyKeys],
// or of the store.
func (r *keyRoom) take(ctx context.Context, s *store, owner string, room int64) error {
	r.mu.Lock()
	if time.Since(r.at) > backlogTime || r.bytes > room/2 {
		keys, bytes, err := s.length(ctx, keyName)
		if err != nil {
			r.mu.Unlock()
			return err
		}
		r.at, r.keys, r.bytes = time.Now(), keys, bytes
	}
	keys, free := r.keys, room-r.bytes
	r.bytes += recordSpace + maxInline // what it can come to
	r.mu.Unlock()
	switch {
	case free > room/2:
		return nil
	case free < room/8:
		return ErrManyKeys
	}
	own, err := s.keysOf(ctx, owner)
	if err == nil && float64(own) > float64(keys)*float64(free)/float64(room) {
		err = ErrManyKeys
	}
	return err
}

// keysOf returns how many records of keys an owner has.
func (s *store) keysOf(ctx context.Context, owner string) (uint64, error) {
	found, err := patiently(ctx, s, func(ctx context.Context) (jetstream.Consumer, error) {
		return s.js.CreateConsumer(ctx, keyName, jetstream.ConsumerConfig{
			FilterSubject: keySubject + ownerKey(owner) + ".>", AckPolicy: jetstream.AckNonePolicy,
			MemoryStorage: true, InactiveThreshold: time.Minute,
		})
	})
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrStore, err)
	}
	info := found.CachedInfo()
	_ = s.js.DeleteConsumer(ctx, keyName, info.Name) // else it goes by itself
	return info.NumPending, nil
}
