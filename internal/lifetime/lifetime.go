// SPDX-License-Identifier: Apache-2.0

// Package lifetime is what a value needs that outlives Caddy configurations:
// which configurations use it, which of them is the newest, who is in the
// middle of something, and when it may be closed.
package lifetime

import (
	"slices"
	"sync"
	"time"
)

// Lifetime belongs to one long-lived value. G is the configuration as the value
// sees it, a pointer to an app for example. Configurations overlap: during a
// reload two of them use the value, and a failed one leaves again.
//
// Use and the end of use by requests and tasks are leases. They keep the value
// open after its last configuration has gone, up to a limit.
type Lifetime[G comparable] struct {
	mu          sync.Mutex
	generations []G // oldest first
	leases      int
	draining    bool
	closing     bool
	closed      chan struct{}
	close       func()
	limit       *time.Timer
	drains      int // counts the timers
}

// New returns a lifetime that calls close once, at its end.
func New[G comparable](close func()) *Lifetime[G] {
	return &Lifetime[G]{close: close, closed: make(chan struct{})}
}

// Join adds a configuration; it is the newest from now on.
func (l *Lifetime[G]) Join(g G) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.generations, g) {
		l.generations = append(l.generations, g)
	}
}

// Leave takes a configuration out. The one before it is the newest again when
// g was: that is how a failed reload changes nothing.
func (l *Lifetime[G]) Leave(g G) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.generations, g); i >= 0 {
		l.generations = slices.Delete(l.generations, i, i+1)
	}
}

// Newest returns the newest configuration; false when there is none.
func (l *Lifetime[G]) Newest() (G, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.generations) == 0 {
		var none G
		return none, false
	}
	return l.generations[len(l.generations)-1], true
}

// Lease keeps the value open until Release. It fails once the value closes or
// waits for its leases to end.
func (l *Lifetime[G]) Lease() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.draining || l.closing {
		return false
	}
	l.leases++
	return true
}

// Release ends one lease.
func (l *Lifetime[G]) Release() {
	l.mu.Lock()
	l.leases--
	end := l.draining && l.leases == 0 && l.begin()
	l.mu.Unlock()
	if end {
		l.end()
	}
}

// Drain ends the lifetime: at once when nothing is leased, otherwise with the
// last lease or after limit, whichever comes first. It does not block on leases.
func (l *Lifetime[G]) Drain(limit time.Duration) {
	l.mu.Lock()
	l.draining = true
	end := l.leases == 0 && l.begin()
	if !end && !l.closing && l.limit == nil {
		l.drains++
		drain := l.drains
		l.limit = time.AfterFunc(limit, func() { l.expire(drain) })
	}
	l.mu.Unlock()
	if end {
		l.end()
	}
}

// expire ends a drain that took too long, unless it was taken back.
func (l *Lifetime[G]) expire(drain int) {
	l.mu.Lock()
	end := l.draining && l.drains == drain && l.begin()
	l.mu.Unlock()
	if end {
		l.end()
	}
}

// Revive takes a Drain back, for a configuration that wants the value again
// while its leases run. It fails once the value closes.
func (l *Lifetime[G]) Revive() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return false
	}
	l.draining = false
	if l.limit != nil {
		l.limit.Stop()
		l.limit = nil
	}
	return true
}

// Close ends the lifetime now, whatever is leased, and returns when the value is
// closed, also when somebody else is closing it: whoever opens its successor
// needs what it holds. It must not be called from within the close function.
func (l *Lifetime[G]) Close() {
	l.mu.Lock()
	end := l.begin()
	l.mu.Unlock()
	if end {
		l.end()
	} else {
		<-l.closed
	}
}

// begin decides, under the mutex, that the caller ends the lifetime: nobody can
// revive it any more. It is false for all but the first.
func (l *Lifetime[G]) begin() bool {
	if l.closing {
		return false
	}
	l.closing = true
	if l.limit != nil {
		l.limit.Stop()
	}
	return true
}

// end closes the value, after begin.
func (l *Lifetime[G]) end() {
	defer close(l.closed)
	l.close()
}
