// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Bounds are how often a task may be begun, and how long it may take. 0 leaves one open.
type Bounds struct {
	// Attempts is how often it may be begun and broken off.
	Attempts int `json:"attempts,omitempty"`
	// Queue is how long after its submission it may wait for a worker.
	Queue time.Duration `json:"queue,omitempty"`
	// Run is how long a worker may take.
	Run time.Duration `json:"run,omitempty"`
	// Total is how long after its submission it may end.
	Total time.Duration `json:"total,omitempty"`
}

// The greatest bounds that an operator may set.
const (
	MaxAttempts = 100
	MaxQueue    = 3 * 24 * time.Hour
	MaxTotal    = 4 * 24 * time.Hour
)

// check reports whether an operator may set the bounds, and fills what is left open.
func (b *Bounds) check() error {
	if b.Attempts == 0 {
		b.Attempts = MaxLost
	}
	if b.Queue == 0 {
		b.Queue = QueueLimit
	}
	switch {
	case b.Attempts < 0 || b.Attempts > MaxAttempts:
		return fmt.Errorf("max_attempts: want a number from 1 to %d", MaxAttempts)
	case b.Queue < 0 || b.Queue > MaxQueue:
		return fmt.Errorf("queue_timeout: want at most %s", MaxQueue)
	case b.Run < 0:
		return errors.New("run_timeout: want a time above 0")
	case b.Total < 0 || b.Total > MaxTotal:
		return fmt.Errorf("timeout: want at most %s", MaxTotal)
	}
	return nil
}

// BoundError says that a client asks for more than the operator allows.
type BoundError struct {
	// Name is one of max_attempts, queue_timeout, run_timeout and timeout.
	Name string
	Most any
}

// Error implements error.
func (e *BoundError) Error() string {
	return fmt.Sprintf("%s: at most %v is allowed here", e.Name, e.Most)
}

// Bounds returns those of a task for which a client asks for some. The error is a
// [*BoundError]. The nil part has none.
func (p *Part) Bounds(asked Bounds) (Bounds, error) {
	if p == nil {
		return asked, nil
	}
	most := p.options.Bounds
	if asked.Attempts > most.Attempts {
		return asked, &BoundError{"max_attempts", most.Attempts}
	}
	if asked.Attempts == 0 {
		asked.Attempts = most.Attempts
	}
	for _, b := range []struct {
		name        string
		asked, most *time.Duration
	}{
		{"queue_timeout", &asked.Queue, &most.Queue}, {"run_timeout", &asked.Run, &most.Run}, {"timeout", &asked.Total, &most.Total},
	} {
		if *b.most > 0 && *b.asked > *b.most {
			return asked, &BoundError{b.name, *b.most}
		}
		if *b.asked == 0 {
			*b.asked = *b.most
		}
	}
	return asked, nil
}

// errTimeout is the cause of the end of a task that took too long in all.
var errTimeout = errors.New("the task took too long")

// waited is how long ago the task was submitted. After it was taken off the queue it does
// not matter how the clock is set.
func (j *job) waited() time.Duration { return j.claim.age + time.Since(j.claim.taken) }

// meet notes when a task was taken off the queue, and how old it was then.
func (c *claim) meet(r *Record, now time.Time) {
	if c.taken.IsZero() {
		c.taken, c.age = time.Now(), max(0, now.Sub(r.Created))
	}
}

// queueLeft is how long the task may still wait for a worker. After a loss, and after the
// gateway was away, that begins anew.
func (j *job) queueLeft() time.Duration {
	if !j.lostAt.IsZero() {
		return j.record.Bounds.Queue - time.Since(j.lostAt)
	}
	return j.record.Bounds.Queue - j.waited()
}

// bounded returns a context that ends when the task has taken too long, with [errTimeout].
// Its end is not that of a deadline: what the store is asked then has not failed.
func (j *job) bounded(ctx context.Context) (context.Context, func()) {
	total := j.record.Bounds.Total
	if total == 0 {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(total-j.waited(), func() { cancel(errTimeout) })
	return ctx, func() { timer.Stop(); cancel(nil) }
}
