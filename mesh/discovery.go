// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"github.com/libp2p/go-libp2p/p2p/discovery/routing"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"go.uber.org/zap"
)

// Names under which nodes of AgentFM find each other.
const (
	mdnsService = "agentfm-local"
	rendezvous  = "agentfm-rendezvous"
)

const (
	// keepInterval is how often the connections to bootstrap nodes are checked.
	keepInterval = 500 * time.Millisecond
	// keepBackoff bounds the wait between two attempts to dial one of them.
	keepBackoff = 30 * time.Second
	// maxFinds bounds the dials to found nodes under way at once.
	maxFinds = 16
	// maxNear bounds the nodes of the local network that are dialled again.
	maxNear = 1024
	// nearExpiry is how long one of them is dialled without success: about as long
	// as its record lives, after which it is found anew if it is there.
	nearExpiry = time.Hour
)

// findInterval is how often the DHT is searched for workers, and how long a node of the
// local network is left alone at first when it could not be reached. A variable for tests.
var findInterval = 10 * time.Second

// KeepConnected dials the targets and stays connected to them until ctx ends. A
// target that does not answer is tried again, less and less often, at most every
// 30 s. It protects their connections from trimming. Targets may change between
// calls of targets.
func (h *Host) KeepConnected(ctx context.Context, targets func() []peer.AddrInfo, log func() *zap.Logger) {
	type state struct {
		dialing bool
		wait    time.Duration
		next    time.Time
	}
	var mu sync.Mutex
	states := make(map[peer.ID]*state)
	var dials sync.WaitGroup
	defer dials.Wait()

	dial := func(t peer.AddrInfo, s *state) {
		defer dials.Done()
		dialCtx, cancel := context.WithTimeout(ctx, DialTimeout)
		defer cancel()
		h.clearBackoff(t.ID)
		err := h.Connect(dialCtx, t)
		mu.Lock()
		defer mu.Unlock()
		s.dialing = false
		if err == nil {
			s.wait = 0
			log().Info("connected to bootstrap node", zap.Stringer("peer", t.ID))
			return
		}
		s.wait = min(max(2*s.wait, time.Second), keepBackoff)
		s.next = time.Now().Add(s.wait)
		if ctx.Err() == nil {
			log().Warn("bootstrap node cannot be reached", zap.Stringer("peer", t.ID), zap.Error(err), zap.Duration("next_try", s.wait))
		}
	}
	tick := time.NewTicker(keepInterval)
	defer tick.Stop()
	for {
		for _, t := range targets() {
			if t.ID == h.ID() {
				continue
			}
			h.ConnManager().Protect(t.ID, "agentfm-bootstrap") // whoever of us dialled
			if h.Network().Connectedness(t.ID) == network.Connected {
				continue
			}
			mu.Lock()
			s, ok := states[t.ID]
			if !ok {
				s = new(state)
				states[t.ID] = s
			}
			if !s.dialing && time.Now().After(s.next) {
				s.dialing = true
				dials.Add(1)
				go dial(t, s)
			}
			mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// clearBackoff ends libp2p's own wait for a peer that could not be dialled, which grows to
// five minutes.
func (h *Host) clearBackoff(id peer.ID) {
	if s, ok := h.Network().(*swarm.Swarm); ok {
		s.Backoff().Clear(id)
	}
}

// Discover finds other nodes by the methods that s switches on and connects to
// them, until ctx ends. A worker announces itself; a gateway looks for workers.
func (h *Host) Discover(ctx context.Context, role Role, s Settings, log func() *zap.Logger) {
	finds := make(chan struct{}, maxFinds)
	connect := func(p peer.AddrInfo) {
		if p.ID == h.ID() || len(p.Addrs) == 0 || h.Network().Connectedness(p.ID) == network.Connected {
			return
		}
		select {
		case finds <- struct{}{}:
		default:
			return // enough under way; it will be found again
		}
		go func() {
			defer func() { <-finds }()
			dialCtx, cancel := context.WithTimeout(ctx, DialTimeout)
			defer cancel()
			if err := h.Connect(dialCtx, p); err != nil && ctx.Err() == nil {
				log().Debug("found node cannot be reached", zap.Stringer("peer", p.ID), zap.Error(err))
			}
		}()
	}
	var running sync.WaitGroup
	if s.MDNS {
		running.Go(func() { h.discoverLocal(ctx, connect, log) })
	}
	if h.dht != nil {
		running.Go(func() { h.discoverDHT(ctx, role, connect) })
	}
	running.Wait()
	<-ctx.Done()
	for range maxFinds { // wait for the dials, which ctx has ended
		finds <- struct{}{}
	}
}

// discoverLocal announces the node on the local network and connects to who is there.
func (h *Host) discoverLocal(ctx context.Context, connect func(peer.AddrInfo), log func() *zap.Logger) {
	found := make(chan peer.AddrInfo)
	service := mdns.NewMdnsService(h, mdnsService, notifee(func(p peer.AddrInfo) {
		select {
		case found <- p:
		case <-ctx.Done():
		}
	}))
	if err := service.Start(); err != nil {
		log().Warn("discovery on the local network is off", zap.Error(err))
		return
	}
	defer func() { _ = service.Close() }()
	h.dialNear(ctx, found, connect)
}

// dialNear connects to the nodes that are found, until ctx ends. The service tells of
// each once, however the dial ends. It can fail where both dial at that moment, each
// from the port it listens on: one TCP connection opens, of which both take themselves
// for the one who dialled. And a connection can break. So nodes that are not connected
// are dialled again, after waits that differ and grow to about a minute.
func (h *Host) dialNear(ctx context.Context, found <-chan peer.AddrInfo, connect func(peer.AddrInfo)) {
	near := make(map[peer.ID]*nearNode)
	tick := time.NewTicker(findInterval / 10)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-found:
			for id := range near { // any of them
				if len(near) < maxNear {
					break
				}
				delete(near, id)
			}
			near[p.ID] = newNearNode(p)
			connect(p)
		case now := <-tick.C:
			for id, n := range near {
				switch {
				case h.Network().Connectedness(id) == network.Connected:
					near[id] = newNearNode(n.AddrInfo)
				case now.Sub(n.seen) > nearExpiry:
					delete(near, id)
				case now.After(n.next):
					n.rest()
					h.clearBackoff(id)
					connect(n.AddrInfo)
				}
			}
		}
	}
}

// nearNode is a node of the local network.
type nearNode struct {
	peer.AddrInfo
	seen time.Time     // when it was found, or connected
	next time.Time     // when it may be dialled again
	wait time.Duration // from the last dial to that, and half as much again at most
}

// newNearNode returns one that was found now.
func newNearNode(p peer.AddrInfo) *nearNode {
	n := &nearNode{AddrInfo: p, seen: time.Now(), wait: findInterval / 4}
	n.rest()
	return n
}

// rest has it wait, longer each time.
func (n *nearNode) rest() {
	n.wait = min(2*n.wait, 6*findInterval)
	n.next = time.Now().Add(n.wait/2 + rand.N(n.wait))
}

// discoverDHT announces a worker, or looks for workers, under the rendezvous name.
func (h *Host) discoverDHT(ctx context.Context, role Role, connect func(peer.AddrInfo)) {
	_ = h.dht.Bootstrap(ctx) // starts the upkeep of the table; never fails
	d := routing.NewRoutingDiscovery(h.dht)
	for {
		wait := findInterval
		if role == RoleWorker {
			if ttl, err := d.Advertise(ctx, rendezvous); err == nil {
				wait = ttl * 7 / 8
			}
		} else if found, err := d.FindPeers(ctx, rendezvous); err == nil {
			for p := range found {
				connect(p)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// notifee adapts a function to mdns.Notifee.
type notifee func(peer.AddrInfo)

// HandlePeerFound implements mdns.Notifee.
func (n notifee) HandlePeerFound(p peer.AddrInfo) { n(p) }
