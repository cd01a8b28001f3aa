// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// epoch returns an epoch of an author, which begins now.
func (a *author) epoch(t testing.TB, size uint64, ago time.Duration) *wire.Epoch {
	t.Helper()
	e := &wire.Epoch{Peer: a.id, Size: size, Time: time.Now().Add(-ago).UnixNano()}
	if err := e.Sign(a.key); err != nil {
		t.Fatal(err)
	}
	return e
}

// declared wants an epoch to be taken in, or not.
func (s *Store) declared(t testing.TB, e *wire.Epoch, news bool, want error) {
	t.Helper()
	if got, err := s.Declared(ctx, e); got != news || !errors.Is(err, want) {
		t.Fatalf("news: %t, %v", got, err)
	}
}

// vote returns how many raters' votes count for a peer, and their sum.
func (s *Store) vote(t testing.TB, subject peer.ID) (n int, sum float64) {
	t.Helper()
	err := s.Votes(ctx, func(v Vote) {
		if v.Subject == subject {
			n, sum = n+1, sum+v.Mean
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return n, sum
}

// TestEpoch has an author that forked declare an epoch: what is void goes, with what it counts,
// and what is signed later is taken in; also when the store is opened again.
func TestEpoch(t *testing.T) {
	dir, me, a, w := t.TempDir(), newAuthor(t), newAuthor(t), newAuthor(t)
	s := open(t, dir, me.key)
	first := a.rate(t, w.id, 1)
	void := []*wire.Entry{a.rate(t, w.id, -1), a.rate(t, me.id, -1)}
	late := a.rate(t, w.id, -1) // of the void log, and not here yet
	s.accept(t, Stored, nil, append([]*wire.Entry{first}, void...)...)
	accuse := func(one, other *wire.Head) (bool, error) {
		alert := &wire.Alert{Peer: a.id, A: one, B: other, Witness: w.id, Time: time.Now().UnixNano()}
		if err := alert.Sign(w.key); err != nil {
			t.Fatal(err)
		}
		return s.Equivocation(ctx, alert)
	}
	old, other := a.head(t, 3, wire.Hash{1}), a.head(t, 3, wire.Hash{2})
	if news, err := accuse(old, other); !news || err != nil {
		t.Fatal(news, err)
	}
	forged := a.epoch(t, 1, 0)
	forged.Size = 0
	s.declared(t, forged, false, wire.ErrSignature)
	s.declared(t, a.epoch(t, 1, -time.Hour), false, ErrFuture)
	e := a.epoch(t, 1, 0)
	s.declared(t, e, true, nil)
	s.declared(t, e, false, nil)
	check := func() {
		t.Helper()
		if s.Equivocators()[a.id] || s.Epochs()[a.id] == nil || !s.Voided(old) {
			t.Error("it is an equivocator still")
		}
		if size, err := s.Size(ctx, a.id); size != 1 || err != nil {
			t.Errorf("%d entries stay, %v", size, err)
		}
		if n, sum := s.vote(t, w.id); n != 1 || sum < 0.999 {
			t.Errorf("%d votes, %g", n, sum)
		}
		if n, _ := s.vote(t, me.id); n != 0 {
			t.Errorf("a void vote counts")
		}
		s.accept(t, Refused, ErrFork, void[0])
		s.accept(t, Parked, nil, late)
		if news, err := accuse(old, other); news || err != nil {
			t.Errorf("what is void is evidence again: %v", err)
		}
		if alert, ahead, err := s.Observe(ctx, old); alert != nil || ahead || err != nil {
			t.Errorf("what is void is a head: %v, %t, %v", alert, ahead, err)
		}
	}
	check()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, me.key)
	check()

	a.prev = first.Hash()
	s.accept(t, Stored, nil, a.rate(t, w.id, 0.5))
	if news, err := accuse(a.head(t, 3, wire.Hash{3}), old); news || err != nil {
		t.Errorf("a head of the epoch and one that is void are evidence: %v", err)
	}
	if news, err := accuse(a.head(t, 3, wire.Hash{3}), a.head(t, 3, wire.Hash{4})); !news || err != nil {
		t.Errorf("two heads of the epoch are no evidence: %v", err)
	}
	s.declared(t, a.epoch(t, 1, 0), true, nil)
	if !s.Equivocators()[a.id] {
		t.Error("a second epoch is forgiven")
	}
}

// TestSecondEpoch has an owner declare two epochs, in any order, before or after it forked: it is an
// equivocator for good.
func TestSecondEpoch(t *testing.T) {
	dir, me, a := t.TempDir(), newAuthor(t), newAuthor(t)
	s := open(t, dir, me.key)
	one, two := a.epoch(t, 0, time.Hour), a.epoch(t, 0, 0)
	s.declared(t, two, true, nil)
	s.declared(t, one, true, nil)
	s.declared(t, two, false, nil)
	s.declared(t, a.epoch(t, 3, time.Minute), false, nil) // there are proofs enough
	for range 2 {
		if !s.Equivocators()[a.id] || s.Epochs()[a.id] != nil {
			t.Error("it is none")
		}
		s.accept(t, Refused, ErrEquivocator, a.rate(t, me.id, 1))
		if items, err := s.EpochPage(ctx, wire.Range{Count: 10}); err != nil || len(items) != 2 {
			t.Errorf("%d items, %v", len(items), err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, me.key)
	}
}

// TestRecover has a store that forked begin its epoch: what it keeps are the entries that both logs
// have, and its own others stand behind them anew. It can do so once.
func TestRecover(t *testing.T) {
	dir, me, subject := t.TempDir(), newAuthor(t), newAuthor(t).id
	s := open(t, dir, me.key)
	if _, err := s.Recover(ctx); !errors.Is(err, ErrNotForked) {
		t.Fatal(err)
	}
	both := s.mustAppend(t, subject, 1, true)
	me.prev = both.Hash()
	theirs := []*wire.Entry{me.rate(t, subject, -1), me.rate(t, subject, -1)} // of the lost part
	rating := s.mustAppend(t, subject, 0.5, true)
	hash := rating.Hash()
	comment := &wire.Entry{Kind: wire.Comment, Subject: subject, TextCID: wire.CID([]byte("good")), AttachedRating: hash[:]}
	if err := s.Append(ctx, comment, []byte("good"), true); err != nil {
		t.Fatal(err)
	}
	old := s.Head()
	s.accept(t, Refused, nil, theirs[0])
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, me.key)
	if err := s.MaySign(); !errors.Is(err, ErrForked) {
		t.Errorf("that it forked is forgotten: %v", err)
	}
	e, err := s.Recover(ctx)
	if err != nil || e.Size != 1 || e.Verify() != nil || s.MaySign() != nil {
		t.Fatal(e, err)
	}
	for range 2 {
		if h := s.Head(); h.Size != 3 || h.Root == old.Root || h.Time <= e.Time || s.Voided(h) || !s.Voided(old) {
			t.Errorf("the head is %v", h)
		}
		if err := s.Claim(ctx, old); err != nil || s.MaySign() != nil {
			t.Errorf("a head that is void counts: %v, %v", err, s.MaySign())
		}
		s.accept(t, Refused, ErrFork, theirs[0])
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, me.key)
	}
	fresh, err := s.Publish(ctx)
	if err != nil || len(fresh) != 2 {
		t.Fatal(fresh, err)
	}
	if h := fresh[0].Hash(); string(fresh[1].AttachedRating) != string(h[:]) || fresh[0].Score != 0.5 || h == hash {
		t.Errorf("the comment has lost its rating")
	}
	if _, err := s.Recover(ctx); !errors.Is(err, ErrNotForked) {
		t.Error(err)
	}
	me.prev = both.Hash()
	s.accept(t, Refused, nil, me.say(t, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: wire.Honesty, Time: time.Now().Add(time.Minute).UnixNano()}))
	if _, err := s.Recover(ctx); !errors.Is(err, ErrSecondEpoch) {
		t.Errorf("a second fork is forgiven: %v", err)
	}
}

// TestRecoverUnknownPlace has a store know only by a head that it forked: nothing stays as it was.
// One whose log was forked in a part that is not known either knows no more.
func TestRecoverUnknownPlace(t *testing.T) {
	for name, entry := range map[string]bool{"a head": false, "an entry of a later fork, and a head": true} {
		t.Run(name, func(t *testing.T) {
			me, subject := newAuthor(t), newAuthor(t).id
			s := open(t, t.TempDir(), me.key)
			for range 4 {
				me.prev = s.mustAppend(t, subject, 1, true).Hash()
			}
			s.mustAppend(t, subject, 1, true)
			if entry {
				s.accept(t, Refused, nil, me.rate(t, subject, 0))
			}
			other := me.head(t, 2, wire.Hash{1})
			other.Time += int64(time.Minute) // by another clock
			if err := other.Sign(me.key); err != nil {
				t.Fatal(err)
			}
			if err := s.Claim(ctx, other); err != nil {
				t.Fatal(err)
			}
			e, err := s.Recover(ctx)
			if err != nil || e.Size != 0 || s.Head().Size != 5 || !s.Voided(other) || s.Voided(s.Head()) {
				t.Errorf("%v, %v", e, err)
			}
		})
	}
}

// TestLearnedEpoch has a store that is older than its epoch learn of that: what it has published and
// is void goes, what nobody has seen stands behind the rest.
func TestLearnedEpoch(t *testing.T) {
	me, subject := newAuthor(t), newAuthor(t).id
	s := open(t, t.TempDir(), me.key)
	for range 3 {
		s.mustAppend(t, subject, 1, true)
	}
	s.mustAppend(t, subject, -1, false)
	s.declared(t, me.epoch(t, 2, 0), true, nil)
	fresh, err := s.Publish(ctx)
	if err != nil || len(fresh) != 1 || fresh[0].Score != -1 || s.Head().Size != 3 {
		t.Errorf("%v, %v", fresh, err)
	}
	s.declared(t, me.epoch(t, 1, 0), true, nil)
	if err := s.MaySign(); !errors.Is(err, ErrForked) {
		t.Errorf("it has two epochs, and may sign: %v", err)
	}
	if _, err := s.Recover(ctx); !errors.Is(err, ErrSecondEpoch) {
		t.Error(err)
	}
}

// TestEpochAtWitness has a witness sign the head of an epoch though it has signed a larger one that
// is void, and never what is void.
func TestEpochAtWitness(t *testing.T) {
	s, a := newStore(t), newAuthor(t)
	submit := func(old uint64, h *wire.Head) int {
		v, _, err := s.Cosign(ctx, &wire.Submission{Old: old, Head: h})
		if err != nil {
			t.Fatal(err)
		}
		return v.Status
	}
	if got := submit(0, a.head(t, 9, wire.Hash{9})); got != wire.Signed {
		t.Fatal(got)
	}
	before := a.head(t, 12, wire.Hash{12})
	s.declared(t, a.epoch(t, 2, 0), true, nil)
	if held, err := s.Cosigned(a.id); held != nil || err != nil {
		t.Errorf("it holds a head that is void: %v, %v", held, err)
	}
	if got := submit(0, before); got != wire.Forbidden {
		t.Errorf("what is void: %d", got)
	}
	if got := submit(0, a.head(t, 4, wire.Hash{4})); got != wire.Signed {
		t.Errorf("the head of the epoch: %d", got)
	}
	if got := submit(0, a.head(t, 5, wire.Hash{5})); got != wire.Conflict {
		t.Errorf("another beginning: %d", got)
	}
	if held, err := s.Cosigned(a.id); err != nil || held == nil || held.Size != 4 {
		t.Errorf("it holds %v, %v", held, err)
	}
}

// TestEpochsAreBounded has strangers declare epochs: some are taken in, then those who have a log
// here, and who was sent tasks always.
func TestEpochsAreBounded(t *testing.T) {
	s, logged, worker := newStore(t), newAuthor(t), newAuthor(t)
	s.accept(t, Stored, nil, logged.rate(t, worker.id, 1))
	if err := s.Note(ctx, map[peer.ID]Tally{worker.id: {Good: 1}}); err != nil {
		t.Fatal(err)
	}
	all := make(map[peer.ID]*wire.Epoch)
	for i := range maxUnknown {
		all[peer.ID(string(rune(i)))] = &wire.Epoch{}
	}
	s.epochs.Store(&all)
	s.declared(t, newAuthor(t).epoch(t, 0, 0), false, ErrQuota)
	s.declared(t, logged.epoch(t, 0, 0), true, nil)
	s.declared(t, worker.epoch(t, 0, 0), true, nil)
}

// TestEpochComesLate has the entries of an epoch come before it: they stay. Those who declare two
// are counted, too.
func TestEpochComesLate(t *testing.T) {
	s, a, w := newStore(t), newAuthor(t), newAuthor(t)
	e := a.epoch(t, 1, time.Minute)
	first := a.say(t, &wire.Entry{Kind: wire.Rating, Subject: w.id, Dimension: wire.Honesty, Score: 1, Time: e.Time - int64(time.Minute)})
	s.accept(t, Stored, nil, first, a.rate(t, w.id, 1), a.rate(t, w.id, 1))
	s.declared(t, e, true, nil)
	if size, err := s.Size(ctx, a.id); size != 3 || err != nil {
		t.Errorf("%d entries, %v", size, err)
	}
	back := a.say(t, &wire.Entry{Kind: wire.Rating, Subject: w.id, Dimension: wire.Honesty, Score: 1, Time: e.Time})
	s.accept(t, Refused, ErrFork, back)

	liars := make(map[peer.ID]bool)
	for i := range maxUnknown {
		liars[peer.ID(string(rune(i)))] = true
	}
	s.equivocators.Store(&liars)
	s.declared(t, newAuthor(t).epoch(t, 0, 0), false, ErrQuota)
}
