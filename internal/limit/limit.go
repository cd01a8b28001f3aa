// SPDX-License-Identifier: Apache-2.0

// Package limit bounds how often each of many may do something.
package limit

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Table has a token bucket for each key that took of it lately. Keys can be made up: their
// number is bounded, and when it is reached, new ones wait until others are full again.
type Table[K comparable] struct {
	rate  rate.Limit
	burst int
	most  int
	fresh *rate.Limiter // for keys that the table does not have

	mu      sync.Mutex
	buckets map[K]*rate.Limiter
	swept   time.Time
}

// New returns a table of at most so many buckets: each holds burst tokens, and gets r new
// ones a second.
func New[K comparable](r rate.Limit, burst, most int) *Table[K] {
	return &Table[K]{rate: r, burst: burst, most: most, fresh: rate.NewLimiter(rate.Inf, 0), buckets: make(map[K]*rate.Limiter)}
}

// Newcomers bounds how fast keys come that the table does not have: r a second, and burst at
// once. It returns the table, which must not be in use yet.
func (t *Table[K]) Newcomers(r rate.Limit, burst int) *Table[K] {
	t.fresh = rate.NewLimiter(r, burst)
	return t
}

// Take takes a token from the bucket of a key; false when there is none.
func (t *Table[K]) Take(key K, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	b, ok := t.buckets[key]
	if !ok {
		if len(t.buckets) >= t.most {
			t.sweep(now)
		}
		if len(t.buckets) >= t.most || !t.fresh.AllowN(now, 1) {
			return false
		}
		b = rate.NewLimiter(t.rate, t.burst)
		t.buckets[key] = b
	}
	return b.AllowN(now, 1)
}

// sweep forgets the buckets that are full, which new ones are, too; at most once a second.
func (t *Table[K]) sweep(now time.Time) {
	if now.Sub(t.swept) < time.Second {
		return
	}
	t.swept = now
	for key, b := range t.buckets {
		if b.TokensAt(now) >= float64(t.burst) {
			delete(t.buckets, key)
		}
	}
}

// Len returns how many keys the table has.
func (t *Table[K]) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.buckets)
}
