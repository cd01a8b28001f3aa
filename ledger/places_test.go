// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"testing"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// TestSlowStrangers has strangers begin as many requests as could be answered, and say nothing
// more: an owner gets the signature of its witness, and others the log, all the while.
func TestSlowStrangers(t *testing.T) {
	w, owner := newWitness(t), fresh(t)
	owner.connect(t, w)
	await.Until(t, "the owner is confirmed", func() bool { return owner.confirmed.Load() })
	owner.rate(t, newID(t), 1)
	for range maxBusy / maxOfOne {
		stranger, err := libp2p.New(libp2p.NoListenAddrs)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = stranger.Close() })
		if err := stranger.Connect(ctx, peer.AddrInfo{ID: w.id(), Addrs: w.node.Host.Addrs()}); err != nil {
			t.Fatal(err)
		}
		for range maxOfOne {
			s, err := stranger.NewStream(ctx, w.id(), wire.LogProtocol)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = s.Write([]byte{0})
		}
	}
	if _, err := owner.submit(w.id(), 0, owner.store.Head()); err != nil {
		t.Errorf("the witness: %v", err)
	}
	if _, err := owner.page(ctx, w.id(), wire.LogProtocol, 1, 1); err != nil {
		t.Errorf("the log: %v", err)
	}
	await.Until(t, "who says nothing has no place any more", func() bool {
		w.serving.open.mu.Lock()
		defer w.serving.open.mu.Unlock()
		return w.serving.open.all == 0
	})
}

// TestReplayedHeads has a stranger submit the head of another again and again, until it is not
// answered any more: the owner is.
func TestReplayedHeads(t *testing.T) {
	w, owner, stranger := newWitness(t), fresh(t), fresh(t)
	owner.connect(t, w)
	stranger.connect(t, w)
	await.Until(t, "the owner is confirmed", func() bool { return owner.confirmed.Load() })
	owner.rate(t, newID(t), 1)
	refused := false
	for range 4 * int(authorBurst) {
		if _, err := stranger.submit(w.id(), 0, owner.store.Head()); err != nil {
			refused = true
			break
		}
	}
	if !refused {
		t.Error("nothing of a flood is refused")
	}
	if v, err := owner.submit(w.id(), 0, owner.store.Head()); err != nil || v.Status != wire.Conflict {
		t.Errorf("status %d, %v", v.Status, err)
	}
}

// from is a connection that comes from an address.
type from struct {
	network.Conn
	id   peer.ID
	addr string
}

func (c from) RemotePeer() peer.ID           { return c.id }
func (c from) RemoteMultiaddr() ma.Multiaddr { return ma.StringCast(c.addr) }

// TestPlaces wants limits for all, for one peer and for one address.
func TestPlaces(t *testing.T) {
	a, b, c, d, e := newID(t), newID(t), newID(t), newID(t), newID(t)
	p := places{most: 4, ofIP: 3, ofPeer: 2}
	for i, step := range []struct {
		id   peer.ID
		addr string
		want bool
	}{
		{a, "/ip6/2001:db8::1/tcp/1", true},
		{a, "/ip6/2001:db8::1/tcp/1", true},
		{a, "/ip4/192.0.2.1/tcp/1", false}, // one peer
		{b, "/ip6/2001:db8:0:1::2/udp/1/quic-v1", true},
		{c, "/ip6/2001:db8:0:2::1/tcp/1", false}, // one customer
		{d, "/ip4/192.0.2.2/tcp/1/p2p/" + a.String() + "/p2p-circuit", true},
		{e, "/ip4/192.0.2.3/tcp/1", false}, // all
	} {
		if got := p.take(from{id: step.id, addr: step.addr}); got != step.want {
			t.Errorf("step %d: %t", i, got)
		}
	}
	if got := addressOf(from{addr: "/ip4/192.0.2.2/tcp/1/p2p/" + a.String() + "/p2p-circuit"}); got != "192.0.2.2" {
		t.Errorf("by a relay: %s", got)
	}
	p.give(from{id: a, addr: "/ip6/2001:db8::1/tcp/1"})
	if !p.take(from{id: c, addr: "/ip6/2001:db8:0:2::1/tcp/1"}) {
		t.Error("what was given back is not there")
	}
	p.closed = true
	if p.take(from{id: e, addr: "/ip4/192.0.2.3/tcp/1"}) {
		t.Error("a place of one that is closed")
	}
}
