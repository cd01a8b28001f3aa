// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// ErrShare says that an owner has so many of the tasks that are queued or running that it
// gets none of the last places.
var ErrShare = fmt.Errorf("%w, many of one owner, who gets none of the last places", ErrFull)

const (
	// shareOwners bounds of how many owners it is known how many tasks they have.
	shareOwners = 4096
	// sharePause is how long after an owner's tasks were counted they are counted again, at
	// least, in times of what that took: of a million, it is seconds.
	sharePause = 200
)

// queueShare keeps the last eighth of the queue for the owners of few tasks: one that has
// more than an eighth of all tasks gets none of it. The zero value counts first.
type queueShare struct {
	mu     sync.Mutex
	owners map[string]*ownTasks
}

// ownTasks is how many tasks an owner has.
type ownTasks struct {
	mu    sync.Mutex
	tasks int       // as they were counted, and what took a place since
	until time.Time // when they are counted again
}

// take takes one of the last places for an owner, when so many tasks are there in all. The
// error is [ErrShare], or of the store.
func (q *queueShare) take(ctx context.Context, s *store, owner string, all int) error {
	own := q.of(owner)
	own.mu.Lock()
	defer own.mu.Unlock()
	if begun := time.Now(); begun.After(own.until) {
		n, err := s.tasksOf(ctx, owner)
		if err != nil {
			return err
		}
		own.tasks, own.until = n, begun.Add(max(backlogTime, sharePause*time.Since(begun)))
	}
	if own.tasks > all/8 {
		return ErrShare
	}
	own.tasks++
	return nil
}

// back gives back what take took.
func (q *queueShare) back(owner string) {
	own := q.of(owner)
	own.mu.Lock()
	defer own.mu.Unlock()
	own.tasks--
}

// of returns what is known of an owner.
func (q *queueShare) of(owner string) *ownTasks {
	q.mu.Lock()
	defer q.mu.Unlock()
	own := q.owners[owner]
	if own == nil {
		if q.owners == nil || len(q.owners) >= shareOwners {
			q.owners = make(map[string]*ownTasks)
		}
		own = new(ownTasks)
		q.owners[owner] = own
	}
	return own
}

// tasksOf returns how many tasks of an owner are in the queue.
func (s *store) tasksOf(ctx context.Context, owner string) (int, error) {
	// Of the subjects only the number is wanted: those after all that there can be are none.
	question := map[string]any{"subjects_filter": queueSubject + "*." + ownerKey(owner) + ".*", "offset": 2 * MaxInFlight}
	answer, err := request[struct {
		Total int `json:"total"`
	}](ctx, s, "STREAM.INFO."+queueName, question)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrStore, err)
	}
	return answer.Total, nil
}
