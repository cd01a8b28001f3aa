// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"sync"
	"time"
)

// Space that a task may need in the queue, in bytes: for its record and what the server
// adds, and with the largest prompt.
const (
	recordSpace    = 4 << 10
	maxPromptSpace = 1<<20 + recordSpace
)

// For backlogTime, the length of the queue is taken for what it was, and what was submitted
// since; but not for the last backlogNear places, which another gateway may have taken. That
// there is no room, or no answer, holds for backlogPause.
const (
	backlogTime  = time.Second
	backlogNear  = 64
	backlogPause = 100 * time.Millisecond
)

// backlog keeps count of the queue, so that not each submission must ask how long it is.
// The zero value asks first.
type backlog struct {
	mu       sync.Mutex
	at       time.Time // when the queue was asked
	messages int       // as it said, and what was submitted since
	bytes    int64
	large    int64     // what the tasks in it need beyond taskRoom; of those that were submitted here
	keptAt   time.Time // when the records were asked
	kept     int64     // their bytes, as they said
	under    int       // submissions under way
	failedAt time.Time
	failure  error // of then
	share    queueShare
}

// begin takes a place for a submission of an owner, where so many tasks and so many bytes of
// records may be, and which needs more than taskRoom of them. The error is [ErrFull], or of the
// store; without one, end follows.
func (b *backlog) begin(ctx context.Context, s *store, owner string, limit int, room, more int64) error {
	all, placed, err := b.place(ctx, s, limit, room, more, false)
	if err != nil || placed {
		return err
	}
	if err := b.share.take(ctx, s, owner, all); err != nil {
		return err
	}
	if _, _, err = b.place(ctx, s, limit, room, more, true); err != nil {
		b.share.back(owner)
	}
	return err
}

// place takes a place; or else returns how many tasks there are, when it is one of the last and
// the owner has no share of them. The error is that of begin.
func (b *backlog) place(ctx context.Context, s *store, limit int, room, more int64, shared bool) (all int, placed bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.failedAt) < backlogPause { // those who have waited for that do not ask again
		return 0, false, b.failure
	}
	if b.crowded(room, more) && time.Since(b.keptAt) < backlogPause {
		return 0, false, ErrFull
	}
	if err := b.ask(ctx, s, limit, room, more); err != nil {
		b.failedAt, b.failure = time.Now(), err
		return 0, false, err
	}
	if b.full(limit) || b.crowded(room, more) {
		return 0, false, ErrFull
	}
	if b.last(limit) && !shared {
		return b.messages + b.under, false, nil
	}
	b.under++
	return 0, true, nil
}

// ask asks for what may have changed.
func (b *backlog) ask(ctx context.Context, s *store, limit int, room, more int64) error {
	if time.Since(b.at) > backlogTime || b.full(limit-backlogNear) || b.crowded(room, more) {
		messages, bytes, err := s.length(ctx, queueName)
		if err != nil {
			return err
		}
		b.at, b.messages, b.bytes, b.large = time.Now(), messages, bytes, min(b.large, 2*bytes)
	}
	if time.Since(b.keptAt) > backlogTime || b.crowded(room, more) {
		_, kept, err := s.length(ctx, recordName)
		if err != nil {
			return err
		}
		b.keptAt, b.kept = time.Now(), kept
	}
	return nil
}

// full reports whether there may be as many tasks as may be.
func (b *backlog) full(limit int) bool { return b.messages+b.under >= limit }

// last reports whether what is left is the last eighth, of the places or of the room for
// prompts. Of less than 16 places there is none.
func (b *backlog) last(limit int) bool {
	return limit >= 16 && b.full(limit-limit/8) || b.bytes > queueBytes-queueBytes/8
}

// crowded reports whether there may be no room for one more.
func (b *backlog) crowded(room, more int64) bool {
	return b.bytes+int64(b.under+1)*maxPromptSpace > queueBytes ||
		b.kept+int64(b.messages+b.under+1)*taskRoom+b.large+more > refuseAt(room)
}

// more returns what the tasks of a queue of so many bytes need beyond taskRoom.
func (b *backlog) more(bytes int64) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return min(b.large, 2*bytes)
}

// end ends a submission that took so many bytes when it went well, and needs more than
// taskRoom.
func (b *backlog) end(ok bool, bytes int, more int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.under--
	if ok {
		b.messages++
		b.bytes += int64(bytes)
		b.large += more
	}
}
