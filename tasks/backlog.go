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
// since; but not for the last backlogNear places, which another gateway may have taken.
const (
	backlogTime = time.Second
	backlogNear = 64
)

// backlog keeps count of the queue, so that not each submission must ask how long it is.
// The zero value asks first.
type backlog struct {
	mu       sync.Mutex
	at       time.Time // when the queue was asked
	messages int       // as it said, and what was submitted since
	bytes    int64
	kept     int64 // bytes of the records, as the store said
	under    int   // submissions under way
}

// begin takes a place for a submission, where so many tasks and so many bytes of records may
// be. The error is [ErrFull], or of the store; without one, end follows.
func (b *backlog) begin(ctx context.Context, s *store, limit int, room int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.at) > backlogTime || b.full(limit-backlogNear, room) {
		messages, bytes, err := s.length(ctx, queueName)
		if err != nil {
			return err
		}
		_, kept, err := s.length(ctx, recordName)
		if err != nil {
			return err
		}
		b.at, b.messages, b.bytes, b.kept = time.Now(), messages, bytes, kept
	}
	if b.full(limit, room) {
		return ErrFull
	}
	b.under++
	return nil
}

// full reports whether there may be no room for one more.
func (b *backlog) full(limit int, room int64) bool {
	return b.messages+b.under >= limit || b.bytes+int64(b.under+1)*maxPromptSpace > queueBytes ||
		b.kept+int64(b.messages+b.under+1)*taskRoom > refuseAt(room)
}

// end ends a submission that took so many bytes when it went well.
func (b *backlog) end(ok bool, bytes int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.under--
	if ok {
		b.messages++
		b.bytes += int64(bytes)
	}
}
