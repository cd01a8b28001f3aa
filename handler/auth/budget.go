// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"container/list"
	"net/netip"
	"sync"
	"time"
)

// Limits on failed logins.
const (
	maxFailures = 30          // of one source in a window; then it is refused
	window      = time.Minute // from the first failure
	maxSources  = 1 << 16     // that are remembered at once
	logInterval = time.Second // between two log lines about one source
	maxLines    = 10          // about all sources in one logInterval
)

// failures are the failed logins of this process. They outlive configurations,
// so that a reload gives no new guesses, and all handlers share them, so that
// each of them does not give its own.
var failures = newBudget(time.Now)

// budget counts the failed logins of sources. When there are too many sources,
// the one whose window began first is forgotten.
type budget struct {
	now func() time.Time

	mu      sync.Mutex
	sources map[netip.Addr]*list.Element
	order   *list.List // of *record, oldest first

	second   time.Time // in which lines were written
	lines    int
	unlogged int // since the last line
}

// record is the window of one source.
type record struct {
	source   netip.Addr
	begun    time.Time
	failures int
	logged   time.Time
}

func newBudget(now func() time.Time) *budget {
	return &budget{now: now, sources: make(map[netip.Addr]*list.Element), order: list.New()}
}

// spent reports whether a source has used up its budget. Without an address
// there is none; see [Source].
func (b *budget) spent(from netip.Addr) bool {
	if !from.IsValid() {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forget()
	e, ok := b.sources[from]
	if !ok {
		return false
	}
	r := e.Value.(*record)
	return r.failures >= maxFailures && b.now().Sub(r.begun) < window
}

// fail counts a failure. It reports false when the budget was used up before.
func (b *budget) fail(from netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forget()
	e, ok := b.sources[from]
	if !ok {
		if b.order.Len() >= maxSources {
			b.remove(b.order.Front())
		}
		e = b.order.PushBack(&record{source: from, begun: b.now()})
		b.sources[from] = e
	}
	r := e.Value.(*record)
	if now := b.now(); now.Sub(r.begun) >= window {
		r.begun, r.failures = now, 0
		b.order.MoveToBack(e)
	}
	if from.IsValid() && r.failures >= maxFailures {
		return false
	}
	r.failures++
	return true
}

// mayLog reports whether a line about a source may be logged now, and how many
// were not since the last one.
func (b *budget) mayLog(from netip.Addr) (ok bool, unlogged int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	if now.Sub(b.second) >= logInterval {
		b.second, b.lines = now, 0
	}
	e, known := b.sources[from]
	if b.lines >= maxLines || known && now.Sub(e.Value.(*record).logged) < logInterval {
		b.unlogged++
		return false, 0
	}
	b.lines++
	if known {
		e.Value.(*record).logged = now
	}
	unlogged, b.unlogged = b.unlogged, 0
	return true, unlogged
}

// forget removes the sources whose windows have ended, once nothing about them
// can have been logged of late.
func (b *budget) forget() {
	now := b.now()
	for e := b.order.Front(); e != nil && now.Sub(e.Value.(*record).begun) >= window+logInterval; e = b.order.Front() {
		b.remove(e)
	}
}

// remove forgets one source.
func (b *budget) remove(e *list.Element) {
	delete(b.sources, b.order.Remove(e).(*record).source)
}
