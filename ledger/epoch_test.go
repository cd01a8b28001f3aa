// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

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
			_, ok := n.store.Epochs()[a.owner.id()]
			return ok && !n.store.Equivocators()[a.owner.id()]
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
// everywhere, and what it had said does not. Others cannot declare it, who comes when it is an
// equivocator or later learns of it, who has another beginning of its log takes the new one, and a
// second fork is not forgiven.
func TestVillageForgivesOnce(t *testing.T) {
	a := newAccident(t)
	owner, v := a.owner, a.village
	if err := owner.Append(ctx, &wire.Entry{Kind: wire.Rating, Subject: a.subjects[1], Dimension: wire.Honesty}, nil); !errors.Is(err, store.ErrForked) {
		t.Fatalf("it signs: %v", err)
	}
	// Nobody else can declare it.
	slanderer := v.nodes[1]
	e := &wire.Epoch{Peer: owner.id(), Time: time.Now().UnixNano()}
	if err := e.Sign(slanderer.node.Key); err != nil {
		t.Fatal(err)
	}
	if err := slanderer.gossip.epochs.Publish(ctx, e.Marshal()); err == nil {
		t.Error("a false epoch was published")
	}
	for _, n := range v.all() {
		if news, err := n.store.TakeEpoch(ctx, e); news || !errors.Is(err, wire.ErrSignature) || !n.store.Equivocators()[owner.id()] {
			t.Errorf("a false epoch was taken in: %v", err)
		}
	}
	before, elsewhere := fresh(t), fresh(t)
	before.connect(t, v.nodes[3])
	await.Until(t, "who comes knows of the fork", func() bool { return before.store.Equivocators()[owner.id()] })
	if err := elsewhere.take(newForger(t, a.key).grow(t, 4).entries, false); err != nil {
		t.Fatal(err)
	}
	elsewhere.awaitEntries(t, owner, 4)

	if n, err := owner.Recover(ctx, false); err != nil || n != a.lost {
		t.Fatalf("%d entries were signed anew, %v", n, err)
	}
	last := owner.rate(t, a.subjects[1], -0.5)
	const size = 3 + 2 + 1
	owner.awaitShown(t, size)
	late := fresh(t)
	late.connect(t, v.nodes[4])
	elsewhere.connect(t, v.nodes[4])
	a.awaitForgiven(t, size, before, elsewhere, late)
	for _, n := range append(v.all(), before, elsewhere, late) {
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
		if lines, err := n.store.About(ctx, a.subjects[1], 1, 0); err != nil || len(lines) != 1 || lines[0].Hash() != last.Hash() {
			t.Errorf("it has another log: %v, %v", lines, err) // each entry has the hash of the one before
		}
	}
	if _, err := owner.Recover(ctx, false); !errors.Is(err, store.ErrNotForked) {
		t.Error(err)
	}
	a.forksAgain(t, size, late)
}

// forksAgain has the owner fork again, and say that this was an accident, too.
func (a *accident) forksAgain(t *testing.T, size int, late *testNode) {
	t.Helper()
	owner, v := a.owner, a.village
	log := newForger(t, a.key)
	log.ahead = 6 * time.Minute // after the epoch
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
	if _, err := owner.Recover(ctx, true); !errors.Is(err, store.ErrSecondEpoch) {
		t.Errorf("it recovers twice: %v", err)
	}
	second := &wire.Epoch{Peer: owner.id(), Time: time.Now().UnixNano()}
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

// forked returns a node whose store knows that its log was continued twice.
func forked(t *testing.T, s Settings, bootstrap ...peer.AddrInfo) (n *testNode, key crypto.PrivKey, dir string) {
	t.Helper()
	key, dir = newKey(t), t.TempDir()
	own, err := store.Open(dir, key)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := own.Append(ctx, &wire.Entry{Kind: wire.Rating, Subject: newID(t), Dimension: wire.Honesty}, nil, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := own.Claim(ctx, newForger(t, key).grow(t, 1).head(t, 1)); err != nil || !errors.Is(own.MaySign(), store.ErrForked) {
		t.Fatal(err)
	}
	if err := own.Close(); err != nil {
		t.Fatal(err)
	}
	return newNodeWith(t, key, dir, s, bootstrap...), key, dir
}

// TestRecoverAsksAll wants no epoch before all have answered who may know of one.
func TestRecoverAsksAll(t *testing.T) {
	b, w := fresh(t), newWitness(t)
	s := Settings{Floor: -0.5, Witnesses: []peer.ID{w.id()}, Quorum: 1}
	n, _, _ := forked(t, s, peer.AddrInfo{ID: b.id(), Addrs: b.node.Host.Addrs()})
	refused := func(names ...*testNode) {
		t.Helper()
		_, err := n.Recover(ctx, false)
		if !errors.Is(err, ErrUnasked) {
			t.Fatal(err)
		}
		for _, of := range names {
			if !strings.Contains(err.Error(), of.id().String()) {
				t.Errorf("%v does not name %s", err, of.id())
			}
		}
	}
	refused(b, w)
	n.connect(t, b)
	refused(w)
	n.connect(t, w)
	w.close()
	refused(w)
	if entries, err := n.Recover(ctx, true); err != nil || entries != 2 {
		t.Errorf("with force: %d, %v", entries, err)
	}
	alone, _, _ := forked(t, Settings{Floor: -0.5})
	if _, err := alone.Recover(ctx, false); !errors.Is(err, ErrUnasked) {
		t.Errorf("alone: %v", err)
	}
}

// TestEpochOfAnotherProcess has a node hear from a peer that another process has begun the epoch of its
// log: it begins no second one, and signs nothing before it is restarted and has asked.
func TestEpochOfAnotherProcess(t *testing.T) {
	was := askEvery
	askEvery = 2 * time.Second
	t.Cleanup(func() { askEvery = was }) // after the nodes are closed
	n, key, dir := forked(t, Settings{Floor: -0.5})
	other := newForger(t, key)
	other.ahead = time.Minute
	e := &wire.Epoch{Peer: n.id(), Time: time.Now().UnixNano()}
	if err := e.Sign(key); err != nil {
		t.Fatal(err)
	}
	p := fresh(t)
	if _, err := p.store.TakeEpoch(ctx, e); err != nil {
		t.Fatal(err)
	}
	if err := p.take(other.grow(t, 3).entries, false); err != nil {
		t.Fatal(err)
	}
	n.connect(t, p)
	if _, err := n.Recover(ctx, false); !errors.Is(err, store.ErrOther) {
		t.Fatalf("it begins another epoch: %v", err)
	}
	if _, err := n.Recover(ctx, true); !errors.Is(err, store.ErrOther) || !errors.Is(n.store.MaySign(), store.ErrOther) {
		t.Errorf("it signs: %v", err)
	}
	n.close()
	n = newNode(t, key, dir)
	n.rate(t, newID(t), 1)
	n.connect(t, p)
	await.Until(t, "it has asked", func() bool { return n.confirmed.Load() })
	p.awaitEntries(t, n, 4)
	if h := n.store.Head(); h.Size != 4 || p.store.Equivocators()[n.id()] {
		t.Errorf("its log has %d entries, an equivocator: %t", h.Size, p.store.Equivocators()[n.id()])
	}
}

// TestPenance wants who has declared an epoch to do penance from when that is heard of.
func TestPenance(t *testing.T) {
	n, key := fresh(t), newKey(t)
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	e := &wire.Epoch{Peer: id, Time: time.Now().Add(-400 * 24 * time.Hour).UnixNano()}
	if err := e.Sign(key); err != nil {
		t.Fatal(err)
	}
	if !n.takeEpoch(e) || !n.knows(e) {
		t.Fatal("it is not taken in")
	}
	now := time.Now()
	if !n.penitents(now)[id] || !n.penitents(now.Add(penance - time.Hour))[id] || n.penitents(now.Add(penance + time.Hour))[id] {
		t.Error("of long ago, it is forgiven otherwise than another")
	}
}

// TestBadNotices has a peer hold epochs and alerts that are none: what else it has is taken in.
func TestBadNotices(t *testing.T) {
	n, p := fresh(t), fresh(t)
	e := &wire.Epoch{Time: time.Now().UnixNano()}
	key := newKey(t)
	e.Peer, _ = peer.IDFromPrivateKey(key)
	if err := e.Sign(key); err != nil {
		t.Fatal(err)
	}
	forged := &wire.Epoch{Peer: newID(t), Time: e.Time, Signature: e.Signature}
	bad := func(r wire.Range) []wire.Item {
		if r.From > 0 {
			return nil
		}
		return []wire.Item{{Index: 1, Entry: []byte("x")}, {Index: 2, Entry: forged.Marshal()}, {Index: 3, Entry: e.Marshal()}}
	}
	for _, id := range []protocol.ID{wire.EpochsProtocol, wire.AlertsProtocol} {
		p.node.Host.SetStreamHandler(id, func(s network.Stream) {
			if r, err := wire.ReadRange(s); err == nil {
				_ = wire.WritePage(s, bad(r))
			}
			_ = s.Close()
		})
	}
	p.rate(t, newID(t), 1)
	n.connect(t, p)
	n.awaitEntries(t, p, 1)
	await.Until(t, "all is taken in", func() bool { return n.confirmed.Load() && n.knows(e) })
	if n.knows(forged) {
		t.Error("a forged epoch is taken in")
	}
}
