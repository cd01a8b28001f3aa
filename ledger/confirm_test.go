// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// TestWitnessIsAskedFirst takes a node back to a store of so many entries of the two that its
// witness has signed, where it signs some that nobody sees. A stranger comes first. The node asks
// its witness all the same, which never sees a head that contradicts another, and the entries give
// way to those that were published.
func TestWitnessIsAskedFirst(t *testing.T) {
	for _, c := range []struct {
		name          string
		kept, private int
	}{
		{"nothing is left", 0, 1},
		{"as large as before", 1, 1},
		{"larger", 1, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, key, subject := newWitness(t), newKey(t), newID(t)
			s := Settings{Floor: -0.5, Witnesses: []peer.ID{w.id()}, Quorum: 1}
			dir, old := t.TempDir(), t.TempDir()
			for size := range 2 {
				if size == c.kept {
					old = t.TempDir()
					if err := os.CopyFS(old, os.DirFS(dir)); err != nil {
						t.Fatal(err)
					}
				}
				a := newNodeWith(t, key, dir, s)
				a.connect(t, w)
				await.Until(t, "it is confirmed", func() bool { return a.confirmed.Load() })
				a.rate(t, subject, 1)
				await.Until(t, "the witness has signed", func() bool { h, err := a.shown(); return err == nil && h != nil && h.Size == uint64(size)+1 })
				w.awaitEntries(t, a, uint64(size)+1)
				a.close()
			}
			a, stranger := newNodeWith(t, key, old, s), fresh(t)
			for range c.private {
				a.rate(t, subject, 0.1)
			}
			a.connect(t, stranger)
			await.Until(t, "the stranger was asked", func() bool {
				a.answered.Lock()
				defer a.answered.Unlock()
				return a.answered.any
			})
			if a.confirmed.Load() {
				t.Error("confirmed by a stranger alone")
			}
			a.connect(t, w)
			all := uint64(2 + c.private)
			await.Until(t, "the witness has signed what came back, and all that is new", func() bool {
				h, err := a.shown()
				return err == nil && h != nil && h.Size == all
			})
			if err := a.store.MaySign(); err != nil || w.store.Equivocators()[a.id()] {
				t.Errorf("%v, an equivocator: %t", err, w.store.Equivocators()[a.id()])
			}
			w.awaitEntries(t, a, all)
		})
	}
}

// TestForkIsNotSubmitted has a node with a store in which other entries are published than its
// witness has signed. It signs no more, and the witness does not hear of it.
func TestForkIsNotSubmitted(t *testing.T) {
	w, key, subject := newWitness(t), newKey(t), newID(t)
	s := Settings{Floor: -0.5, Witnesses: []peer.ID{w.id()}, Quorum: 1}
	for i := range 2 {
		a := newNodeWith(t, key, t.TempDir(), s)
		if err := a.store.Append(ctx, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: wire.Honesty, Score: float64(i)}, nil, true); err != nil {
			t.Fatal(err)
		}
		a.connect(t, w)
		if i == 0 {
			await.Until(t, "the witness has signed", func() bool { h, err := a.shown(); return err == nil && h != nil })
			a.close()
			continue
		}
		await.Until(t, "it knows of the fork", func() bool { return errors.Is(a.store.MaySign(), store.ErrForked) })
		if err := a.cosign(); err != nil || a.confirmed.Load() || w.store.Equivocators()[a.id()] {
			t.Errorf("%v, confirmed: %t, an equivocator: %t", err, a.confirmed.Load(), w.store.Equivocators()[a.id()])
		}
	}
}

// TestHungWitness wants one witness that does not answer to keep no head waiting that the others
// have signed, nor the next one.
func TestHungWitness(t *testing.T) {
	one, two, hung := newWitness(t), newWitness(t), fresh(t)
	var hangs sync.WaitGroup
	hung.node.Host.SetStreamHandler(wire.WitnessProtocol, func(s network.Stream) {
		hangs.Add(1)
		defer hangs.Done()
		if sub, err := wire.ReadSubmission(s); err == nil && sub.Head == nil {
			_ = wire.WriteVerdict(s, wire.Verdict{Status: wire.Conflict})
			_ = s.Close()
			return
		}
		_, _ = io.Copy(io.Discard, s)
		<-hung.ctx.Done()
		_ = s.Reset()
	})
	t.Cleanup(func() { hung.close(); hangs.Wait() })
	a := newNodeWith(t, newKey(t), t.TempDir(), Settings{Floor: -0.5, Witnesses: []peer.ID{hung.id(), one.id(), two.id()}, Quorum: 2})
	for _, n := range []*testNode{one, two, hung} {
		a.connect(t, n)
	}
	await.Until(t, "it is confirmed", func() bool { return a.confirmed.Load() })
	began := time.Now()
	for size := range uint64(3) {
		a.rate(t, newID(t), 1)
		await.Until(t, "two have signed", func() bool { h, err := a.shown(); return err == nil && h != nil && h.Size == size+1 })
	}
	if took := time.Since(began); took >= witnessWithin {
		t.Errorf("three heads were signed after %s, when the hung witness was given up", took)
	}
}

// TestBurstIsOneHead appends much at once, and wants the witness to be asked seldom.
func TestBurstIsOneHead(t *testing.T) {
	w := newWitness(t)
	a := newNodeWith(t, newKey(t), t.TempDir(), Settings{Floor: -0.5, Witnesses: []peer.ID{w.id()}, Quorum: 1})
	a.connect(t, w)
	await.Until(t, "it is confirmed", func() bool { return a.confirmed.Load() })
	var mu sync.Mutex
	asked := 0
	w.node.Host.SetStreamHandler(wire.WitnessProtocol, func(s network.Stream) {
		mu.Lock()
		asked++
		mu.Unlock()
		l := w.Ledger
		l.answer(s, &l.cosigning.served, func(r io.Reader) (reply, error) { return l.serveWitness(s.Conn().RemotePeer(), r) })
	})
	began := time.Now()
	for range 200 {
		a.rate(t, newID(t), 1)
	}
	await.Until(t, "all is signed", func() bool { h, err := a.shown(); return err == nil && h != nil && h.Size == 200 })
	most := 2 * (2 + int(time.Since(began)/cosignPause))
	mu.Lock()
	defer mu.Unlock()
	if asked > most {
		t.Errorf("the witness was asked %d times, want %d at most", asked, most)
	}
}

// TestFormerWitnesses changes the witnesses until more have signed one head than a head may have.
func TestFormerWitnesses(t *testing.T) {
	w := newWitness(t)
	a := newNodeWith(t, newKey(t), t.TempDir(), Settings{Floor: -0.5, Witnesses: []peer.ID{w.id()}, Quorum: 1})
	a.rate(t, newID(t), 1)
	h := a.store.Head().Bare()
	for range 32 {
		s, err := h.Cosign(newKey(t))
		if err != nil {
			t.Fatal(err)
		}
		h.Witnesses = append(h.Witnesses, s)
	}
	if err := a.store.SetCosigned(ctx, h); err != nil {
		t.Fatal(err)
	}
	a.connect(t, w)
	await.Until(t, "the witness of now has signed", func() bool {
		h, err := a.shown()
		if err != nil {
			t.Fatal(err)
		}
		return h != nil && len(h.Witnesses) == 1 && h.WitnessedBy(w.id())
	})
	more := *h
	more.Witnesses = append(more.Witnesses, more.Witnesses[0])
	if err := a.store.SetCosigned(ctx, &more); !errors.Is(err, wire.ErrBad) {
		t.Errorf("kept with %d signatures: %v", len(more.Witnesses), err)
	}
}

// TestAppendMeetsConfirm appends while the log is confirmed: then all of it is shown.
func TestAppendMeetsConfirm(t *testing.T) {
	for range 20 {
		a := fresh(t)
		var writers sync.WaitGroup
		for range 8 {
			writers.Go(func() { a.rate(t, newID(t), 1) })
		}
		a.asked(newID(t))
		writers.Wait()
		items, err := a.store.Log(ctx, wire.Range{From: 1, Count: 10})
		if err != nil || len(items) != 8 || !a.confirmed.Load() {
			t.Fatalf("%d of 8 entries are shown, %v", len(items), err)
		}
		a.close()
	}
}

// TestProofIsNotPrivate wants no head in a proof that others may not see: before those were asked
// that the node knows, and before enough witnesses have signed it.
func TestProofIsNotPrivate(t *testing.T) {
	w, b := newWitness(t), fresh(t)
	away := peer.AddrInfo{ID: b.id(), Addrs: b.node.Host.Addrs()}
	for name, a := range map[string]*testNode{
		"a bootstrap node": newNode(t, newKey(t), t.TempDir(), away),
		"a witness":        newNodeWith(t, newKey(t), t.TempDir(), Settings{Floor: -0.5, Witnesses: []peer.ID{w.id()}, Quorum: 1}),
	} {
		subject := newID(t)
		e := a.rate(t, subject, 1)
		if _, err := a.Prove(ctx, subject, e.Hash()); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s was not asked: %v", name, err)
		}
		a.connect(t, b)
		a.connect(t, w)
		await.Until(t, "there is a proof", func() bool { _, err := a.Prove(ctx, subject, e.Hash()); return err == nil })
	}
	a := fresh(t)
	e := a.rate(t, w.id(), 1)
	if _, err := a.Prove(ctx, w.id(), e.Hash()); err != nil {
		t.Errorf("alone: %v", err)
	}
}
