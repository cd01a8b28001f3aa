// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrHeld says that no more tasks of an owner are taken, because of those that have ended
// and cannot be dropped.
var ErrHeld = fmt.Errorf("%w, or have ended and must be kept", ErrFull)

// roomShare shares the room for records among the owners of tasks that have ended and cannot
// go. Once these have half of the room, an owner has at most the part of them that the free
// room is of the whole: one alone comes to half of it, and leaves the rest to the others.
type roomShare struct {
	over atomic.Pointer[map[string]bool] // owners that have more, by ownerKey
}

// check returns [ErrHeld] when an owner has more than its share.
func (h *roomShare) check(owner string) error {
	if over := h.over.Load(); over != nil && (*over)[ownerKey(owner)] {
		return ErrHeld
	}
	return nil
}

// weigh looks at what each owner has of a bucket.
func (h *roomShare) weigh(x *index, state jetstream.StreamState, l limits) {
	var over map[string]bool
	if int64(state.Bytes) > l.records/2 && state.Msgs > 0 && x.isLoaded() {
		held, all := x.held(l.now())
		used := int64(all) * 2 * int64(state.Bytes/state.Msgs) // of each, the two newest records are there
		if used > l.records/2 {
			over = make(map[string]bool)
			for owner, n := range held {
				over[owner] = float64(n) > float64(all)*float64(l.records-used)/float64(l.records)
			}
		}
	}
	h.over.Store(&over)
}

// held returns how many tasks of each owner, and of all, have ended and cannot go.
func (x *index) held(now time.Time) (byOwner map[string]int, all int) {
	byOwner = make(map[string]int)
	for _, owner := range x.names() {
		n := 0
		x.mu.Lock()
		for _, e := range x.owners[owner] {
			if e.revision != 0 && States[e.state].Ended() && !e.canGo(now) {
				n++
			}
		}
		x.mu.Unlock()
		if n > 0 {
			byOwner[owner] = n
			all += n
		}
	}
	return byOwner, all
}
