// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/Agent-FM/caddy-agentfm/ledger/tree"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var ctx = context.Background()

// author writes a log, as another node would.
type author struct {
	key  crypto.PrivKey
	id   peer.ID
	prev wire.Hash
}

func newAuthor(t testing.TB) *author {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &author{key: key, id: id}
}

// rate returns the author's next entry.
func (a *author) rate(t testing.TB, subject peer.ID, score float64) *wire.Entry {
	t.Helper()
	return a.say(t, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: wire.Honesty, Score: score})
}

func (a *author) say(t testing.TB, e *wire.Entry) *wire.Entry {
	t.Helper()
	e.Rater, e.Prev = a.id, a.prev
	if e.Time == 0 {
		e.Time = time.Now().UnixNano()
	}
	if err := e.Sign(a.key); err != nil {
		t.Fatal(err)
	}
	a.prev = e.Hash()
	return e
}

func (a *author) head(t testing.TB, size uint64, root wire.Hash) *wire.Head {
	t.Helper()
	h := &wire.Head{Peer: a.id, Size: size, Root: root, Time: time.Now().UnixNano()}
	if err := h.Sign(a.key); err != nil {
		t.Fatal(err)
	}
	return h
}

func open(t testing.TB, dir string, key crypto.PrivKey) *Store {
	t.Helper()
	s, err := Open(dir, key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// newStore returns an empty store.
func newStore(t testing.TB) *Store { return open(t, t.TempDir(), newAuthor(t).key) }

func (s *Store) mustAppend(t testing.TB, subject peer.ID, score float64, public bool) *wire.Entry {
	t.Helper()
	e := &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: wire.Honesty, Score: score}
	if err := s.Append(ctx, e, nil, public); err != nil {
		t.Fatal(err)
	}
	return e
}

// accept wants an entry to have an outcome.
func (s *Store) accept(t testing.TB, want Outcome, reason error, entries ...*wire.Entry) {
	t.Helper()
	got, why, err := s.Accept(ctx, entries)
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		if got[i] != want || !errors.Is(why[i], reason) {
			t.Fatalf("entry %d: %d, %v instead of %d, %v", i, got[i], why[i], want, reason)
		}
	}
}

func TestOwnLog(t *testing.T) {
	dir, me, subject := t.TempDir(), newAuthor(t), newAuthor(t).id
	s := open(t, dir, me.key)
	if s.Head() != nil {
		t.Error("a head of nothing")
	}
	var entries []*wire.Entry
	for i := range 5 {
		entries = append(entries, s.mustAppend(t, subject, float64(i)/10, true))
	}
	text := []byte("good")
	c := &wire.Entry{Kind: wire.Comment, Subject: subject, TextCID: wire.CID(text), Language: "en"}
	if err := s.Append(ctx, c, text, true); err != nil {
		t.Fatal(err)
	}
	entries = append(entries, c)
	head := s.Head()
	if err := head.Verify(); err != nil || head.Size != 6 || head.Peer != me.id {
		t.Errorf("head %+v, %v", head, err)
	}
	for i, e := range entries {
		p, err := s.Prove(ctx, subject, e.Hash())
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.VerifyInclusion(p.Position, p.Head.Size, e.Hash(), p.Path, p.Head.Root); err != nil || p.Position != uint64(i) {
			t.Errorf("proof of entry %d: %v", i, err)
		}
	}
	if _, err := s.Prove(ctx, newAuthor(t).id, c.Hash()); !errors.Is(err, ErrNotFound) {
		t.Errorf("proof for a peer that has nothing to do with it: %v", err)
	}
	if got, err := s.Comment(ctx, c.TextCID); err != nil || string(got) != "good" {
		t.Errorf("%q, %v", got, err)
	}
	if l, err := s.Language(ctx, subject, c.TextCID); l != "en" || err != nil {
		t.Errorf("%q, %v", l, err)
	}
	sum, err := s.Summary(ctx, subject)
	if err != nil || sum.Entries != 6 || sum.Ratings != 5 || len(sum.Raters) != 1 || sum.Raters[0] != me.id || sum.Last.IsZero() {
		t.Errorf("%+v, %v", sum, err)
	}
	lines, err := s.About(ctx, subject, 2, 1)
	if err != nil || len(lines) != 2 || lines[0].Hash() != entries[4].Hash() || lines[1].Hash() != entries[3].Hash() {
		t.Errorf("%+v, %v", lines, err)
	}
	page, err := s.Log(ctx, wire.Range{From: 3, Count: 2})
	if err != nil || len(page) != 2 || page[0].Index != 3 || string(page[0].Entry) != string(entries[2].Marshal()) {
		t.Errorf("%v, %v", page, err)
	}
	if page, err := s.Inbox(ctx, wire.Range{Count: 10}); err != nil || len(page) != 0 {
		t.Errorf("the inbox has own entries: %v, %v", page, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, dir, me.key)
	if h := again.Head(); h == nil || string(h.Marshal()) != string(head.Marshal()) {
		t.Errorf("after opening again: %+v", h)
	}
}

func TestOneWriter(t *testing.T) {
	dir, key := t.TempDir(), newAuthor(t).key
	open(t, dir, key)
	if s, err := Open(dir, key); err == nil {
		_ = s.Close()
		t.Error("opened twice")
	}
}

// TestAppendIsWholeOrNot wants a client that goes away to leave nothing half done.
func TestAppendIsWholeOrNot(t *testing.T) {
	s, subject := newStore(t), newAuthor(t).id
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := s.Append(gone, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: "x"}, nil, true); err == nil {
		t.Error("appended for nobody")
	}
	if err := s.Append(ctx, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: "x", Score: 2}, nil, true); !errors.Is(err, wire.ErrBad) {
		t.Error(err)
	}
	if err := s.Append(ctx, &wire.Entry{Kind: wire.Comment, Subject: subject, TextCID: wire.CID([]byte("a"))}, []byte("b"), true); !errors.Is(err, wire.ErrBad) {
		t.Error(err)
	}
	if s.Head() != nil {
		t.Errorf("head %+v", s.Head())
	}
	s.mustAppend(t, subject, 1, true)
	if s.Head().Size != 1 {
		t.Errorf("head %+v", s.Head())
	}
}

func TestAccept(t *testing.T) {
	s, a, subject := newStore(t), newAuthor(t), newAuthor(t).id
	one, two := a.rate(t, subject, 1), a.rate(t, subject, 0)
	s.accept(t, Parked, nil, two)
	s.accept(t, Stored, nil, one)
	s.accept(t, Known, nil, one, two)
	if n, err := s.Size(ctx, a.id); n != 2 || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	forged := a.rate(t, subject, 1)
	forged.Score = -1
	s.accept(t, Refused, wire.ErrSignature, forged)

	a.prev = one.Hash()
	s.accept(t, Refused, ErrFork, a.rate(t, subject, -1))
	a.prev = two.Hash()
	s.accept(t, Refused, ErrFuture, a.say(t, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: "x", Time: time.Now().Add(time.Hour).UnixNano()}))
	a.prev = two.Hash()
	long := []*wire.Entry{}
	for range 100 {
		long = append(long, a.rate(t, subject, 1))
	}
	s.accept(t, Stored, nil, long...)
	page, err := s.Inbox(ctx, wire.Range{From: 0, Count: 1000})
	if err != nil || len(page) != 102 || string(page[101].Entry) != string(long[99].Marshal()) {
		t.Errorf("%d entries, %v", len(page), err)
	}
	if page, err = s.Inbox(ctx, wire.Range{From: page[100].Index, Count: 1000}); err != nil || len(page) != 1 {
		t.Errorf("%d entries after the last but one, %v", len(page), err)
	}
}

func TestOrphansAreBounded(t *testing.T) {
	s := newStore(t)
	now := time.Now()
	s.now = func() time.Time { now = now.Add(time.Millisecond); return now }
	subject := newAuthor(t).id
	junk := newAuthor(t)
	junk.prev = wire.Hash{1}
	var all []*wire.Entry
	for range maxAuthorOrphans + 10 {
		all = append(all, junk.rate(t, subject, 1))
	}
	s.accept(t, Parked, nil, all...)
	count := func() (n int) {
		if err := s.ro.QueryRow("SELECT count(*) FROM orphan").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(); n != maxAuthorOrphans {
		t.Errorf("%d orphans of one author", n)
	}
	honest := newAuthor(t)
	one, two := honest.rate(t, subject, 1), honest.rate(t, subject, 1)
	s.accept(t, Parked, nil, two)
	s.accept(t, Stored, nil, one)
	if n, _ := s.Size(ctx, honest.id); n != 2 {
		t.Errorf("the honest one has %d entries", n)
	}
	now = now.Add(orphanLife + time.Minute)
	if err := s.Sweep(ctx); err != nil || count() != 0 {
		t.Errorf("%d orphans after their time, %v", count(), err)
	}
}

func TestQuota(t *testing.T) {
	s, a, subject := newStore(t), newAuthor(t), newAuthor(t).id
	s.accept(t, Stored, nil, a.rate(t, subject, 1))
	if _, err := s.conn.ExecContext(ctx, "UPDATE peer SET stored = ? WHERE bytes = ?", authorBytes, []byte(a.id)); err != nil {
		t.Fatal(err)
	}
	last := a.prev
	s.accept(t, Refused, ErrQuota, a.rate(t, subject, 1))
	now := time.Now().Add(25 * time.Hour)
	s.now = func() time.Time { return now }
	a.prev = last
	s.accept(t, Stored, nil, a.rate(t, subject, 1))
	s.accept(t, Stored, nil, newAuthor(t).rate(t, subject, 1))

	if _, err := s.conn.ExecContext(ctx, "UPDATE number SET value = ? WHERE name = 'stored'", int64(maxBytes)); err != nil {
		t.Fatal(err)
	}
	peers := func() (n int) {
		if err := s.ro.QueryRowContext(ctx, "SELECT count(*) FROM peer").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := peers()
	s.accept(t, Refused, ErrQuota, newAuthor(t).rate(t, newAuthor(t).id, 1))
	if after := peers(); after != before {
		t.Errorf("a refused entry has made %d rows", after-before)
	}
	named := newAuthor(t)
	if _, err := s.conn.ExecContext(ctx, "UPDATE number SET value = 0 WHERE name = 'stored'"); err != nil {
		t.Fatal(err)
	}
	s.accept(t, Stored, nil, a.rate(t, named.id, 1))
	now = now.Add(settledDays * 24 * time.Hour)
	if _, err := s.conn.ExecContext(ctx, "UPDATE number SET value = ? WHERE name = 'stored'", int64(maxBytes)); err != nil {
		t.Fatal(err)
	}
	s.accept(t, Refused, ErrQuota, named.rate(t, subject, 1)) // others spoke of it a week ago
	s.accept(t, Stored, nil, a.rate(t, subject, 1))
	if _, err := s.conn.ExecContext(ctx, "UPDATE number SET value = ? WHERE name = 'stored'", int64(hardBytes)); err != nil {
		t.Fatal(err)
	}
	s.accept(t, Refused, ErrQuota, a.rate(t, subject, 1))
}

// TestOldBackup restores a store from before the last entries were published: it does not
// sign until a peer has given them back, and then goes on behind them.
func TestOldBackup(t *testing.T) {
	dir, me, subject := t.TempDir(), newAuthor(t), newAuthor(t).id
	s := open(t, dir, me.key)
	s.mustAppend(t, subject, 1, true)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(t.TempDir(), "old")
	if err := os.CopyFS(old, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, me.key)
	two, three := s.mustAppend(t, subject, 1, true), s.mustAppend(t, subject, 1, true)
	shown := s.Head()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, old, me.key)
	late := s.mustAppend(t, subject, -1, false) // nobody has been asked yet, and nobody sees it
	if err := s.Claim(ctx, shown); err != nil || !errors.Is(s.MaySign(), ErrBehind) {
		t.Fatalf("%v, %v", err, s.MaySign())
	}
	if err := s.Append(ctx, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: "x"}, nil, true); !errors.Is(err, ErrBehind) {
		t.Errorf("signed: %v", err)
	}
	s.accept(t, Parked, nil, three)
	s.accept(t, Stored, nil, two)
	if err := s.MaySign(); err != nil {
		t.Fatal(err)
	}
	if err := s.Claim(ctx, shown); err != nil || s.MaySign() != nil {
		t.Errorf("the head that was shown is another: %v, %v", err, s.MaySign())
	}
	fresh, err := s.Publish(ctx)
	if err != nil || len(fresh) != 1 || fresh[0].Score != -1 || fresh[0].Hash() == late.Hash() || fresh[0].Prev != three.Hash() {
		t.Errorf("%+v, %v", fresh, err)
	}
	if n := s.Head().Size; n != 4 {
		t.Errorf("size %d", n)
	}
	if sum, err := s.Summary(ctx, subject); err != nil || sum.Entries != 4 {
		t.Errorf("%+v, %v", sum, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, old, me.key) // checks the head and the tree
}

// TestPrivateGivesWay is like TestOldBackup, with fewer, as many and more entries that nobody has
// seen than were lost. They are no fork, and give way to those that were published.
func TestPrivateGivesWay(t *testing.T) {
	for private := range 5 {
		dir, me, subject := t.TempDir(), newAuthor(t), newAuthor(t).id
		s := open(t, dir, me.key)
		first := s.mustAppend(t, subject, 1, true)
		lost := []*wire.Entry{s.mustAppend(t, subject, 1, true), s.mustAppend(t, subject, 1, true)}
		shown := s.Head()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, t.TempDir(), me.key)
		s.accept(t, Stored, nil, first)
		for range private {
			s.mustAppend(t, subject, -1, false)
		}
		if err := s.Claim(ctx, shown); err != nil {
			t.Fatal(err)
		}
		for _, e := range lost {
			if err := s.MaySign(); !errors.Is(err, ErrBehind) {
				t.Errorf("%d private: %v", private, err)
			}
			s.accept(t, Stored, nil, e)
		}
		if err := s.MaySign(); err != nil {
			t.Errorf("%d private, all is back: %v", private, err)
		}
		if fresh, err := s.Publish(ctx); err != nil || len(fresh) != private {
			t.Errorf("%d private: %d are new, %v", private, len(fresh), err)
		}
	}
}

// TestForkIsSeen has a peer show another log than the one that was published.
func TestForkIsSeen(t *testing.T) {
	me, subject := newAuthor(t), newAuthor(t).id
	s := open(t, t.TempDir(), me.key)
	s.mustAppend(t, subject, 1, true)
	s.accept(t, Refused, nil, me.rate(t, subject, 0.5))
	if err := s.MaySign(); !errors.Is(err, ErrForked) {
		t.Error(err)
	}
}

func TestVotes(t *testing.T) {
	s, a, b, subject := newStore(t), newAuthor(t), newAuthor(t), newAuthor(t).id
	now := time.Now()
	old := now.Add(-HalfLife)
	s.accept(t, Stored, nil,
		a.rate(t, subject, 1),
		a.say(t, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: wire.Honesty, Score: -1, Time: old.UnixNano()}),
		a.say(t, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: "latency", Score: -1}),
		b.rate(t, subject, -0.5))
	got := map[peer.ID]Vote{}
	if err := s.Votes(ctx, func(v Vote) { got[v.Rater] = v }); err != nil {
		t.Fatal(err)
	}
	near := func(x, y float64) bool { return x-y < 0.001 && y-x < 0.001 }
	if v := got[a.id]; len(got) != 2 || !near(v.Mean, 1./3) || !near(v.Weight/Weight(now), 1.5) || v.Subject != subject {
		t.Errorf("%+v", got)
	}
	if v := got[b.id]; !near(v.Mean, -0.5) || !near(v.Weight/Weight(now), 1) {
		t.Errorf("%+v", v)
	}
}

func TestCommentsOfOthers(t *testing.T) {
	s, a, subject := newStore(t), newAuthor(t), newAuthor(t).id
	text := []byte("hello")
	c := a.say(t, &wire.Entry{Kind: wire.Comment, Subject: subject, TextCID: wire.CID(text)})
	if err := s.PutComment(ctx, c.TextCID, text); !errors.Is(err, ErrNotFound) {
		t.Errorf("a text that no entry names: %v", err)
	}
	s.accept(t, Stored, nil, c)
	want, err := s.Wanted(ctx, 10)
	if err != nil || len(want) != 1 || string(want[0].CID) != string(c.TextCID) || want[0].Author != a.id {
		t.Fatalf("%v, %v", want, err)
	}
	if err := s.PutComment(ctx, c.TextCID, []byte("other")); !errors.Is(err, wire.ErrBad) {
		t.Error(err)
	}
	if err := s.PutComment(ctx, c.TextCID, text); err != nil {
		t.Fatal(err)
	}
	if want, err := s.Wanted(ctx, 10); err != nil || len(want) != 0 {
		t.Errorf("%v, %v", want, err)
	}
}

func TestCursor(t *testing.T) {
	s, id := newStore(t), newAuthor(t).id
	for _, want := range []Cursor{{}, {7, wire.Hash{1}}, {9, wire.Hash{2}}} {
		if want.Row > 0 {
			if err := s.SetCursor(ctx, id, want); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := s.Cursor(ctx, id); got != want || err != nil {
			t.Errorf("%v, %v", got, err)
		}
	}
}

// contents is all that a store answers with.
func contents(s *Store, subject peer.ID) (string, error) {
	own, err1 := s.Log(ctx, wire.Range{Count: 1000})
	in, err2 := s.Inbox(ctx, wire.Range{Count: 1000})
	about, err3 := s.About(ctx, subject, 500, 0)
	var votes []Vote
	err4 := s.Votes(ctx, func(v Vote) { votes = append(votes, v) })
	s.now = func() time.Time { return voteBase } // tallies age
	tallies, err5 := s.Tallies(ctx)
	s.now = time.Now
	return fmt.Sprint(s.Head(), len(about), own, in, s.Equivocators(), votes, tallies), errors.Join(err1, err2, err3, err4, err5)
}

// TestDamage flips bytes of the file wherever they are. The store must refuse to open, or to
// answer, or answer as before; never otherwise, and never with another identity.
func TestDamage(t *testing.T) {
	dir, me, a := t.TempDir(), newAuthor(t), newAuthor(t)
	subject := newAuthor(t).id
	s := open(t, dir, me.key)
	for range 3 {
		s.mustAppend(t, subject, 0.5, true)
		s.accept(t, Stored, nil, a.rate(t, subject, 1))
		if err := s.Note(ctx, map[peer.ID]Tally{subject: {Good: 2, Bad: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	want, err := contents(s, subject)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	flips := 60
	if os.Getenv("AGENTFM_TEST_NIGHTLY") == "1" {
		flips = 1000
	}
	refused := 0
	for i := range flips {
		bad := slices.Clone(good)
		at := i * len(bad) / flips
		bad[at] ^= 1 << (i % 8)
		broken := filepath.Join(t.TempDir(), "x")
		if err := os.MkdirAll(broken, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(broken, "ledger.db"), bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(broken, me.key)
		if err != nil {
			refused++
			continue
		}
		got, err := contents(s, subject)
		if err != nil {
			refused++
		} else if got != want {
			t.Errorf("byte %d: it answers otherwise:\n%s\nwant\n%s", at, got, want)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d of %d refused", refused, flips)
}

// TestMarks changes what is counted: it must be found, when it is read and when more is to be
// added to it.
func TestMarks(t *testing.T) {
	for _, c := range []struct{ name, change string }{
		{"the sum of a vote", "UPDATE vote SET sum = 0.5"},
		{"the weight of a vote", "UPDATE vote SET weight = weight / 2"},
		{"whose vote it is", "UPDATE vote SET author = author + 1000"},
		{"the outcomes of a worker", "UPDATE outcome SET bad = 0"},
		{"when they were counted", "UPDATE outcome SET updated = updated + 1"},
		{"what is not rated yet", "UPDATE outcome SET recent_good = 9"},
		{"whose outcomes they are", "UPDATE outcome SET peer = zeroblob(38)"},
	} {
		s, a, subject := newStore(t), newAuthor(t), newAuthor(t).id
		s.accept(t, Stored, nil, a.rate(t, subject, -1))
		if err := s.Note(ctx, map[peer.ID]Tally{subject: {Bad: 3}}); err != nil {
			t.Fatal(err)
		}
		all := func() error {
			_, err := s.Tallies(ctx)
			return errors.Join(err, s.Votes(ctx, func(Vote) {}))
		}
		if err := all(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.conn.ExecContext(ctx, c.change); err != nil {
			t.Fatal(err)
		}
		if err := all(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: read: %v", c.name, err)
		}
		_, _, err := s.Accept(ctx, []*wire.Entry{a.rate(t, subject, 1)})
		err = errors.Join(err, s.Note(ctx, map[peer.ID]Tally{subject: {Good: 1}}))
		if moved := strings.HasPrefix(c.name, "whose"); !moved && !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: added to: %v", c.name, err)
		}
	}
}

// TestOutcomes counts outcomes and makes ratings of them, once an hour, also when the store
// was closed in between.
func TestOutcomes(t *testing.T) {
	dir, me, a, b, c := t.TempDir(), newAuthor(t), newAuthor(t).id, newAuthor(t).id, newAuthor(t).id
	now := time.Now()
	s := open(t, dir, me.key)
	s.now = func() time.Time { return now }
	rate := func() []*wire.Entry {
		t.Helper()
		r, err := s.Rate(ctx, time.Hour, true)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := rate(); len(r) != 0 {
		t.Errorf("%v", r)
	}
	for range 2 {
		if err := s.Note(ctx, map[peer.ID]Tally{a: {Good: 3, Bad: 1}, b: {Bad: 20}, c: {Good: 2, Bad: 2}}); err != nil {
			t.Fatal(err)
		}
	}
	now = now.Add(59 * time.Minute)
	if r := rate(); len(r) != 0 {
		t.Errorf("too soon: %v", r)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, me.key)
	now = now.Add(2 * time.Minute)
	s.now = func() time.Time { return now }
	got := map[peer.ID]*wire.Entry{}
	for _, e := range rate() {
		got[e.Subject] = e
	}
	if e := got[a]; len(got) != 2 || e.Score != 0.4 || e.Context != "task:successes=6,failures=2,window=3600s" || got[b].Score != -0.5 {
		t.Errorf("%+v", got)
	}
	if h := s.Head(); h.Size != 2 || h.Verify() != nil {
		t.Errorf("%+v", h)
	}
	now = now.Add(2 * time.Hour)
	if r := rate(); len(r) != 0 {
		t.Errorf("the same outcomes twice: %v", r)
	}
	all, err := s.Tallies(ctx)
	if n := all[b]; err != nil || n.Bad < 36 || n.Bad > 37 {
		t.Errorf("%+v, %v", all, err)
	}
	now = now.Add(OutcomeHalfLife)
	if all, err = s.Tallies(ctx); err != nil || all[b].Bad > 18.5 {
		t.Errorf("a day later: %+v, %v", all, err)
	}
}

// TestUpgradeToMarks opens a store of version 2, in which nothing has a mark.
func TestUpgradeToMarks(t *testing.T) {
	dir, me, a, subject := t.TempDir(), newAuthor(t), newAuthor(t), newAuthor(t).id
	s := open(t, dir, me.key)
	s.mustAppend(t, subject, 0.5, true)
	s.accept(t, Stored, nil, a.rate(t, subject, 1))
	if err := s.Note(ctx, map[peer.ID]Tally{subject: {Good: 2, Bad: 1}}); err != nil {
		t.Fatal(err)
	}
	want, err := contents(s, subject)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.conn.ExecContext(ctx, "ALTER TABLE vote DROP COLUMN mark; ALTER TABLE outcome DROP COLUMN mark; PRAGMA user_version = 2"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, me.key)
		if got, err := contents(s, subject); err != nil || got != want {
			t.Errorf("%v\n%s\nwant\n%s", err, got, want)
		}
	}
	s.accept(t, Stored, nil, a.rate(t, subject, 1))
}
