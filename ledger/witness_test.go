// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// newWitness returns a node that is a witness.
func newWitness(t testing.TB) *testNode {
	return newNodeWith(t, newKey(t), t.TempDir(), Settings{Floor: -0.5, Witness: true})
}

// headShown returns the head that a node shows to another.
func (n *testNode) headShown(t testing.TB, of *testNode) *wire.Head {
	t.Helper()
	var head *wire.Head
	err := n.request(ctx, of.id(), wire.HeadProtocol, headWithin, nil, func(r io.Reader) (err error) {
		head, err = wire.ReadHead(r)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return head
}

// TestWitnesses wants a head to be shown once two of three witnesses have signed it, and their
// signatures in it; and the next one not, when only one witness is left.
func TestWitnesses(t *testing.T) {
	var witnesses []*testNode
	var ids []peer.ID
	for range 3 {
		w := newWitness(t)
		witnesses, ids = append(witnesses, w), append(ids, w.id())
	}
	author := newNodeWith(t, newKey(t), t.TempDir(), Settings{Floor: -0.5, Witnesses: ids, Quorum: 2})
	reader, subject := fresh(t), newID(t)
	reader.connect(t, author)
	author.connect(t, witnesses[0])
	e := author.rate(t, subject, 1)
	author.connect(t, witnesses[1])
	author.connect(t, witnesses[2])
	author.rate(t, subject, 0.5)
	await.Until(t, "the author is confirmed", func() bool { return author.confirmed.Load() })
	await.Until(t, "a head is shown", func() bool { h := reader.headShown(t, author); return h != nil && h.Size == 2 })
	head := reader.headShown(t, author)
	checked := head.Checked()
	if head.Verify() != nil || len(checked.Witnesses) < 2 || len(checked.Witnesses) != len(head.Witnesses) {
		t.Errorf("%+v", head.Witnesses)
	}
	for _, n := range []*testNode{author, reader} {
		reader.kicks <- author.id()
		await.Until(t, "the proof has the witnesses", func() bool {
			p, err := n.Prove(ctx, subject, e.Hash())
			return err == nil && len(p.Head.Witnesses) >= 2
		})
	}
	witnesses[0].close()
	witnesses[1].close()
	author.rate(t, subject, 0.2)
	reader.awaitEntries(t, author, 3) // the entry is not kept back
	await.Until(t, "the last witness has signed", func() bool {
		h, err := witnesses[2].store.Cosigned(author.id())
		return err == nil && h != nil && h.Size == 3
	})
	if h := reader.headShown(t, author); h == nil || h.Size != 2 {
		t.Errorf("a head that one witness has signed is shown: %+v", h)
	}
}

// TestWitnessIsDialled wants a node to find a witness to which it is not connected, when it
// knows where that is.
func TestWitnessIsDialled(t *testing.T) {
	w, other := newWitness(t), fresh(t)
	author := newNodeWith(t, newKey(t), t.TempDir(), Settings{Floor: -0.5, Witnesses: []peer.ID{w.id()}, Quorum: 1})
	author.node.Host.Peerstore().AddAddrs(w.id(), w.node.Host.Addrs(), time.Hour)
	author.connect(t, other)
	await.Until(t, "the author is confirmed", func() bool { return author.confirmed.Load() })
	author.rate(t, newID(t), 1)
	await.Until(t, "the witness has signed", func() bool { h, err := author.shown(); return err == nil && h != nil && h.WitnessedBy(w.id()) })
}

// TestWitnessRemembers takes a node back to an empty store, and has it ask a witness alone,
// which has nothing of its log but a head: the node does not sign.
func TestWitnessRemembers(t *testing.T) {
	w, key, subject := newWitness(t), newKey(t), newID(t)
	s := Settings{Floor: -0.5, Witnesses: []peer.ID{w.id()}, Quorum: 1}
	author := newNodeWith(t, key, t.TempDir(), s)
	author.connect(t, w)
	await.Until(t, "it is confirmed", func() bool { return author.confirmed.Load() })
	// Nobody gets the entry: it is not published, and the log is not shown.
	author.node.Host.RemoveStreamHandler(wire.LogProtocol)
	if err := author.store.Append(ctx, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: wire.Honesty}, nil, true); err != nil {
		t.Fatal(err)
	}
	author.cosigning.sign()
	await.Until(t, "the witness has signed", func() bool { h, err := author.shown(); return err == nil && h != nil })
	author.close()
	author = newNodeWith(t, key, t.TempDir(), s)
	author.connect(t, w)
	await.Until(t, "it knows that it lacks entries", func() bool { return errors.Is(author.store.MaySign(), store.ErrBehind) })
	if err := author.Append(ctx, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: wire.Honesty}, nil); !errors.Is(err, store.ErrBehind) {
		t.Errorf("signed: %v", err)
	}
}

// TestLyingWitness has witnesses that answer what is not so. None makes the author sign, stop
// signing, or show a head.
func TestLyingWitness(t *testing.T) {
	conflict := func(held *wire.Head) wire.Verdict { return wire.Verdict{Status: wire.Conflict, Held: held} }
	for name, lie := range map[string]func(l *testNode, author peer.ID, sub *wire.Submission) wire.Verdict{
		"a signature that is none": func(l *testNode, _ peer.ID, sub *wire.Submission) wire.Verdict {
			if sub.Head == nil {
				return conflict(nil)
			}
			return wire.Verdict{Status: wire.Signed, Witness: wire.Witness{Peer: l.id(), Signature: make([]byte, 64)}}
		},
		"the signature of another": func(_ *testNode, _ peer.ID, sub *wire.Submission) wire.Verdict {
			if sub.Head == nil {
				return conflict(nil)
			}
			w, _ := sub.Head.Cosign(newKey(t))
			return wire.Verdict{Status: wire.Signed, Witness: w}
		},
		"a head that the author has not signed": func(_ *testNode, author peer.ID, _ *wire.Submission) wire.Verdict {
			return conflict(&wire.Head{Peer: author, Size: 100, Root: wire.Hash{1}, Time: 1, Signature: make([]byte, 64)})
		},
		"the head of another": func(l *testNode, _ peer.ID, _ *wire.Submission) wire.Verdict {
			h := &wire.Head{Peer: l.id(), Size: 100, Time: 1}
			_ = h.Sign(l.node.Key)
			return conflict(h)
		},
		"always that there is none": func(*testNode, peer.ID, *wire.Submission) wire.Verdict { return conflict(nil) },
		"a signature of nothing": func(l *testNode, _ peer.ID, _ *wire.Submission) wire.Verdict {
			return wire.Verdict{Status: wire.Signed, Witness: wire.Witness{Peer: l.id(), Signature: make([]byte, 64)}}
		},
		"nothing": func(*testNode, peer.ID, *wire.Submission) wire.Verdict { return wire.Verdict{} },
	} {
		t.Run(name, func(t *testing.T) {
			liar, subject := fresh(t), newID(t)
			var lies atomic.Bool
			asked := make(chan struct{}, 100)
			liar.node.Host.SetStreamHandler(wire.WitnessProtocol, func(s network.Stream) {
				if sub, err := wire.ReadSubmission(s); err == nil && lies.Load() {
					_ = wire.WriteVerdict(s, lie(liar, s.Conn().RemotePeer(), sub))
					asked <- struct{}{}
				} else if err == nil {
					_ = wire.WriteVerdict(s, conflict(nil))
				}
				_ = s.Close()
			})
			t.Cleanup(func() { liar.node.Host.RemoveStreamHandler(wire.WitnessProtocol) })
			author := newNodeWith(t, newKey(t), t.TempDir(), Settings{Floor: -0.5, Witnesses: []peer.ID{liar.id()}, Quorum: 1})
			author.connect(t, liar)
			await.Until(t, "the author is confirmed", func() bool { return author.confirmed.Load() })
			lies.Store(true)
			author.rate(t, subject, 1)
			<-asked
			author.rate(t, subject, 1)
			await.Until(t, "it has not signed", func() bool { return author.cosigning.failure(liar.id()) != nil })
			if h, err := author.shown(); h != nil || err != nil || author.store.MaySign() != nil {
				t.Errorf("%+v, %v, %v", h, err, author.store.MaySign())
			}
		})
	}
}

// TestWitnessProtocol submits by streams, many at one time, and what is no submission.
func TestWitnessProtocol(t *testing.T) {
	w, author, subject := newWitness(t), fresh(t), newID(t)
	author.connect(t, w)
	await.Until(t, "the author is confirmed", func() bool { return author.confirmed.Load() })
	author.rate(t, subject, 1)
	head := author.store.Head()
	statuses := make(chan int)
	for range 20 {
		go func() {
			for { // there are four places for one peer
				if v, err := author.submit(w.id(), 0, head); err == nil {
					statuses <- v.Status
					return
				}
			}
		}()
	}
	got := make(map[int]int)
	for range 20 {
		got[<-statuses]++
	}
	if got[wire.Signed] != 1 || got[wire.Conflict] != 19 {
		t.Errorf("%v", got)
	}
	send := func(b []byte) (v wire.Verdict, err error) {
		c, cancel := context.WithTimeout(ctx, askWithin)
		defer cancel()
		err = author.exchange(c, w.id(), wire.WitnessProtocol,
			func(w io.Writer) error { _, err := w.Write(b); return err },
			func(r io.Reader) (err error) { v, err = wire.ReadVerdict(r); return err })
		return v, err
	}
	junk := append(make([]byte, 9), 0, 0, 0, 1, 'x')
	if v, err := send(junk); err != nil || v.Status != wire.Malformed {
		t.Errorf("junk: %d, %v", v.Status, err)
	}
	if v, err := send(junk[:5]); err == nil {
		t.Errorf("a part: %d", v.Status)
	}
}

// TestWitnessReload has a reload make a node a witness, and none again.
func TestWitnessReload(t *testing.T) {
	n := fresh(t)
	is := func() bool {
		for _, p := range n.node.Host.Mux().Protocols() {
			if p == wire.WitnessProtocol {
				return true
			}
		}
		return false
	}
	for i, want := range []bool{false, true, false} {
		n.parts.Join(&Part{s: Settings{Witness: want}})
		n.changed()
		if is() != want {
			t.Error(fmt.Sprint(i, ": ", is()))
		}
	}
}

// TestUnsignedForLong wants the operator to be told that witnesses do not sign when that is so for
// long, and not too often.
func TestUnsignedForLong(t *testing.T) {
	nobody := newID(t)
	a := newNodeWith(t, newKey(t), t.TempDir(), Settings{Floor: -0.5, Witnesses: []peer.ID{nobody}, Quorum: 1})
	var u unsigned
	began := time.Now()
	after := func(d time.Duration, want bool) {
		t.Helper()
		if got := u.long(a.Ledger, began.Add(d)); got != want {
			t.Errorf("after %s: %t", d, got)
		}
	}
	after(0, false)
	after(2*unsignedLong, false) // there is nothing to sign
	a.rate(t, nobody, 1)
	after(2*unsignedLong+time.Minute, false)
	after(3*unsignedLong, true)
	after(3*unsignedLong+time.Minute, false)
	after(4*unsignedLong, true)
	await.Until(t, "it is known why", func() bool { return a.cosigning.failure(nobody) != nil })
	a.tellUnsigned()
}

// TestOwnWitness refuses settings by which a node is its own witness.
func TestOwnWitness(t *testing.T) {
	self, other := newID(t), newID(t)
	if err := (Settings{Witnesses: []peer.ID{other, self}}).check(self); err == nil || !strings.Contains(err.Error(), "itself") {
		t.Error(err)
	}
	if err := (Settings{Witnesses: []peer.ID{other}}).check(self); err != nil {
		t.Error(err)
	}
}

// TestFullWitnessSaysSo has a witness refuse logs for which it has no place: it says so once an hour.
func TestFullWitnessSaysSo(t *testing.T) {
	w := newWitness(t)
	core, logs := observer.New(zap.WarnLevel)
	w.Ledger.node.Log = func() *zap.Logger { return zap.New(core) }
	for range 3 {
		w.countAnswer(newID(t), wire.UnknownLog)
	}
	w.countAnswer(w.id(), wire.UnknownLog)
	now := time.Now()
	if logs.Len() != 1 || w.cosigning.tellFull(now) || !w.cosigning.tellFull(now.Add(fullEvery)) {
		t.Errorf("%d lines", logs.Len())
	}
	if err := refusal(wire.UnknownLog); !errors.Is(err, errWitness) || !strings.Contains(err.Error(), "no entries") {
		t.Error(err)
	}
}
