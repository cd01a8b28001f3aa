// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
	"sync"
	"time"
)

// order says when a task was submitted, in milliseconds, and tells it from others of that
// time: what came later is greater. It is what the ids of the tasks have, in binary.
type order [22]byte

// orderOf returns the order that is in an id of this package.
func orderOf(id string) (o order) {
	digits := strings.TrimPrefix(id, "task_")
	_, _ = hex.Decode(o[:], []byte(digits[:min(len(digits), 2*len(o))]))
	return o
}

// compare is less than 0 when o came before p.
func (o order) compare(p order) int { return bytes.Compare(o[:], p[:]) }

// milliseconds returns the time.
func (o order) milliseconds() uint64 {
	return binary.BigEndian.Uint64(append([]byte{0, 0}, o[:6]...))
}

// token is the part of the order of a call that is of its id.
type token [16]byte

// token returns it.
func (o order) token() token { return token(o[6:]) }

// entry is what the index says of a task.
type entry struct {
	order    order
	state    uint8  // its place in States
	webhook  uint8  // from 1 on in WebhookStates, and ofKey
	revision uint64 // 0 for a task that was dropped
}

// ofKey is for a task that has an idempotency key, which may be asked what became of it.
const ofKey = 1 << 7

// newEntry returns what the index says of a record.
func newEntry(r *Record, revision uint64) entry {
	e := entry{order: r.order(), revision: revision, state: uint8(slices.Index(States, r.State))}
	if r.Webhook != nil {
		e.webhook = uint8(1 + slices.Index(WebhookStates, r.Webhook.State))
	}
	if r.Keyed {
		e.webhook |= ofKey
	}
	return e
}

// key is that of the task of an owner.
func (e entry) key(owner string, ofCall bool) string {
	if ofCall {
		return owner + "." + callPrefix + hex.EncodeToString(e.order[6:])
	}
	return owner + ".task_" + hex.EncodeToString(e.order[:18])
}

// index says which tasks each owner has in a bucket, without having to read them. Of each
// it has 32 bytes, and as much again at most.
type index struct {
	calls  bool          // their tasks are calls, whose ids their clients may use again
	loaded chan struct{} // closed when all that were there have been noted

	mu     sync.Mutex
	owners map[string][]entry // by ownerKey; the oldest first, when it is loaded
	newest uint64             // all up to this revision are noted, where others write too
	behind time.Time          // when a write failed that may have come to the store all the same

	// gone is where calls were that the bucket has no more, of late: lists may go on from them.
	// Once it has as many as it may, it becomes the earlier one.
	gone, goneEarlier map[goneCall]order
}

// goneCall is a call that is kept no more.
type goneCall struct {
	owner string // by ownerKey
	token token
}

// maxGone bounds how many calls that are gone are known, twice.
const maxGone = 1 << 15

// newIndex returns one that is to be loaded.
func newIndex(calls bool) *index {
	return &index{calls: calls, loaded: make(chan struct{}), owners: make(map[string][]entry), gone: make(map[goneCall]order)}
}

// isLoaded reports whether it is.
func (x *index) isLoaded() bool {
	select {
	case <-x.loaded:
		return true
	default:
		return false
	}
}

// note takes a record in, or a newer form of it.
func (x *index) note(r *Record, revision uint64) {
	e := newEntry(r, revision)
	owner := ownerKey(r.Owner)
	x.mu.Lock()
	defer x.mu.Unlock()
	all := x.owners[owner]
	at, old := len(all), false
	if x.isLoaded() && at > 0 && e.order.compare(all[at-1].order) <= 0 {
		at, old = slices.BinarySearchFunc(all, e.order, func(e entry, o order) int { return e.order.compare(o) })
	}
	switch {
	case !old:
		x.owners[owner] = slices.Insert(all, at, e)
	case all[at].revision < revision:
		all[at] = e
	}
}

// load notes that all records were noted that there were, up to a revision.
func (x *index) load(newest uint64) {
	x.follow(newest)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.isLoaded() {
		return
	}
	x.compact()
	close(x.loaded)
}

// again notes that not all records could be read: they are noted once more.
func (x *index) again() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.isLoaded() {
		x.compact()
	}
}

// compact brings the entries of each owner in order, and leaves one of each task.
func (x *index) compact() {
	for owner, all := range x.owners {
		slices.SortFunc(all, func(a, b entry) int { return cmp.Or(a.order.compare(b.order), cmp.Compare(b.revision, a.revision)) })
		x.owners[owner] = slices.CompactFunc(all, func(a, b entry) bool { return a.order == b.order })
	}
}

// follow notes that all changes up to a revision were noted.
func (x *index) follow(newest uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.newest = max(x.newest, newest)
}

// followed returns up to which revision.
func (x *index) followed() uint64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.newest
}

// failed notes that a write failed, which may have come to the store all the same, or may
// come yet.
func (x *index) failed() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.behind = time.Now()
}

// isBehind reports whether a record may be there that was not noted. It says so for as long
// as a write may be under way.
func (x *index) isBehind() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	behind := !x.behind.IsZero()
	if time.Since(x.behind) > callTimeout {
		x.behind = time.Time{}
	}
	return behind
}

// forget removes what is older than a revision, or was dropped: the bucket has it no more.
// Of a call whose id was used again, it has the newest.
func (x *index) forget(first uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for owner, all := range x.owners {
		newest := make(map[token]uint64)
		if x.calls {
			for _, e := range all {
				newest[e.order.token()] = max(newest[e.order.token()], e.revision)
			}
			x.remember(owner, all, first)
		}
		all = slices.DeleteFunc(all, func(e entry) bool { return e.revision < max(first, newest[e.order.token()]) })
		if cap(all) > 2*len(all) {
			all = slices.Clone(all)
		}
		if x.owners[owner] = all; len(all) == 0 {
			delete(x.owners, owner)
		}
	}
}

// remember notes where the calls of an owner were that are older than a revision.
func (x *index) remember(owner string, all []entry, first uint64) {
	for _, e := range all {
		if e.revision >= first {
			continue
		}
		if len(x.gone) >= maxGone {
			x.gone, x.goneEarlier = make(map[goneCall]order), x.gone
		}
		x.gone[goneCall{owner, e.order.token()}] = e.order
	}
}

// orderOf returns where the call of an owner of an id is, or was when it was kept; false when
// that is not known.
func (x *index) orderOf(owner, id string) (found order, ok bool) {
	var t token
	_, _ = hex.Decode(t[:], []byte(strings.TrimPrefix(callToken(id), callPrefix)))
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, e := range x.owners[owner] {
		if e.order.token() == t && e.order.compare(found) > 0 {
			found, ok = e.order, true
		}
	}
	for _, gone := range []map[goneCall]order{x.gone, x.goneEarlier} {
		if o, was := gone[goneCall{owner, t}]; was && !ok {
			found, ok = o, true
		}
	}
	return found, ok
}

// finished reports whether nothing more becomes of the task by itself.
func (e entry) finished() bool {
	return States[e.state].Ended() && e.webhook&^ofKey != 1+uint8(slices.Index(WebhookStates, WebhookPending))
}

// unfinished returns the keys of the tasks of which more is to become, and that were written
// up to a revision.
func (x *index) unfinished(last uint64) (keys []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for owner, all := range x.owners {
		for _, e := range all {
			if e.revision <= last && !e.finished() {
				keys = append(keys, e.key(owner, false))
			}
		}
	}
	return keys
}

// before returns the newest tasks of an owner that may be those of a query, among those
// that were submitted before one; of the zero order, among all. There are at most so many.
func (x *index) before(owner string, o order, q Query, most int) []entry {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := x.owners[owner]
	at := len(all)
	if o != (order{}) {
		at, _ = slices.BinarySearchFunc(all, o, func(e entry, o order) int { return e.order.compare(o) })
	}
	state, webhook := slices.Index(States, q.State), slices.Index(WebhookStates, q.Webhook)+1
	var found []entry
	for at--; at >= 0 && len(found) < most; at-- {
		if e := all[at]; e.revision != 0 && (state < 0 || int(e.state) == state) && (webhook == 0 || int(e.webhook&^ofKey) == webhook) {
			found = append(found, e)
		}
	}
	return found
}
