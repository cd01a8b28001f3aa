// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pubsubpb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// TestSayChecksFirst signs nothing, and spends no quota, when one half of an opinion is bad.
func TestSayChecksFirst(t *testing.T) {
	n := fresh(t)
	score, other := 0.5, newID(t)
	for _, o := range []Opinion{
		{Subject: other, Score: &score, Text: "good", Language: "\n"},
		{Subject: other, Score: &score, Text: "good", Language: strings.Repeat("x", 1<<10)},
		{Subject: other, Text: "good", Attached: []byte("no hash")},
		{Subject: other, Score: &score, Text: "\xff"},
		{Subject: n.id(), Score: &score},
		{Subject: n.id(), Score: &score, Text: "good"},
	} {
		for range int(clientBurst) {
			if _, err := n.Say(ctx, o); !errors.Is(err, wire.ErrBad) {
				t.Fatalf("%+v: %v", o, err)
			}
		}
	}
	if n.Size() != 0 {
		t.Errorf("%d entries were signed", n.Size())
	}
	e, err := n.Say(ctx, Opinion{Subject: other, Score: &score, Text: "good", Language: "en"})
	if err != nil || e.Kind != wire.Comment || len(e.AttachedRating) == 0 || n.Size() != 2 {
		t.Errorf("%+v, %v, %d entries", e, err, n.Size())
	}
}

// TestSayWhole wants the comment to follow its rating also when who asked has gone by then.
func TestSayWhole(t *testing.T) {
	n := fresh(t)
	score := 0.5
	o := Opinion{Subject: newID(t), Score: &score, Text: "good"}
	if e, err := n.Say(&leaving{Context: ctx, looks: 1}, o); err != nil || e.Kind != wire.Comment || n.Size() != 2 {
		t.Errorf("%+v, %v, %d entries", e, err, n.Size())
	}
	if e, err := n.Say(&leaving{Context: ctx}, o); !errors.Is(err, context.Canceled) || e != nil || n.Size() != 2 {
		t.Errorf("%+v, %v, %d entries", e, err, n.Size())
	}
}

// leaving is a context that ends after it was looked at so often.
type leaving struct {
	context.Context
	looks int
}

// Err implements context.Context.
func (l *leaving) Err() error {
	if l.looks--; l.looks < 0 {
		return context.Canceled
	}
	return nil
}

// TestServingIsBounded asks and says nothing: one peer gets some places and no more, and to
// close does not wait for it.
func TestServingIsBounded(t *testing.T) {
	a, b := fresh(t), fresh(t)
	a.connect(t, b)
	await.Until(t, "both are confirmed", func() bool { return a.confirmed.Load() && b.confirmed.Load() })
	taken := func() int {
		b.serving.open.mu.Lock()
		defer b.serving.open.mu.Unlock()
		return b.serving.open.all
	}
	var streams []network.Stream
	for range 2 * maxOfOne {
		s, err := a.node.Host.NewStream(ctx, b.id(), wire.LogProtocol)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Reset()
		_, _ = s.Write([]byte{0}) // it is opened with the first byte
		streams = append(streams, s)
	}
	await.Until(t, "the places are taken", func() bool { return taken() == maxOfOne })
	began := time.Now()
	b.close()
	if d := time.Since(began); d > readWithin/2 {
		t.Errorf("closed after %s", d)
	}
	for _, s := range streams {
		if _, err := s.Read(make([]byte, 1)); err == nil {
			t.Error("an answer")
		}
	}
}

// TestForgedEntriesMuteNobody sends what a peer has not signed, and what it has sent before: what
// it may send stays.
func TestForgedEntriesMuteNobody(t *testing.T) {
	n, from := fresh(t), newID(t)
	author := newKey(t)
	id, err := peer.IDFromPrivateKey(author)
	if err != nil {
		t.Fatal(err)
	}
	e := &wire.Entry{Kind: wire.Rating, Rater: id, Subject: newID(t), Dimension: "x", Time: time.Now().UnixNano()}
	if err := e.Sign(author); err != nil {
		t.Fatal(err)
	}
	forged := *e
	forged.Dimension = "y"
	message := func(e *wire.Entry) *pubsub.Message {
		return &pubsub.Message{Message: &pubsubpb.Message{Data: e.Marshal(), From: []byte(from)}}
	}
	for range 2 * int(authorBurst) {
		if got := n.validateEntry(ctx, from, message(&forged)); got != pubsub.ValidationReject {
			t.Fatalf("a forged entry: %v", got)
		}
	}
	if got := n.validateEntry(ctx, from, message(e)); got != pubsub.ValidationAccept {
		t.Errorf("an entry: %v", got)
	}
	if _, _, err := n.store.Accept(ctx, []*wire.Entry{e}); err != nil {
		t.Fatal(err)
	}
	for range 2 * int(authorBurst) { // as somebody does who has its author be silent
		if got := n.validateEntry(ctx, from, message(e)); got != pubsub.ValidationIgnore {
			t.Fatalf("an entry that is stored: %v", got)
		}
	}
	next := &wire.Entry{Kind: wire.Rating, Rater: id, Subject: e.Subject, Dimension: "x", Time: e.Time + 1, Prev: e.Hash()}
	if err := next.Sign(author); err != nil {
		t.Fatal(err)
	}
	if got := n.validateEntry(ctx, from, message(next)); got != pubsub.ValidationAccept {
		t.Errorf("the next entry: %v", got)
	}
}

// TestVoidEntriesMuteNobody sends entries that their author has declared void: those that it signs from
// then on are relayed. Of an equivocator, none is.
func TestVoidEntriesMuteNobody(t *testing.T) {
	n, from, key := fresh(t), newID(t), newKey(t)
	check := func(e *wire.Entry, want pubsub.ValidationResult) {
		t.Helper()
		m := &pubsub.Message{Message: &pubsubpb.Message{Data: e.Marshal(), From: []byte(from)}}
		if got := n.validateEntry(ctx, from, m); got != want {
			t.Fatalf("an entry: %v", got)
		}
	}
	old := newForger(t, key).grow(t, authorBurst)
	e := &wire.Epoch{Peer: old.id, Time: time.Now().UnixNano()}
	if err := e.Sign(key); err != nil {
		t.Fatal(err)
	}
	if _, err := n.store.TakeEpoch(ctx, e); err != nil {
		t.Fatal(err)
	}
	for _, e := range old.entries {
		check(e, pubsub.ValidationIgnore)
	}
	log := newForger(t, key).grow(t, 1)
	check(log.entries[0], pubsub.ValidationAccept)
	for _, h := range []*wire.Head{log.head(t, 1), newForger(t, key).grow(t, 1).head(t, 1)} {
		if _, err := n.observe(h); err != nil {
			t.Fatal(err)
		}
	}
	await.Until(t, "it is an equivocator", func() bool { return n.store.Equivocators()[old.id] })
	check(log.entries[0], pubsub.ValidationIgnore)
}

// TestSlowPeers has peers that do not answer: others are asked all the same. When one is a
// bootstrap node, the own log is not shown before it has answered.
func TestSlowPeers(t *testing.T) {
	good, subject := fresh(t), newID(t)
	good.rate(t, subject, 1)
	var slow []*testNode
	for range 4 {
		s := fresh(t)
		for _, p := range []protocol.ID{wire.HeadsProtocol, wire.HeadProtocol} {
			s.node.Host.SetStreamHandler(p, func(stream network.Stream) {
				<-s.ctx.Done()
				_ = stream.Reset()
			})
		}
		slow = append(slow, s)
	}
	boot := slow[0]
	n := newNode(t, newKey(t), t.TempDir(), peer.AddrInfo{ID: boot.id(), Addrs: boot.node.Host.Addrs()})
	n.rate(t, subject, 0.5)
	for _, s := range slow {
		n.connect(t, s)
	}
	n.connect(t, good)
	n.awaitEntries(t, good, 1)
	if n.confirmed.Load() {
		t.Error("the own log is shown before the bootstrap node has answered")
	}
	boot.serve()
	boot.node.Host.Network().ClosePeer(n.id()) // so that the request under way fails
	await.Until(t, "the bootstrap node has answered", func() bool {
		n.connect(t, boot)
		n.kick(boot.id())
		return n.confirmed.Load()
	})
	good.awaitEntries(t, n, 1)
}
