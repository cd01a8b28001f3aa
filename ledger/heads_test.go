// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsubpb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// serves connects a node to a peer that answers requests for pages, and for nothing else: it is
// not asked in rounds.
func (n *testNode) serves(t testing.TB, p protocol.ID, page func(wire.Range) []wire.Item) peer.ID {
	t.Helper()
	h, err := libp2p.New(libp2p.NoListenAddrs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	h.SetStreamHandler(p, func(s network.Stream) {
		if r, err := wire.ReadRange(s); err == nil {
			_ = wire.WritePage(s, page(r))
		}
		_ = s.Close()
	})
	if err := h.Connect(ctx, peer.AddrInfo{ID: n.id(), Addrs: n.node.Host.Addrs()}); err != nil {
		t.Fatal(err)
	}
	await.Until(t, "it is known what the peer serves", func() bool {
		has, err := n.node.Host.Peerstore().SupportsProtocols(h.ID(), p)
		return err == nil && len(has) > 0
	})
	return h.ID()
}

// TestEndlessPages has a peer serve pages without an end: it is left after some.
func TestEndlessPages(t *testing.T) {
	head := newForger(t, newKey(t)).grow(t, 1).head(t, 1).Marshal()
	for name, c := range map[string]struct {
		protocol protocol.ID
		ask      func(*testNode, peer.ID) error
		item     []byte
		pages    int64
		bad      bool
	}{
		"junk":             {wire.HeadsProtocol, func(n *testNode, id peer.ID) error { return n.readHeads(ctx, id, 0) }, []byte("x"), headPages, false},
		"heads of one log": {wire.HeadsProtocol, func(n *testNode, id peer.ID) error { return n.readHeads(ctx, id, 0) }, head, 1, true},
		"alerts that are none": {wire.AlertsProtocol, func(n *testNode, id peer.ID) error {
			return n.askNotices(ctx, id)
		}, []byte("x"), 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			var pages atomic.Int64
			n := fresh(t)
			id := n.serves(t, c.protocol, func(r wire.Range) []wire.Item {
				pages.Add(1)
				items := make([]wire.Item, r.Count)
				for i := range items {
					items[i] = wire.Item{Index: r.From + uint64(i) + 1, Entry: c.item}
				}
				return items
			})
			if err := c.ask(n, id); errors.Is(err, wire.ErrBad) != c.bad || !c.bad && err != nil {
				t.Error(err)
			}
			if got := pages.Load(); got != c.pages {
				t.Errorf("%d pages were asked for", got)
			}
		})
	}
}

// TestForksAreWarnedOfOnce shows a node a head that is not of the entries, again and again.
func TestForksAreWarnedOfOnce(t *testing.T) {
	n := fresh(t)
	core, logs := observer.New(zap.WarnLevel)
	n.Ledger.node.Log = func() *zap.Logger { return zap.New(core) }
	log := newForger(t, newKey(t)).grow(t, 2)
	if err := n.take(log.entries, false); err != nil {
		t.Fatal(err)
	}
	other := log.fork(t, 0, 1).head(t, 1)
	for range 5 {
		if err := n.heard(ctx, other); err != nil {
			t.Fatal(err)
		}
	}
	if logs.Len() != 1 || !n.heads.forks[log.id] {
		t.Errorf("%d lines", logs.Len())
	}
}

// TestHeadsOfNewStore has a peer begin anew with an empty store: its heads are read again, also
// when the rows have come to where they were.
func TestHeadsOfNewStore(t *testing.T) {
	for name, before := range map[string]uint64{"with less": 100, "with as much": 1} {
		t.Run(name, func(t *testing.T) {
			n := fresh(t)
			log := newForger(t, newKey(t)).grow(t, 1)
			if err := n.take(log.entries, false); err != nil {
				t.Fatal(err)
			}
			item := wire.Item{Index: 1, Entry: log.head(t, 1).Marshal()}
			asked := 0
			id := n.serves(t, wire.HeadsProtocol, func(r wire.Range) []wire.Item {
				if asked++; r.From >= item.Index {
					return nil
				}
				return []wire.Item{item}
			})
			n.sawHeads(id, headCursor{row: before, last: wire.Hash{1}, logs: n.logs.Load()})
			for range 2 {
				if err := n.askHeads(ctx, id); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := n.store.Prove(ctx, log.id, log.entries[0].Hash()); err != nil {
				t.Errorf("the head was not read: %v", err)
			}
			if c := n.headsSeen(id); c.row != 1 || asked != 3 {
				t.Errorf("row %d, asked %d times", c.row, asked)
			}
		})
	}
}

// TestWitnessesOfPages has peers show heads with the signatures of witnesses: true ones are kept,
// many are read one part after another, and who shows a false one is left.
func TestWitnessesOfPages(t *testing.T) {
	n := fresh(t)
	log := newForger(t, newKey(t)).grow(t, 1)
	if err := n.take(log.entries, false); err != nil {
		t.Fatal(err)
	}
	witness := newKey(t)
	cosigned := func(h *wire.Head, times int) *wire.Head {
		for range times {
			w, err := h.Cosign(witness)
			if err != nil {
				t.Fatal(err)
			}
			h.Witnesses = append(h.Witnesses, w)
			witness = newKey(t)
		}
		return h
	}
	kept := func() int {
		p, err := n.store.Prove(ctx, log.id, log.entries[0].Hash())
		if err != nil {
			return -1
		}
		return len(p.Head.Witnesses)
	}
	shown := func(heads ...*wire.Head) peer.ID {
		return n.serves(t, wire.HeadsProtocol, func(r wire.Range) (items []wire.Item) {
			for i := r.From; i < uint64(len(heads)); i++ {
				items = append(items, wire.Item{Index: i + 1, Entry: heads[i].Marshal()})
			}
			return items
		})
	}
	wrong := cosigned(log.head(t, 1), 2)
	wrong.Witnesses[1].Signature[0] ^= 1
	if err := n.askHeads(ctx, shown(wrong)); !errors.Is(err, wire.ErrSignature) || kept() != -1 {
		t.Errorf("a false signature: %v, %d kept", err, kept())
	}
	if err := n.askHeads(ctx, shown(cosigned(log.head(t, 1), 2))); err != nil || kept() != 2 {
		t.Errorf("true signatures: %v, %d kept", err, kept())
	}
	var many []*wire.Head
	for range headSignatures/32 + 8 {
		many = append(many, cosigned(newForger(t, newKey(t)).grow(t, 1).head(t, 1), 32))
	}
	id := shown(many...)
	for _, want := range []int{headSignatures / 32, len(many)} {
		if err := n.askHeads(ctx, id); err != nil || n.headsSeen(id).row != uint64(want) {
			t.Errorf("read to row %d, want %d; %v", n.headsSeen(id).row, want, err)
		}
	}
}

// TestKnownEquivocator shows a node again what proves that a peer has equivocated: it tells
// nobody, and passes on no alert.
func TestKnownEquivocator(t *testing.T) {
	n, other := fresh(t), fresh(t)
	log := newForger(t, newKey(t)).grow(t, 1)
	one, two := log.head(t, 1), log.fork(t, 0, 1).head(t, 1)
	if err := n.take(log.entries, false); err != nil {
		t.Fatal(err)
	}
	sub, err := n.gossip.equivocation.Subscribe()
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Cancel()
	for _, h := range []*wire.Head{one, two} {
		if err := n.heard(ctx, h); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := sub.Next(ctx); err != nil || !n.store.Equivocators()[log.id] {
		t.Fatal(m, err)
	}
	for range 10 {
		if err := n.heard(ctx, two); err != nil {
			t.Fatal(err)
		}
	}
	alert := &wire.Alert{Peer: log.id, A: one, B: two, Witness: other.id(), Time: 1}
	if err := alert.Sign(other.node.Key); err != nil {
		t.Fatal(err)
	}
	topic := wire.EquivocationTopic
	m := &pubsub.Message{Message: &pubsubpb.Message{Data: alert.Marshal(), From: []byte(other.id()), Topic: &topic}}
	if got := n.validateAlert(ctx, other.id(), m); got != pubsub.ValidationIgnore {
		t.Errorf("an alert that is no news: %v", got)
	}
	if got := fresh(t).validateAlert(ctx, other.id(), m); got != pubsub.ValidationAccept {
		t.Errorf("an alert that is news: %v", got)
	}
	// What is published by now comes before this.
	marker := &wire.Alert{Peer: log.id, A: two, B: one, Witness: n.id(), Time: 2}
	if err := marker.Sign(n.node.Key); err != nil {
		t.Fatal(err)
	}
	if err := n.gossip.equivocation.Publish(ctx, marker.Marshal()); err != nil {
		t.Fatal(err)
	}
	got, err := sub.Next(ctx)
	if err != nil || string(got.GetData()) != string(marker.Marshal()) {
		t.Errorf("it is told again: %v", err)
	}
}

// TestReplayedHeadsMuteNobody sends heads of a log again that are known: its owner's next is relayed, and
// so is one of another log.
func TestReplayedHeadsMuteNobody(t *testing.T) {
	n, from, topic := fresh(t), newID(t), wire.HeadsTopic
	f := newForger(t, newKey(t)).grow(t, 3)
	if err := n.take(f.entries, false); err != nil {
		t.Fatal(err)
	}
	f.grow(t, 3)
	held, ahead := f.head(t, 3), f.head(t, 5)
	for _, h := range []*wire.Head{held, ahead} {
		if _, err := n.observe(h); err != nil {
			t.Fatal(err)
		}
	}
	relayed := func(h *wire.Head) bool {
		m := &pubsub.Message{Message: &pubsubpb.Message{Data: h.Marshal(), From: []byte(from), Topic: &topic}}
		return n.validateHead(ctx, from, m) == pubsub.ValidationAccept
	}
	again := 0
	for range authorBurst {
		for _, h := range []*wire.Head{f.head(t, 1), held, ahead} {
			if relayed(h) {
				again++
			}
		}
	}
	if again == 3*authorBurst {
		t.Error("what is known is relayed without end")
	}
	for _, h := range []*wire.Head{f.head(t, 6), f.fork(t, 1, 1).head(t, 2), f.fork(t, 1, 4).head(t, 5)} {
		if !relayed(h) {
			t.Errorf("one of size %d, which is news, is not relayed", h.Size)
		}
	}
}
