// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"encoding/json"
	"sync"
)

// maxTurns is how many tasks of one owner for one target look for a worker at one time; and,
// of a lane, how many look for the last time.
const maxTurns = 32

// turns are those of the tasks that are under way. Each owner has its own for each target:
// tasks that wait for a worker that is full hold up none that are for another, nor those of
// other owners.
type turns struct {
	mu  sync.Mutex
	all map[string]*turnsOf
}

// turnsOf are those of an owner for a target.
type turnsOf struct {
	places chan struct{} // hold those who look for a worker
	tasks  int           // that are under way
}

// newTurns returns those of no task.
func newTurns() *turns { return &turns{all: make(map[string]*turnsOf)} }

// join returns the places for a task, until it leaves.
func (t *turns) join(r *Record) (places chan struct{}, leave func()) {
	target, _ := json.Marshal(r.Target) // of strings alone
	key := ownerKey(r.Owner) + string(target)
	t.mu.Lock()
	defer t.mu.Unlock()
	of := t.all[key]
	if of == nil {
		of = &turnsOf{places: make(chan struct{}, maxTurns)}
		t.all[key] = of
	}
	of.tasks++
	return of.places, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if of.tasks--; of.tasks == 0 {
			delete(t.all, key)
		}
	}
}
