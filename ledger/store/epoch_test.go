// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// epoch returns an epoch of an author, up to some time ago.
func (a *author) epoch(t testing.TB, ago time.Duration) *wire.Epoch {
	t.Helper()
	e := &wire.Epoch{Peer: a.id, Time: time.Now().Add(-ago).UnixNano()}
	if err := e.Sign(a.key); err != nil {
		t.Fatal(err)
	}
	return e
}

// headAt returns a head of a time.
func (a *author) headAt(t testing.TB, size uint64, root wire.Hash, at int64) *wire.Head {
	t.Helper()
	h := &wire.Head{Peer: a.id, Size: size, Root: root, Time: at}
	if err := h.Sign(a.key); err != nil {
		t.Fatal(err)
	}
	return h
}

// anew has an author begin a new log.
func (a *author) anew() *author { return &author{key: a.key, id: a.id} }

// took wants an epoch to be taken in, or not.
func (s *Store) took(t testing.TB, e *wire.Epoch, news bool, want error) {
	t.Helper()
	if got, err := s.TakeEpoch(ctx, e); got != news || !errors.Is(err, want) {
		t.Fatalf("news: %t, %v", got, err)
	}
}

// accuse has the store take in two heads as evidence.
func (s *Store) accuse(t testing.TB, one, other *wire.Head) bool {
	t.Helper()
	news, err := s.signed(t, &wire.Alert{Peer: one.Peer, A: one, B: other})
	if err != nil {
		t.Fatal(err)
	}
	return news
}

// again opens the store again.
func (s *Store) again(t testing.TB, dir string, key crypto.PrivKey) *Store {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return open(t, dir, key)
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
	void := []*wire.Entry{a.rate(t, w.id, -1), a.rate(t, me.id, -1)}
	late := a.rate(t, w.id, -1) // of the void log, and not here yet
	s.accept(t, Stored, nil, void...)
	old, other := a.head(t, 3, wire.Hash{1}), a.head(t, 3, wire.Hash{2})
	if !s.accuse(t, old, other) {
		t.Fatal("no evidence")
	}
	forged := a.epoch(t, 0)
	forged.Time--
	s.took(t, forged, false, wire.ErrSignature)
	early := a.epoch(t, -time.Hour)
	s.took(t, early, false, ErrFuture)
	if err := s.MayDeclare(ctx, early); !errors.Is(err, ErrFuture) {
		t.Errorf("an epoch of the future is relayed: %v", err)
	}
	e := a.epoch(t, 0)
	s.took(t, e, true, nil)
	s.took(t, e, false, nil)
	check := func() {
		t.Helper()
		if have, ok := s.Epochs()[a.id]; s.Equivocators()[a.id] || !ok || have.Twice || !s.Voided(old) {
			t.Error("it is an equivocator still")
		}
		if size, err := s.Size(ctx, a.id); size != 0 || err != nil {
			t.Errorf("%d entries stay, %v", size, err)
		}
		for _, subject := range []peer.ID{w.id, me.id} {
			if n, _ := s.vote(t, subject); n != 0 {
				t.Errorf("a void vote counts")
			}
		}
		s.accept(t, Refused, ErrFork, append(void, late)...)
		if s.accuse(t, old, other) {
			t.Error("what is void is evidence again")
		}
		if alert, ahead, err := s.Observe(ctx, old); alert != nil || ahead || err != nil {
			t.Errorf("what is void is a head: %v, %t, %v", alert, ahead, err)
		}
	}
	check()
	s = s.again(t, dir, me.key)
	check()

	s.accept(t, Stored, nil, a.anew().rate(t, w.id, 0.5))
	if n, sum := s.vote(t, w.id); n != 1 || sum != 0.5 {
		t.Errorf("%d votes, %g", n, sum)
	}
	if s.accuse(t, a.head(t, 3, wire.Hash{3}), old) {
		t.Error("a head of the epoch and one that is void are evidence")
	}
	if !s.accuse(t, a.head(t, 3, wire.Hash{3}), a.head(t, 3, wire.Hash{4})) {
		t.Error("two heads of the epoch are no evidence")
	}
}

// TestSecondEpoch has an owner declare two epochs, in any order, before or after it forked: it is an
// equivocator for good, and a third is no news.
func TestSecondEpoch(t *testing.T) {
	dir, me, a := t.TempDir(), newAuthor(t), newAuthor(t)
	s := open(t, dir, me.key)
	one, two := a.epoch(t, time.Hour), a.epoch(t, 0)
	s.took(t, two, true, nil)
	s.took(t, one, true, nil)
	s.took(t, two, false, nil)
	s.took(t, a.epoch(t, time.Minute), false, nil)
	for range 2 {
		if !s.Equivocators()[a.id] || !s.Epochs()[a.id].Twice {
			t.Error("it is none")
		}
		s.accept(t, Refused, ErrEquivocator, a.rate(t, me.id, 1))
		if items, err := s.EpochPage(ctx, wire.Range{Count: 10}); err != nil || len(items) != 2 {
			t.Errorf("%d items, %v", len(items), err)
		}
		s = s.again(t, dir, me.key)
	}
}

// TestEpochOfLongAgo has an owner date all that it signs long ago. What is void is forgotten, but when
// the epoch came is that of the store.
func TestEpochOfLongAgo(t *testing.T) {
	dir, me, a := t.TempDir(), newAuthor(t), newAuthor(t)
	s := open(t, dir, me.key)
	if !s.accuse(t, a.headAt(t, 3, wire.Hash{1}, 1), a.headAt(t, 3, wire.Hash{2}, 1)) {
		t.Fatal("no evidence")
	}
	s.took(t, a.epoch(t, 400*24*time.Hour), true, nil)
	for range 2 {
		if e := s.Epochs()[a.id]; s.Equivocators()[a.id] || time.Since(e.Received) > time.Hour {
			t.Errorf("it came at %s", e.Received)
		}
		s = s.again(t, dir, me.key)
	}
}

// TestNobodyKeepsABeginning has two stores with two logs of one owner that nobody has seen both of.
// After the epoch there is one log.
func TestNobodyKeepsABeginning(t *testing.T) {
	subject, one := newAuthor(t).id, newAuthor(t)
	other := one.anew()
	x, y := newStore(t), newStore(t)
	x.accept(t, Stored, nil, one.rate(t, subject, 1), one.rate(t, subject, 1))
	y.accept(t, Stored, nil, other.rate(t, subject, -1), other.rate(t, subject, -1))
	e, log := one.epoch(t, 0), one.anew()
	entries := []*wire.Entry{log.rate(t, subject, 0.5), log.rate(t, subject, 0.5)}
	for _, s := range []*Store{x, y} {
		s.took(t, e, true, nil)
		s.accept(t, Stored, nil, entries...)
		if n, sum := s.vote(t, subject); n != 1 || sum != 0.5 {
			t.Errorf("%d votes, %g", n, sum)
		}
	}
}

// TestNewLogBeforeEpoch has entries and a head come that were signed after an epoch, before it does:
// they stay. Behind what is void nothing stays.
func TestNewLogBeforeEpoch(t *testing.T) {
	s, a, subject := newStore(t), newAuthor(t), newAuthor(t).id
	e := a.epoch(t, time.Minute)
	s.accept(t, Stored, nil, a.rate(t, subject, 1), a.rate(t, subject, 1))
	var row int64
	if err := s.ro.QueryRow("SELECT id FROM peer WHERE bytes = ?", []byte(a.id)).Scan(&row); err != nil {
		t.Fatal(err)
	}
	root, err := nodes(s.ro, row).Root(2)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []*wire.Head{a.head(t, 2, root), a.head(t, 5, wire.Hash{5})} {
		if _, _, err := s.Observe(ctx, h); err != nil {
			t.Fatal(err)
		}
	}
	s.took(t, e, true, nil)
	if size, err := s.Size(ctx, a.id); size != 2 || err != nil {
		t.Errorf("%d entries stay, %v", size, err)
	}
	if items, err := s.Heads(ctx, wire.Range{Count: 10}); err != nil || len(items) != 2 {
		t.Errorf("%d heads stay, %v", len(items), err)
	}

	b := newAuthor(t)
	old := b.say(t, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: wire.Honesty, Time: time.Now().Add(-time.Hour).UnixNano()})
	s.accept(t, Stored, nil, old, b.rate(t, subject, 1))
	if _, _, err := s.Observe(ctx, b.headAt(t, 7, wire.Hash{7}, old.Time)); err != nil {
		t.Fatal(err)
	}
	s.took(t, b.epoch(t, time.Minute), true, nil)
	if size, err := s.Size(ctx, b.id); size != 0 || err != nil {
		t.Errorf("behind what is void, %d entries stay, %v", size, err)
	}
	if items, err := s.Heads(ctx, wire.Range{Count: 10}); err != nil || len(items) != 2 {
		t.Errorf("a void head stays: %d, %v", len(items), err)
	}
}

// TestReadAnew wants inboxes to be read again in which there may be what was refused because its
// author was an equivocator; not too often, for anybody can cause it, and when the store is opened.
func TestReadAnew(t *testing.T) {
	dir, me, from := t.TempDir(), newAuthor(t), newAuthor(t).id
	s := open(t, dir, me.key)
	now := time.Now()
	s.now = func() time.Time { return now }
	forgive := func() {
		t.Helper()
		a := newAuthor(t)
		if err := s.SetCursor(ctx, from, Cursor{}, Cursor{Row: 7}); err != nil {
			t.Fatal(err)
		}
		if !s.accuse(t, a.head(t, 3, wire.Hash{1}), a.head(t, 3, wire.Hash{2})) {
			t.Fatal("no evidence")
		}
		s.took(t, a.epoch(t, 0), true, nil)
	}
	swept := func(want uint64) {
		t.Helper()
		if err := s.Sweep(ctx); err != nil {
			t.Fatal(err)
		}
		if c, err := s.Cursor(ctx, from); err != nil || c.Row != want {
			t.Errorf("row %d, %v", c.Row, err)
		}
	}
	s.took(t, newAuthor(t).epoch(t, 0), true, nil) // of whom nothing was refused
	if err := s.SetCursor(ctx, from, Cursor{}, Cursor{Row: 7}); err != nil {
		t.Fatal(err)
	}
	swept(7)
	forgive()
	swept(0)
	forgive()
	swept(7)
	now = now.Add(anewEvery)
	swept(0)
	forgive()
	s = s.again(t, dir, me.key)
	swept(0)
}

// TestEpochGivesQuotaBack has an owner whose quota is used up begin a new log: it is as large as the
// old one was, and the author as old.
func TestEpochGivesQuotaBack(t *testing.T) {
	s, a, subject := newStore(t), newAuthor(t), newAuthor(t).id
	now := time.Now().Add(-30 * 24 * time.Hour)
	s.now = func() time.Time { return now }
	say := func(a *author, text string) *wire.Entry {
		e := a.say(t, &wire.Entry{Kind: wire.Comment, Subject: subject, TextCID: wire.CID([]byte(text)), Time: now.UnixNano()})
		s.accept(t, Stored, nil, e)
		return e
	}
	one := say(a, "one")
	if err := s.PutComment(ctx, one.TextCID, []byte("one")); err != nil {
		t.Fatal(err)
	}
	now = time.Now()
	say(a, "two")
	numbers := func() (stored, all, since int64) {
		t.Helper()
		err := s.ro.QueryRow("SELECT stored, (SELECT value FROM number WHERE name = 'stored'), since FROM peer WHERE bytes = ?", []byte(a.id)).Scan(&stored, &all, &since)
		if err != nil {
			t.Fatal(err)
		}
		return stored, all, since
	}
	full, all, since := numbers()
	if full == 0 || full != all {
		t.Fatal(full, all)
	}
	s.took(t, a.epoch(t, 0), true, nil)
	if stored, all, _ := numbers(); stored != 0 || all != 0 {
		t.Errorf("%d bytes are counted, of all %d", stored, all)
	}
	if _, err := s.Comment(ctx, one.TextCID); !errors.Is(err, ErrNotFound) {
		t.Errorf("the text is there still: %v", err)
	}
	if wanted, err := s.Wanted(ctx, 10); err != nil || len(wanted) != 0 {
		t.Errorf("wanted: %v, %v", wanted, err)
	}
	b := a.anew()
	now = time.Now()
	say(b, "one")
	say(b, "two")
	if stored, all, again := numbers(); stored != full || all != full || again != since {
		t.Errorf("%d bytes, of all %d, since %d; want %d, since %d", stored, all, again, full, since)
	}
}

// TestEpochAtWitness has a witness sign the log of an epoch from its beginning, though it has signed a
// larger head that is void, never what is void, and of the new log never a smaller head again.
func TestEpochAtWitness(t *testing.T) {
	s, old := newStore(t), newGrowing(t, newAuthor(t).key).grow(t, 50)
	a := &author{key: old.key, id: old.id}
	submit := func(g *growing, from, size uint64, want int) {
		t.Helper()
		v, _, err := s.Cosign(ctx, g.submit(t, from, size))
		if err != nil || v.Status != want {
			t.Errorf("from %d to %d: %d, %v; want %d", from, size, v.Status, err, want)
		}
	}
	submit(old, 0, 50, wire.Signed)
	log := newGrowing(t, old.key)
	log.seed = 1
	log.grow(t, 60)
	submit(log, 0, 20, wire.Conflict)
	before := &wire.Submission{Old: 0, Head: old.head(t, 20)}
	s.took(t, a.epoch(t, 0), true, nil)
	if held, err := s.Cosigned(a.id); held != nil || err != nil {
		t.Errorf("it holds a head that is void: %v, %v", held, err)
	}
	if v, _, err := s.Cosign(ctx, before); err != nil || v.Status != wire.Forbidden {
		t.Errorf("what is void: %d, %v", v.Status, err)
	}
	submit(log, 0, 30, wire.Signed)
	submit(log, 0, 20, wire.Conflict)
	submit(log, 30, 40, wire.Signed)
	submit(log, 30, 35, wire.Conflict)
	if held, err := s.Cosigned(a.id); err != nil || sizeOf(held) != 40 {
		t.Errorf("it holds %v, %v", held, err)
	}
}

// TestEpochBetweenCosignatures has a head signed at two times, of which the epoch reaches the
// first: the second binds the witness to that log.
func TestEpochBetweenCosignatures(t *testing.T) {
	s, log := newStore(t), newGrowing(t, newAuthor(t).key).grow(t, 5)
	a := &author{key: log.key, id: log.id}
	now := time.Now()
	for i, at := range []time.Time{now.Add(-time.Hour), now} {
		sub := &wire.Submission{Old: uint64(5 * i), Head: a.headAt(t, 5, log.roots[5], at.UnixNano())}
		if v, _, err := s.Cosign(ctx, sub); err != nil || v.Status != wire.Signed {
			t.Fatal(v.Status, err)
		}
	}
	s.took(t, a.epoch(t, time.Minute), true, nil)
	other := newGrowing(t, log.key)
	other.seed = 1
	if v, _, err := s.Cosign(ctx, other.grow(t, 5).submit(t, 0, 1)); err != nil || v.Status != wire.Conflict {
		t.Errorf("another log of the same epoch: %d, %v", v.Status, err)
	}
}

// TestEpochLeavesNoRows wants nothing to stay of what is not counted any more.
func TestEpochLeavesNoRows(t *testing.T) {
	s, a, b, both := newStore(t), newAuthor(t), newAuthor(t), newAuthor(t).id
	for range 3 {
		s.accept(t, Stored, nil, a.rate(t, newAuthor(t).id, 1))
	}
	s.accept(t, Stored, nil, a.rate(t, both, 1))
	s.accept(t, Stored, nil, b.rate(t, both, 1))
	s.took(t, a.epoch(t, 0), true, nil)
	var votes, peers int
	if err := s.ro.QueryRow("SELECT (SELECT count(*) FROM vote), (SELECT count(*) FROM peer)").Scan(&votes, &peers); err != nil || votes != 1 || peers != 4 {
		t.Errorf("%d votes and %d peers, %v; want that of b, and this node, a, b and of whom it speaks", votes, peers, err)
	}
}
