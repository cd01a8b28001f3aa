// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
	"github.com/Agent-FM/caddy-agentfm/mesh"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "agentfm")
	if err != nil {
		panic(err)
	}
	os.Setenv("XDG_DATA_HOME", dir) // where the locks of identities are
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			println(err.Error())
			code = 1
		}
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

var ctx = context.Background()

func newKey(t testing.TB) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newID(t testing.TB) peer.ID {
	t.Helper()
	id, err := peer.IDFromPrivateKey(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// testNode is a node with a ledger.
type testNode struct {
	*Ledger
	node   mesh.Node
	trusts atomic.Pointer[func(string) mesh.Trust] // how far it trusts whom
	log    atomic.Pointer[zap.Logger]
	close  func()
}

// newNode returns a node on loopback that knows nobody but its bootstrap nodes. With a key and a folder it is one
// that was before.
func newNode(t testing.TB, key crypto.PrivKey, dir string, bootstrap ...peer.AddrInfo) *testNode {
	t.Helper()
	return newNodeWith(t, key, dir, Settings{Floor: -0.5}, bootstrap...)
}

func newNodeWith(t testing.TB, key crypto.PrivKey, dir string, s Settings, bootstrap ...peer.AddrInfo) *testNode {
	t.Helper()
	c, cancel := context.WithCancel(ctx)
	h, err := mesh.NewHost(c, mesh.RoleGateway, key, []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0")}, mesh.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	ps, err := mesh.NewPubSub(c, h, func(peer.ID) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	n := new(testNode)
	n.log.Store(zap.NewNop())
	n.node = mesh.Node{
		Context: c, Host: h, PubSub: ps, Key: key,
		Bootstrap: func() []peer.AddrInfo { return bootstrap },
		Entry:     func(peer.ID, string) {},
		Trust:     func(trusts func(string) mesh.Trust) { n.trusts.Store(&trusts) },
		Judge:     func(func(string, bool)) {},
		Log:       n.log.Load,
	}
	if n.Ledger, err = Open(n.node, dir, s); err != nil {
		t.Fatal(err)
	}
	closed := false
	n.close = func() {
		if !closed {
			closed = true
			cancel()
			n.Close()
			_ = h.Close()
		}
	}
	t.Cleanup(n.close)
	return n
}

func fresh(t testing.TB) *testNode { return newNode(t, newKey(t), t.TempDir()) }

func (n *testNode) id() peer.ID { return n.node.Host.ID() }

func (n *testNode) connect(t testing.TB, to *testNode) {
	t.Helper()
	if err := n.node.Host.Connect(ctx, peer.AddrInfo{ID: to.id(), Addrs: to.node.Host.Addrs()}); err != nil {
		t.Fatal(err)
	}
}

func (n *testNode) rate(t testing.TB, subject peer.ID, score float64) *wire.Entry {
	t.Helper()
	e := &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: wire.Honesty, Score: score}
	if err := n.Append(ctx, e, nil); err != nil {
		t.Fatal(err)
	}
	return e
}

func (n *testNode) say(t testing.TB, subject peer.ID, text string) *wire.Entry {
	t.Helper()
	e := &wire.Entry{Kind: wire.Comment, Subject: subject, TextCID: wire.CID([]byte(text)), Language: "en"}
	if err := n.Append(ctx, e, []byte(text)); err != nil {
		t.Fatal(err)
	}
	return e
}

// has reports how many entries a node has of another's log.
func (n *testNode) has(of *testNode) uint64 {
	size, _ := n.store.Size(ctx, of.id())
	return size
}

func (n *testNode) awaitEntries(t testing.TB, of *testNode, want uint64) {
	t.Helper()
	await.Until(t, fmt.Sprintf("%d entries of a peer", want), func() bool { return n.has(of) == want })
}

func TestGossip(t *testing.T) {
	a, b, subject := fresh(t), fresh(t), newID(t)
	a.connect(t, b)
	await.Until(t, "both are confirmed", func() bool { return a.confirmed.Load() && b.confirmed.Load() })
	await.Until(t, "the topic has peers", func() bool { return len(a.gossip.feedback.ListPeers()) > 0 })
	for i := range 50 {
		a.rate(t, subject, float64(i)/50)
	}
	b.awaitEntries(t, a, 50)
}

// TestCatchUp wants a node that comes later to have everything, texts of comments too, also
// what is by a node that is gone, from one that has it.
func TestCatchUp(t *testing.T) {
	inboxPage = 10
	t.Cleanup(func() { inboxPage = wire.MaxPage }) // after the nodes are closed
	author, archive, subject := fresh(t), fresh(t), newID(t)
	for range 3 {
		author.rate(t, subject, 0.5)
	}
	many, prev := newKey(t), wire.Hash{}
	stranger, _ := peer.IDFromPrivateKey(many)
	for range 3 {
		var batch []*wire.Entry
		for range 15 { // more than a page in all
			e := &wire.Entry{Kind: wire.Rating, Rater: stranger, Subject: subject, Dimension: "x", Prev: prev, Time: time.Now().UnixNano()}
			if err := e.Sign(many); err != nil {
				t.Fatal(err)
			}
			prev, batch = e.Hash(), append(batch, e)
		}
		if _, _, err := archive.store.Accept(ctx, batch); err != nil {
			t.Fatal(err)
		}
	}
	c := author.say(t, subject, "good work")
	archive.rate(t, author.id(), 1)
	author.connect(t, archive)
	archive.awaitEntries(t, author, 4)
	await.Until(t, "the archive has the text", func() bool { _, err := archive.store.Comment(ctx, c.TextCID); return err == nil })
	author.close()

	late := fresh(t)
	late.connect(t, archive)
	late.awaitEntries(t, author, 4)
	late.awaitEntries(t, archive, 1)
	await.Until(t, "all of the stranger's", func() bool { n, _ := late.store.Size(ctx, stranger); return n == 45 })
	await.Until(t, "the text is there", func() bool {
		text, err := late.store.Comment(ctx, c.TextCID)
		return err == nil && string(text) == "good work"
	})
}

// TestGossipIsOnlyAHint loses every message of gossip, and wants the peer to have all of
// the log once it has asked.
func TestGossipIsOnlyAHint(t *testing.T) {
	a, b, subject := fresh(t), fresh(t), newID(t)
	a.connect(t, b)
	await.Until(t, "both are confirmed", func() bool { return a.confirmed.Load() && b.confirmed.Load() })
	for range 20 { // not published
		if err := a.store.Append(ctx, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: wire.Honesty}, nil, true); err != nil {
			t.Fatal(err)
		}
	}
	await.Until(t, "the topic has peers", func() bool { return len(a.gossip.feedback.ListPeers()) > 0 })
	a.rate(t, subject, 1) // an orphan for b
	b.kicks <- a.id()
	b.awaitEntries(t, a, 21)
}

// TestRestoredStore takes a node back to an old copy of its store: it gets from its peer
// what it had published, and goes on behind that.
func TestRestoredStore(t *testing.T) {
	key, dir, subject := newKey(t), t.TempDir(), newID(t)
	a, b := newNode(t, key, dir), fresh(t)
	a.connect(t, b)
	await.Until(t, "both are confirmed", func() bool { return a.confirmed.Load() && b.confirmed.Load() })
	a.rate(t, subject, 1)
	a.close()
	old := filepath.Join(t.TempDir(), "old")
	if err := os.CopyFS(old, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	a = newNode(t, key, dir)
	a.connect(t, b)
	await.Until(t, "it is confirmed", func() bool { return a.confirmed.Load() })
	a.rate(t, subject, 0.9)
	a.rate(t, subject, 0.8)
	b.awaitEntries(t, a, 3)
	a.close()

	a = newNode(t, key, old)
	late := a.rate(t, subject, 0.1) // alone: nobody sees it yet
	a.connect(t, b)
	await.Until(t, "it is confirmed", func() bool { return a.confirmed.Load() })
	if h := a.store.Head(); h == nil || h.Size != 4 || a.store.MaySign() != nil {
		t.Errorf("head %+v, %v", h, a.store.MaySign())
	}
	b.awaitEntries(t, a, 4)
	lines, err := b.store.About(ctx, subject, 1, 0)
	if err != nil || len(lines) != 1 || lines[0].Score != 0.1 || lines[0].Hash() == late.Hash() {
		t.Errorf("%+v, %v", lines, err)
	}
}

// TestEquivocation shows two heads of one size to two nodes that know each other, and wants
// both to know the owner for what it is.
func TestEquivocation(t *testing.T) {
	a, b, liar := fresh(t), fresh(t), newKey(t)
	a.connect(t, b)
	await.Until(t, "the topic has peers", func() bool { return len(a.gossip.equivocation.ListPeers()) > 0 })
	id, err := peer.IDFromPrivateKey(liar)
	if err != nil {
		t.Fatal(err)
	}
	one := &wire.Entry{Kind: wire.Rating, Rater: id, Subject: a.id(), Dimension: "x", Time: time.Now().UnixNano()}
	if err := one.Sign(liar); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.store.Accept(ctx, []*wire.Entry{one}); err != nil {
		t.Fatal(err)
	}
	for _, root := range []byte{1, 2} {
		h := &wire.Head{Peer: id, Size: 5, Root: wire.Hash{root}, Time: time.Now().UnixNano()}
		if err := h.Sign(liar); err != nil {
			t.Fatal(err)
		}
		if _, err := a.observe(h); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []*testNode{a, b} {
		await.Until(t, "the liar is known", func() bool {
			return n.store.Equivocators()[id]
		})
	}
}

// TestForeignGossip sends what is no entry, or not the sender's to change.
func TestForeignGossip(t *testing.T) {
	a, b, subject := fresh(t), fresh(t), newID(t)
	a.connect(t, b)
	await.Until(t, "the topic has peers", func() bool { return len(a.gossip.feedback.ListPeers()) > 0 && a.confirmed.Load() })
	e := a.rate(t, subject, 1)
	b.awaitEntries(t, a, 1)
	for name, m := range map[string][]byte{
		"unknown field": append(e.Marshal(), 0x40, 1),
		"forged":        (&wire.Entry{Kind: wire.Rating, Rater: e.Rater, Subject: subject, Dimension: "x", Time: e.Time, Signature: e.Signature}).Marshal(),
		"junk":          []byte("junk"),
	} {
		if err := a.gossip.feedback.Publish(ctx, m); err == nil {
			t.Errorf("%s: published", name)
		}
	}
	again, _, err := b.store.Accept(ctx, []*wire.Entry{e})
	if err != nil || again[0] != store.Known || b.has(a) != 1 {
		t.Errorf("%v, %v", again, err)
	}
}

// TestHeadsMeet shows one head of a log to one node, and another to another. Once these ask
// each other, both know.
func TestHeadsMeet(t *testing.T) {
	a, b, liar := fresh(t), fresh(t), newKey(t)
	id, err := peer.IDFromPrivateKey(liar)
	if err != nil {
		t.Fatal(err)
	}
	one := &wire.Entry{Kind: wire.Rating, Rater: id, Subject: newID(t), Dimension: "x", Time: time.Now().UnixNano()}
	if err := one.Sign(liar); err != nil {
		t.Fatal(err)
	}
	for i, n := range []*testNode{a, b} {
		if _, _, err := n.store.Accept(ctx, []*wire.Entry{one}); err != nil {
			t.Fatal(err)
		}
		h := &wire.Head{Peer: id, Size: 5, Root: wire.Hash{byte(i)}, Time: time.Now().UnixNano()}
		if err := h.Sign(liar); err != nil {
			t.Fatal(err)
		}
		if _, err := n.observe(h); err != nil {
			t.Fatal(err)
		}
	}
	a.connect(t, b)
	for _, n := range []*testNode{a, b} {
		await.Until(t, "the liar is known", func() bool {
			return n.store.Equivocators()[id]
		})
	}
}

// TestLostEntries restores an old store of which nobody has all that was published since, but
// somebody has seen its head: the node does not sign.
func TestLostEntries(t *testing.T) {
	key, dir, subject := newKey(t), t.TempDir(), newID(t)
	a, b := newNode(t, key, dir), fresh(t)
	a.connect(t, b)
	await.Until(t, "both are confirmed", func() bool { return a.confirmed.Load() && b.confirmed.Load() })
	a.rate(t, subject, 1)
	b.awaitEntries(t, a, 1)
	h := &wire.Head{Peer: a.id(), Size: 3, Root: wire.Hash{3}, Time: time.Now().UnixNano()}
	if err := h.Sign(key); err != nil {
		t.Fatal(err)
	}
	if ahead, err := b.observe(h); !ahead || err != nil {
		t.Fatal(ahead, err)
	}
	a.close()
	a = newNode(t, key, dir)
	a.connect(t, b)
	await.Until(t, "it knows that it lacks entries", func() bool { return errors.Is(a.store.MaySign(), store.ErrBehind) })
	e := &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: wire.Honesty}
	if err := a.Append(ctx, e, nil); !errors.Is(err, store.ErrBehind) {
		t.Errorf("signed: %v", err)
	}
}
