// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// accident is a village that knows of a node that its log was continued twice.
type accident struct {
	*village
	key      crypto.PrivKey
	owner    *testNode // with the restored store
	lost     uint64    // the size of the log that it has lost
	subjects [2]peer.ID
}

// newAccident has a node publish five entries, of which a backup has three, and two others by a
// store that is restored from that, whose head gets out. All know it.
func newAccident(t *testing.T) *accident {
	was := askEvery
	askEvery = 2 * time.Second
	t.Cleanup(func() { askEvery = was }) // after the nodes are closed
	a := &accident{village: newVillage(t), key: newKey(t), lost: 5, subjects: [2]peer.ID{newID(t), newID(t)}}
	s := Settings{Floor: -0.5, Quorum: 2}
	for _, w := range a.witnesses {
		s.Witnesses = append(s.Witnesses, w.id())
	}
	dir, backup := t.TempDir(), t.TempDir()
	start := func(dir string) *testNode {
		n := newNodeWith(t, a.key, dir, s)
		n.connect(t, a.nodes[0])
		for _, w := range a.witnesses {
			n.connect(t, w)
		}
		return n
	}
	owner := start(dir)
	for range 3 {
		owner.rate(t, a.subjects[0], 1)
	}
	owner.awaitShown(t, 3)
	owner.close()
	if err := os.CopyFS(backup, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	owner = start(dir)
	owner.rate(t, a.subjects[0], -1)
	owner.rate(t, a.subjects[0], -1)
	owner.awaitShown(t, a.lost)
	for _, n := range a.all() {
		n.awaitEntries(t, owner, a.lost)
	}
	owner.close()

	restored, err := store.Open(backup, a.key)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := restored.Append(ctx, &wire.Entry{Kind: wire.Rating, Subject: a.subjects[1], Dimension: wire.Honesty, Score: 1}, nil, true); err != nil {
			t.Fatal(err)
		}
	}
	head := restored.Head().Bare()
	if err := restored.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.nodes[4].observe(head); err != nil {
		t.Fatal(err)
	}
	a.awaitMarked(t, owner.id())
	a.owner = start(backup)
	await.Until(t, "it knows of the fork, and has asked all", func() bool {
		return errors.Is(a.owner.store.MaySign(), store.ErrForked) && !a.owner.waiting() && len(a.owner.gossip.epochs.ListPeers()) > 0
	})
	return a
}

// awaitShown waits until a node's head of a size may be shown.
func (n *testNode) awaitShown(t testing.TB, size uint64) {
	t.Helper()
	await.Until(t, "the head may be shown", func() bool { h, err := n.public(); return err == nil && h != nil && h.Size == size })
}

// awaitForgiven waits until all, and others, know the epoch, and have the whole log that has begun.
func (a *accident) awaitForgiven(t *testing.T, size uint64, others ...*testNode) {
	t.Helper()
	for _, n := range append(a.all(), others...) {
		await.Until(t, "a node knows the epoch", func() bool {
			return n.store.Epochs()[a.owner.id()] != nil && !n.store.Equivocators()[a.owner.id()]
		})
		n.awaitEntries(t, a.owner, size)
	}
}

// votes returns what the owner says of a peer, as a node has it, and whether that counts.
func (a *accident) votes(t *testing.T, n *testNode, subject peer.ID) (score float64, counts bool) {
	t.Helper()
	err := n.store.Votes(ctx, func(v store.Vote) {
		if v.Rater == a.owner.id() && v.Subject == subject {
			score, counts = v.Mean, true
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return score, counts && !n.store.Equivocators()[a.owner.id()]
}

// TestVillageForgivesOnce has a node recover from an accident by an epoch: what it says then counts
// everywhere, and what it had said for those places does not. Others cannot declare it, who comes
// later learns of it, and a second fork is not forgiven.
func TestVillageForgivesOnce(t *testing.T) {
	a := newAccident(t)
	owner, v := a.owner, a.village
	if err := owner.Append(ctx, &wire.Entry{Kind: wire.Rating, Subject: a.subjects[1], Dimension: wire.Honesty}, nil); !errors.Is(err, store.ErrForked) {
		t.Fatalf("it signs: %v", err)
	}
	// Nobody else can declare it.
	slanderer := v.nodes[1]
	for _, e := range []*wire.Epoch{{Peer: owner.id(), Time: time.Now().UnixNano()}, {Peer: owner.id(), Size: 3, Time: time.Now().UnixNano()}} {
		if err := e.Sign(slanderer.node.Key); err != nil {
			t.Fatal(err)
		}
		if err := slanderer.gossip.epochs.Publish(ctx, e.Marshal()); err == nil {
			t.Error("a false epoch was published")
		}
		for _, n := range v.all() {
			if news, err := n.store.Declared(ctx, e); news || !errors.Is(err, wire.ErrSignature) || !n.store.Equivocators()[owner.id()] {
				t.Errorf("a false epoch was taken in: %v", err)
			}
		}
	}
	kept, err := owner.Recover(ctx)
	if err != nil || kept != 3 {
		t.Fatalf("%d entries stay, %v", kept, err)
	}
	owner.rate(t, a.subjects[1], -0.5)
	const size = 3 + 2 + 1
	owner.awaitShown(t, size)
	late := fresh(t)
	late.connect(t, v.nodes[4])
	a.awaitForgiven(t, size, late)
	for _, n := range append(v.all(), late) {
		if score, counts := a.votes(t, n, a.subjects[0]); !counts || score < 0.99 {
			t.Errorf("of the first it says %g, which counts: %t", score, counts)
		}
		if score, counts := a.votes(t, n, a.subjects[1]); !counts || score < 0.49 || score > 0.51 {
			t.Errorf("of the second it says %g, which counts: %t", score, counts)
		}
		await.Until(t, "it stands as a newcomer does", func() bool {
			s := n.Standing(owner.id())
			return !s.Equivocator && s.Probation && s.Score <= 0
		})
	}
	if _, err := owner.Recover(ctx); !errors.Is(err, store.ErrNotForked) {
		t.Error(err)
	}

	// It forks again, and says that this was an accident, too.
	log := newForger(t, a.key)
	entries, err := late.store.Inbox(ctx, wire.Range{Count: 100})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range entries {
		if e, err := wire.ParseEntry(i.Entry); err == nil && e.Rater == owner.id() {
			log.add(t, e)
		}
	}
	for i, n := range []*testNode{v.nodes[0], v.nodes[4]} {
		if _, err := n.observe(log.fork(t, size, i+1).head(t, size+i+1)); err != nil {
			t.Fatal(err)
		}
		if err := n.take(log.fork(t, size, 2).entries, false); err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range []*testNode{v.nodes[0], v.nodes[4]} {
		if _, err := n.observe(log.fork(t, size, 1).head(t, size+1)); err != nil && !errors.Is(err, store.ErrFork) {
			t.Fatal(i, err)
		}
	}
	a.awaitMarked(t, owner.id())
	await.Until(t, "it knows of the fork", func() bool { return errors.Is(owner.store.MaySign(), store.ErrForked) })
	if _, err := owner.Recover(ctx); !errors.Is(err, store.ErrSecondEpoch) {
		t.Errorf("it recovers twice: %v", err)
	}
	second := &wire.Epoch{Peer: owner.id(), Size: 2, Time: time.Now().UnixNano()}
	if err := second.Sign(a.key); err != nil {
		t.Fatal(err)
	}
	owner.announce(second)
	later := fresh(t)
	later.connect(t, v.nodes[2])
	for _, n := range append(v.all(), late, later) {
		await.Until(t, "a node has both epochs", func() bool {
			items, err := n.store.EpochPage(ctx, wire.Range{Count: 10})
			return err == nil && len(items) == 2
		})
		if !n.store.Equivocators()[owner.id()] {
			t.Error("a second epoch is forgiven")
		}
	}
}
