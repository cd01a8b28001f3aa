// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"encoding/json"
	"sync"
)

// How many tasks look for a worker at one time, with their prompts in memory: of one owner for
// one target, which are not to hold up others; of a lane; and of a lane for the last time.
const (
	maxTurns     = 16
	maxLaneTurns = 64
	maxLastTurns = 32
)

// turns bound how many of one kind are at something at one time: each kind has its own, and
// waits for none of the others.
type turns struct {
	limit int
	mu    sync.Mutex
	all   map[string]*turnsOf
}

// turnsOf are those of a kind.
type turnsOf struct {
	places chan struct{} // hold those whose turn it is
	joined int           // these, and those who wait
}

// newTurns returns those of nobody, of which each kind has so many.
func newTurns(limit int) *turns { return &turns{limit: limit, all: make(map[string]*turnsOf)} }

// join returns the places of a kind, for one who is to leave when it has none.
func (t *turns) join(kind string) (places chan struct{}, leave func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	of := t.all[kind]
	if of == nil {
		of = &turnsOf{places: make(chan struct{}, t.limit)}
		t.all[kind] = of
	}
	of.joined++
	return of.places, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if of.joined--; of.joined == 0 {
			delete(t.all, kind)
		}
	}
}

// kind is the kind of a task that looks for a worker: its owner and its target.
func (r *Record) kind() string {
	target, _ := json.Marshal(r.Target) // of strings alone
	return ownerKey(r.Owner) + string(target)
}
