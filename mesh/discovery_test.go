// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// TestDHT has a gateway find a worker of which it knows nothing, through a node
// that both know. The gateway connects to the worker by itself.
func TestDHT(t *testing.T) {
	old := findInterval
	findInterval = 100 * time.Millisecond
	t.Cleanup(func() { findInterval = old })

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
