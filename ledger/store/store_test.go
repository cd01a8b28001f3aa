// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
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
	if err != nil || sum.Entries != 6 || sum.Ratings != 5 || sum.Raters != 1 || sum.Last.IsZero() {
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

// TestVotesOfMany has more peers vote than are held in memory.
func TestVotesOfMany(t *testing.T) {
	before := maxNamed
	maxNamed = 2
	t.Cleanup(func() { maxNamed = before })
	s := newStore(t)
	var authors [5]*author
	for i := range authors {
		authors[i] = newAuthor(t)
	}
	want := make(map[[2]peer.ID]bool)
	for i, a := range authors {
		about := authors[(i+1)%len(authors)].id
		s.accept(t, Stored, nil, a.rate(t, about, 1))
		want[[2]peer.ID{a.id, about}] = true
	}
	if err := s.Votes(ctx, func(v Vote) { delete(want, [2]peer.ID{v.Rater, v.Subject}) }); err != nil || len(want) > 0 {
		t.Errorf("%d votes are not found, %v", len(want), err)
	}
}
