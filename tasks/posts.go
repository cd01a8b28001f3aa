// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"
)

// How many webhooks are under way at one time, of which one owner may have half, and one
// host few, and fewer of one owner: a receiver that is slow, or an owner with many of them,
// does not hold up others.
const (
	maxPosts        = 256
	maxOwnerPosts   = maxPosts / 2
	maxHostPosts    = 4                // of one owner
	maxAllHostPosts = 4 * maxHostPosts // of all

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
	pairs  map[pair]*places
}

// pair is an owner, and a host to which webhooks of it go.
type pair struct{ owner, host string }

// newPosts returns one with every place free.
func newPosts() *posts {
	return &posts{all: places{limit: maxPosts}, owners: make(map[string]*places), hosts: make(map[string]*places), pairs: make(map[pair]*places)}
}

// places are those of an owner, of a host, of both, or all.
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

// of returns the places of a key, which are made when there are none yet.
func of[K comparable](all map[K]*places, key K, limit int) *places {
	p := all[key]
	if p == nil {
		p = &places{limit: limit}
		all[key] = p
	}
	return p
}

// drop removes the places of a key when none is taken.
func drop[K comparable](all map[K]*places, key K) {
	if p := all[key]; p != nil && p.under == 0 {
		delete(all, key)
	}
}

// of returns the places of which a webhook of an owner to a host takes one each. What has
// the fewest comes first: who waits for those does not stand in the way of others.
func (p *posts) of(owner, host string) []*places {
	return []*places{
		of(p.pairs, pair{owner, host}, maxHostPosts), of(p.hosts, host, maxAllHostPosts), of(p.owners, owner, maxOwnerPosts), &p.all,
	}
}

// begin takes a place for a webhook of an owner to a host. Without one it returns when to
// ask again.
func (p *posts) begin(owner, host string, now time.Time) (wait time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := p.of(owner, host)
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
	for _, t := range p.of(owner, host) {
		t.under--
		t.mean += (took - t.mean) / 4
	}
	p.forget(owner, host)
}

// forget drops what nobody uses.
func (p *posts) forget(owner, host string) {
	drop(p.pairs, pair{owner, host})
	drop(p.hosts, host)
	drop(p.owners, owner)
}

// hostOf returns where a URL leads, whichever way it is written: what has one name and one
// port is one receiver.
func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	name, port := strings.ToLower(strings.TrimSuffix(u.Hostname(), ".")), u.Port()
	if addr, err := netip.ParseAddr(name); err == nil {
		name = addr.Unmap().String()
	}
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[strings.ToLower(u.Scheme)]
	}
	return net.JoinHostPort(name, port)
}
