// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/test"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// findOften has the nodes look for each other at short intervals.
func findOften(t *testing.T) {
	old := findInterval
	findInterval = 100 * time.Millisecond
	t.Cleanup(func() { findInterval = old })
}

// TestDHT has a gateway find a worker of which it knows nothing, through a node
// that both know. The gateway connects to the worker by itself.
func TestDHT(t *testing.T) {
	findOften(t)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	open := func(role Role, bootstrap ...peer.AddrInfo) *Host {
		s := Settings{DHT: true, Bootstrap: bootstrap}
		h, err := NewHost(ctx, role, newKey(t), []ma.Multiaddr{loopbackAddr}, s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cancel(); running.Wait(); _ = h.Close() })
		running.Go(func() {
			h.KeepConnected(ctx, func() []peer.AddrInfo { return bootstrap }, zap.NewNop)
		})
		running.Go(func() { h.Discover(ctx, role, s, zap.NewNop) })
		return h
	}
	middle := open(RoleGateway)
	known := peer.AddrInfo{ID: middle.ID(), Addrs: middle.Addrs()}
	worker := open(RoleWorker, known)
	gateway := open(RoleGateway, known)
	await.Until(t, "the gateway has found the worker", func() bool {
		return gateway.Network().Connectedness(worker.ID()) == network.Connected
	})
}

// TestDialNear wants a node that was told of once to be connected although the first
// dial fails, and again when the connection has broken.
func TestDialNear(t *testing.T) {
	findOften(t)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	a, err := NewHost(ctx, RoleGateway, newKey(t), []ma.Multiaddr{loopbackAddr}, Settings{})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := NewHost(ctx, RoleWorker, newKey(t), []ma.Multiaddr{loopbackAddr}, Settings{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	var dials atomic.Int32
	found := make(chan peer.AddrInfo)
	running.Go(func() {
		a.dialNear(ctx, found, func(p peer.AddrInfo) {
			if dials.Add(1) > 1 { // it dials one node only, so this does not last
				_ = a.Connect(ctx, p)
			}
		})
	})
	found <- peer.AddrInfo{ID: b.ID(), Addrs: b.Addrs()}
	connected := func() bool { return a.Network().Connectedness(b.ID()) == network.Connected }
	await.Until(t, "connected by the second dial", connected)
	_ = a.Network().ClosePeer(b.ID())
	await.Until(t, "disconnected, and connected again", func() bool { return dials.Load() > 2 && connected() })
	for range 2 * maxNear {
		found <- peer.AddrInfo{ID: test.RandPeerIDFatal(t)}
	}
}

// TestKeepConnected wants a bootstrap node that goes and comes back to be
// connected again.
func TestKeepConnected(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	key := newKey(t)
	first, err := NewHost(ctx, RoleGateway, key, []ma.Multiaddr{loopbackAddr}, Settings{})
	if err != nil {
		t.Fatal(err)
	}
	bound := first.Bound()
	info := peer.AddrInfo{ID: first.ID(), Addrs: bound}
	h, err := NewHost(ctx, RoleWorker, newKey(t), []ma.Multiaddr{loopbackAddr}, Settings{})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	var running sync.WaitGroup
	running.Go(func() { h.KeepConnected(ctx, func() []peer.AddrInfo { return []peer.AddrInfo{info} }, zap.NewNop) })
	defer running.Wait()
	defer cancel()
	connected := func() bool { return h.Network().Connectedness(info.ID) == network.Connected }
	await.Until(t, "connected", connected)
	_ = first.Close()
	await.Until(t, "disconnected", func() bool { return !connected() })
	for range 20 { // as after a long while, in which each dial has failed
		h.Network().(*swarm.Swarm).Backoff().AddBackoff(info.ID, bound[0])
	}
	var second *Host
	await.Until(t, "the node is back", func() bool { // its port can take a moment
		second, err = NewHost(ctx, RoleGateway, key, bound, Settings{})
		return err == nil
	})
	defer second.Close()
	await.Until(t, "connected again", connected)
}
