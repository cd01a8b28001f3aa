// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/tree"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// forger writes a log as its owner does, with nobody to see that there is only one.
type forger struct {
	key     crypto.PrivKey
	id      peer.ID
	entries []*wire.Entry
	nodes   map[tree.Node]wire.Hash // by level and index
	roots   []wire.Hash             // by size
	ahead   time.Duration           // of its clock
}

func newForger(t testing.TB, key crypto.PrivKey) *forger {
	t.Helper()
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &forger{key: key, id: id, nodes: make(map[tree.Node]wire.Hash), roots: make([]wire.Hash, 1)}
}

// fork returns another log with the same beginning.
func (f *forger) fork(t testing.TB, size, more int) *forger {
	t.Helper()
	g := newForger(t, f.key)
	g.ahead = f.ahead
	for _, e := range f.entries[:size] {
		g.add(t, e)
	}
	return g.grow(t, more)
}

func (f *forger) tree(level uint, index uint64) (wire.Hash, error) {
	return f.nodes[tree.Node{Level: level, Index: index}], nil
}

func (f *forger) add(t testing.TB, e *wire.Entry) {
	t.Helper()
	added, root, err := tree.Nodes(f.tree).Append(uint64(len(f.entries)), e.Hash())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range added {
		f.nodes[tree.Node{Level: n.Level, Index: n.Index}] = n.Hash
	}
	f.entries, f.roots = append(f.entries, e), append(f.roots, root)
}

func (f *forger) grow(t testing.TB, n int) *forger {
	t.Helper()
	for range n {
		e := &wire.Entry{Kind: wire.Rating, Rater: f.id, Subject: newID(t), Dimension: wire.Honesty, Score: 1, Time: time.Now().Add(f.ahead).UnixNano()}
		if len(f.entries) > 0 {
			e.Prev = f.entries[len(f.entries)-1].Hash()
		}
		if err := e.Sign(f.key); err != nil {
			t.Fatal(err)
		}
		f.add(t, e)
	}
	return f
}

// head returns the head of a size.
func (f *forger) head(t testing.TB, size int) *wire.Head {
	t.Helper()
	h := &wire.Head{Peer: f.id, Size: uint64(size), Root: f.roots[size], Time: time.Now().Add(f.ahead).UnixNano()}
	if err := h.Sign(f.key); err != nil {
		t.Fatal(err)
	}
	return h
}

// liar is a node that shows each peer one of its logs.
type liar struct {
	host *mesh.Host
	logs map[peer.ID]*forger
	key  crypto.PrivKey
}

// newLiar returns one that is connected to those whom it shows a log.
func newLiar(t testing.TB, key crypto.PrivKey, logs map[*testNode]*forger) *liar {
	t.Helper()
	c, cancel := context.WithCancel(ctx)
	h, err := mesh.NewHost(c, mesh.RoleGateway, key, []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0")}, mesh.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	l := &liar{host: h, logs: make(map[peer.ID]*forger), key: key}
	for n, f := range logs {
		l.logs[n.id()] = f
	}
	serve := func(p string, answer func(f *forger, r io.Reader, w io.Writer) error) {
		h.SetStreamHandler(protocol.ID(p), func(s network.Stream) {
			if answer(l.logs[s.Conn().RemotePeer()], s, s) != nil {
				_ = s.Reset()
			}
			_ = s.Close()
		})
	}
	serve(wire.HeadProtocol, func(f *forger, _ io.Reader, w io.Writer) error {
		return wire.WriteBytes(w, f.head(t, len(f.entries)).Marshal())
	})
	serve(wire.LogProtocol, func(f *forger, r io.Reader, w io.Writer) error {
		asked, err := wire.ReadRange(r)
		var items []wire.Item
		for i := asked.From; err == nil && i <= uint64(len(f.entries)); i++ {
			items = append(items, wire.Item{Index: i, Entry: f.entries[i-1].Marshal()})
		}
		return wire.WritePage(w, items)
	})
	serve(wire.InboxProtocol, func(_ *forger, _ io.Reader, w io.Writer) error { return wire.WritePage(w, nil) })
	for n := range logs {
		if err := h.Connect(ctx, peer.AddrInfo{ID: n.id(), Addrs: n.node.Host.Addrs()}); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		cancel()
		_ = h.Close()
	})
	return l
}

// village is five nodes in a row, and three witnesses, each of which knows one of them.
type village struct{ nodes, witnesses []*testNode }

func newVillage(t *testing.T) *village {
	v := new(village)
	for i := range 5 {
		v.nodes = append(v.nodes, fresh(t))
		if i > 0 {
			v.nodes[i].connect(t, v.nodes[i-1])
		}
	}
	for i := range 3 {
		v.witnesses = append(v.witnesses, newWitness(t))
		v.witnesses[i].connect(t, v.nodes[2*i])
	}
	for _, n := range v.all() {
		await.Until(t, "the topics have peers", func() bool {
			return len(n.gossip.equivocation.ListPeers()) > 0 && len(n.gossip.inconsistency.ListPeers()) > 0
		})
	}
	return v
}

func (v *village) all() []*testNode { return append(v.nodes[:5:5], v.witnesses...) }

// awaitMarked waits until all know a peer for an equivocator.
func (v *village) awaitMarked(t *testing.T, id peer.ID) {
	t.Helper()
	begun := time.Now()
	for i, n := range v.all() {
		await.Until(t, fmt.Sprintf("node %d knows", i), func() bool { return n.store.Equivocators()[id] })
	}
	t.Logf("all knew after %s", time.Since(begun))
}

func (v *village) wantUnmarked(t *testing.T, id peer.ID) {
	t.Helper()
	for i, n := range v.all() {
		if n.store.Equivocators()[id] {
			t.Errorf("node %d takes %s for an equivocator", i, id)
		}
	}
}

// TestVillageFindsLiars has peers show two logs in each way that there is: all nodes know it,
// with evidence that they have verified.
func TestVillageFindsLiars(t *testing.T) {
	v := newVillage(t)
	for _, c := range []struct {
		name             string
		one, other       int // nodes, to which it shows its logs
		common, mine, or int // entries: those of both, and the more that each has
	}{
		{"one size", 0, 4, 3, 2, 2},
		{"one size from the beginning", 1, 3, 0, 4, 4},
		{"two sizes", 0, 4, 3, 2, 6},
		{"two sizes, the larger to the other end", 0, 4, 5, 9, 1},
		{"to neighbours", 2, 3, 1, 1, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			key := newKey(t)
			log := newForger(t, key).grow(t, c.common+c.mine)
			liar := newLiar(t, key, map[*testNode]*forger{v.nodes[c.one]: log, v.nodes[c.other]: log.fork(t, c.common, c.or)})
			v.awaitMarked(t, liar.host.ID())
		})
	}
	t.Run("and who comes later", func(t *testing.T) {
		late := fresh(t)
		late.connect(t, v.nodes[2])
		await.Until(t, "a node that came later knows all of them", func() bool {
			return len(late.store.Equivocators()) == len(v.nodes[2].store.Equivocators())
		})
		if len(late.store.Equivocators()) != 5 {
			t.Errorf("%v", late.store.Equivocators())
		}
	})
	t.Run("to two witnesses", func(t *testing.T) {
		key := newKey(t)
		log := newForger(t, key).grow(t, 6)
		other := log.fork(t, 3, 5)
		// Both sign, for each sees one log; one of them is shown the other log's proof by a node.
		submit := func(w *testNode, old int, f *forger, size int) int {
			sub := &wire.Submission{Old: uint64(old), Head: f.head(t, size)}
			if old > 0 {
				path, err := tree.Nodes(f.tree).Consistency(uint64(old), uint64(size))
				if err != nil {
					t.Fatal(err)
				}
				sub.Proof = path
			}
			verdict, evidence, err := w.store.Cosign(ctx, sub)
			if err != nil {
				t.Fatal(err)
			}
			if evidence != nil {
				w.equivocated(evidence)
			}
			return verdict.Status
		}
		if a, b := submit(v.witnesses[0], 0, log, 6), submit(v.witnesses[2], 0, other, 7); a != wire.Signed || b != wire.Signed {
			t.Fatal(a, b)
		}
		if got := submit(v.witnesses[0], 6, other, 8); got != wire.BadProof {
			t.Errorf("the head of the other log: %d", got)
		}
		v.awaitMarked(t, log.id)
	})
}

// TestVillageBelievesNoLies has a peer accuse an honest one, in each way that does not prove
// anything, and a witness that signs whatever comes.
func TestVillageBelievesNoLies(t *testing.T) {
	v := newVillage(t)
	slanderer := v.nodes[0]
	honest := newForger(t, newKey(t)).grow(t, 8)
	for _, n := range v.all() {
		if _, _, err := n.store.Accept(ctx, honest.entries); err != nil {
			t.Fatal(err)
		}
		if _, err := n.observe(honest.head(t, 8)); err != nil {
			t.Fatal(err)
		}
	}
	path := func(small, large uint64) []wire.Hash {
		p, err := tree.Nodes(honest.tree).Consistency(small, large)
		if err != nil {
			t.Fatal(err)
		}
		return append([]wire.Hash{honest.roots[small]}, p...)
	}
	forged := *honest.head(t, 5)
	forged.Root[0]++
	wrong := path(5, 8)
	wrong[0][0]++
	for name, a := range map[string]*wire.Alert{
		"the same head twice":               {A: honest.head(t, 5), B: honest.head(t, 5)},
		"two heads of one log":              {A: honest.head(t, 5), B: honest.head(t, 8), Path: path(5, 8)},
		"two heads, and no proof":           {A: honest.head(t, 5), B: honest.head(t, 8)},
		"a head that was not signed":        {A: honest.head(t, 5), B: &forged},
		"a smaller head that was not":       {A: &forged, B: honest.head(t, 8), Path: path(5, 8)},
		"a proof that is not of the larger": {A: honest.head(t, 5), B: honest.head(t, 8), Path: wrong},
	} {
		a.Peer, a.Witness, a.Time = honest.id, slanderer.id(), time.Now().UnixNano()
		if err := a.Sign(slanderer.node.Key); err != nil {
			t.Fatal(err)
		}
		topic := slanderer.gossip.equivocation
		if a.A.Size != a.B.Size {
			topic = slanderer.gossip.inconsistency
		}
		if err := topic.Publish(ctx, a.Marshal()); err == nil {
			t.Errorf("%s: published", name)
		}
		for _, n := range v.all() {
			if news, err := n.store.Equivocation(ctx, a); news || err == nil {
				t.Errorf("%s: taken in, %v", name, err)
			}
		}
	}
	// A bad proof, which anybody can send to a witness, is not evidence against the owner.
	for _, w := range v.witnesses {
		for _, sub := range []*wire.Submission{
			{Head: honest.head(t, 4)},
			{Old: 4, Head: honest.head(t, 8), Proof: make([]wire.Hash, 2)},
			{Old: 4, Head: honest.head(t, 8), Proof: wrong},
		} {
			if _, evidence, err := w.store.Cosign(ctx, sub); evidence != nil || err != nil {
				t.Error(evidence, err)
			}
		}
	}
	// An older head, in any order, is of the same log.
	for _, size := range []int{3, 8, 1, 5} {
		if _, err := v.nodes[4].observe(honest.head(t, size)); err != nil {
			t.Error(err)
		}
	}
	v.wantUnmarked(t, honest.id)
	// What follows a true alert has come after all the false ones.
	key := newKey(t)
	log := newForger(t, key).grow(t, 2)
	newLiar(t, key, map[*testNode]*forger{v.nodes[0]: log, v.nodes[4]: log.fork(t, 0, 2)})
	v.awaitMarked(t, log.id)
	v.wantUnmarked(t, honest.id)
	for _, n := range v.all() {
		if got, _, err := n.store.Accept(ctx, honest.grow(t, 1).entries[len(honest.entries)-1:]); err != nil || got[0] != store.Stored && got[0] != store.Parked {
			t.Errorf("the honest one is not heard any more: %v, %v", got, err)
		}
	}
}
