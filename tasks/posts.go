// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"math/rand/v2"
	"sync"
	"time"
)

// How many webhooks are under way at one time, of which one owner may have half, and one
// host few: a receiver that is slow, or an owner with many of them, does not hold up others.
const (
	maxPosts      = 256
	maxOwnerPosts = maxPosts / 2
	maxHostPosts  = 4

	// A webhook for which there is no place comes again when its turn is expected, not
	// sooner than minPostPause and not later than maxPostPause.
	minPostPause = 50 * time.Millisecond
	maxPostPause = time.Minute
)

// posts counts the webhooks that are under way.
type posts struct {
	mu     sync.Mutex
	all    places
	owners map[string]*places
	hosts  map[string]*places
}

// newPosts returns one with every place free.
func newPosts() *posts {
	return &posts{all: places{limit: maxPosts}, owners: make(map[string]*places), hosts: make(map[string]*places)}
}

// places are those of a host, of an owner, or all.
type places struct {
	limit, under int
	mean         time.Duration // of the time that one is taken
	turn         time.Time     // of the last that waits
}

// wait returns when one for which there is no place shall come again: in its turn, behind
// those that were told so before.
func (p *places) wait(now time.Time) time.Duration {
	if p.turn.Before(now) {
		p.turn = now
	}
	p.turn = p.turn.Add(p.mean/time.Duration(p.limit) + time.Millisecond)
	wait := max(p.turn.Sub(now), minPostPause)
	if wait > maxPostPause { // they do not come at one time
		p.turn = now.Add(maxPostPause)
		wait = maxPostPause/2 + rand.N(maxPostPause/2)
	}
	return wait
}

// of returns the places of a name, which are made when there are none yet.
func of(all map[string]*places, name string, limit int) *places {
	p := all[name]
	if p == nil {
		p = &places{limit: limit}
		all[name] = p
	}
	return p
}

// begin takes a place for a webhook of an owner to a host. Without one it returns when to
// ask again.
func (p *posts) begin(owner, host string, now time.Time) (wait time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := []*places{of(p.hosts, host, maxHostPosts), of(p.owners, owner, maxOwnerPosts), &p.all}
	defer p.forget(owner, host)
	for _, t := range taken {
		if t.under >= t.limit {
			return t.wait(now), false
		}
	}
	for _, t := range taken {
		t.under++
	}
	return 0, true
}

// end gives a place back, which was taken for so long.
func (p *posts) end(owner, host string, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range []*places{p.hosts[host], p.owners[owner], &p.all} {
		t.under--
		t.mean += (took - t.mean) / 4
	}
	p.forget(owner, host)
}

// forget drops what nobody uses.
func (p *posts) forget(owner, host string) {
	if t := p.hosts[host]; t != nil && t.under == 0 {
		delete(p.hosts, host)
	}
	if t := p.owners[owner]; t != nil && t.under == 0 {
		delete(p.owners, owner)
	}
}
