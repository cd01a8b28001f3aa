// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// smallSteps has void entries go some at a time.
func smallSteps(t *testing.T, n uint64) {
	before := voidStep
	voidStep = n
	t.Cleanup(func() { voidStep = before })
}

// step takes one of each log, and reports whether there was anything to do.
func (s *Store) step(t testing.TB) (more bool) {
	t.Helper()
	for id, e := range s.Epochs() {
		if !e.voiding {
			continue
		}
		more = true
		if err := s.write(ctx, func(t *tx) error { return t.step(id) }); err != nil {
			t.Fatal(err)
		}
	}
	return more
}

// begins has an epoch be known, and nothing be taken away yet.
func (s *Store) begins(t testing.TB, e *wire.Epoch) {
	t.Helper()
	if err := s.write(ctx, func(t *tx) error { _, _, err := t.declare(e, 0, 0); return err }); err != nil {
		t.Fatal(err)
	}
}

// TestVoidInSteps has an epoch make a log void that goes in steps, between which the store is opened
// again. Nobody is shown anything of it meanwhile, and it is not continued.
func TestVoidInSteps(t *testing.T) {
	smallSteps(t, 7)
	dir, me, a, w := t.TempDir(), newAuthor(t), newAuthor(t), newAuthor(t).id
	s := open(t, dir, me.key)
	other := newAuthor(t).rate(t, w, 0.5)
	s.accept(t, Stored, nil, other)
	var void []*wire.Entry
	for i := range 50 {
		if i%5 == 0 {
			void = append(void, a.say(t, &wire.Entry{Kind: wire.Comment, Subject: w, TextCID: wire.CID([]byte{'a', byte(i)})}))
		}
		void = append(void, a.rate(t, w, -1))
	}
	s.accept(t, Stored, nil, void...)
	s.begins(t, a.epoch(t, 0))
	log := a.anew()
	fresh := log.rate(t, w, 1)
	for steps := 0; ; steps++ {
		checkVoid(t, s, a.id, w, other, void)
		if !s.step(t) {
			if steps != (len(void)+6)/7+1 {
				t.Errorf("%d entries went in %d steps", len(void), steps)
			}
			break
		}
		if s.Epochs()[a.id].voiding {
			s.accept(t, Refused, ErrVoiding, fresh)
			if alert, ahead, err := s.Observe(ctx, log.head(t, 30, wire.Hash{1})); alert != nil || !ahead || err != nil {
				t.Errorf("a head of the new log: %v, %t, %v", alert, ahead, err)
			}
		}
		if steps%3 == 1 {
			s = s.again(t, dir, me.key)
		}
	}
	for _, table := range []string{"entry", "tree", "vote"} {
		var n int
		if err := s.ro.QueryRow("SELECT count(*) FROM " + table).Scan(&n); err != nil || n != 1 {
			t.Errorf("%d rows stay in %s, %v", n, table, err)
		}
	}
	s.accept(t, Stored, nil, fresh)
	if n, sum := s.vote(t, w); n != 2 || sum != 1.5 {
		t.Errorf("%d votes, %g", n, sum)
	}
}

// checkVoid wants a log that is void not to be seen.
func checkVoid(t *testing.T, s *Store, author, subject peer.ID, other *wire.Entry, void []*wire.Entry) {
	t.Helper()
	if size, err := s.Size(ctx, author); size != 0 || err != nil {
		t.Errorf("%d entries, %v", size, err)
	}
	if n, sum := s.vote(t, subject); n != 1 || sum != 0.5 {
		t.Errorf("%d votes, %g", n, sum)
	}
	if lines, err := s.About(ctx, subject, 100, 0); err != nil || len(lines) != 1 || lines[0].Rater != other.Rater {
		t.Errorf("%d entries speak of the peer, %v", len(lines), err)
	}
	if items, err := s.Inbox(ctx, wire.Range{Count: 100}); err != nil || len(items) != 1 {
		t.Errorf("%d entries are shown, %v", len(items), err)
	}
	if sum, err := s.Summary(ctx, subject); err != nil || sum.Raters != 1 {
		t.Errorf("%d raters, %v", sum.Raters, err)
	}
	for _, e := range void {
		if e.Kind == wire.Comment {
			if _, err := s.Language(ctx, subject, e.TextCID); !errors.Is(err, ErrNotFound) {
				t.Errorf("a comment is there: %v", err)
			}
		}
	}
}

// TestRecoverInSteps has a store begin its epoch, and be opened again after some steps: it has all that
// it had, in that order, and comments have their ratings.
func TestRecoverInSteps(t *testing.T) {
	for stop := range 6 {
		smallSteps(t, 3)
		dir, me, subject := t.TempDir(), newAuthor(t), newAuthor(t).id
		s := open(t, dir, me.key)
		me.prev = s.mustAppend(t, subject, 1, true).Hash()
		theirs := me.rate(t, subject, -1) // of the lost part
		const ratings = 8
		var hashes []wire.Hash
		for i := range ratings {
			hashes = append(hashes, s.mustAppend(t, subject, float64(i)/ratings, true).Hash())
		}
		for i := range ratings {
			text := []byte{'a', byte(i)}
			if err := s.Append(ctx, &wire.Entry{Kind: wire.Comment, Subject: subject, TextCID: wire.CID(text), AttachedRating: hashes[i][:]}, text, true); err != nil {
				t.Fatal(err)
			}
		}
		s.accept(t, Refused, nil, theirs)
		old := s.Head()
		err := s.write(ctx, func(t *tx) error {
			e, err := t.epoch()
			if err == nil {
				_, err = t.begin(e, 0)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for range stop {
			s.step(t)
		}
		if s.Head() != nil || !errors.Is(s.MaySign(), ErrRecovering) || !errors.Is(s.Append(ctx, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: "x"}, nil, true), ErrRecovering) {
			t.Errorf("after %d steps it is signed: %v", stop, s.MaySign())
		}
		if items, err := s.Log(ctx, wire.Range{Count: 100}); err != nil || len(items) != 0 {
			t.Errorf("after %d steps, %d entries are shown, %v", stop, len(items), err)
		}
		s = s.again(t, dir, me.key)
		if !s.Resumed() {
			t.Error("it says nothing of it")
		}
		if h := s.Head(); h == nil || h.Size != old.Size || h.Root == old.Root || s.MaySign() != nil {
			t.Fatalf("after %d steps and opened again: %v, %v", stop, h, s.MaySign())
		}
		log, err := s.Publish(ctx)
		if err != nil || len(log) != int(old.Size) {
			t.Fatal(len(log), err)
		}
		first := log[1:]
		for i := range ratings {
			h := first[i].Hash()
			if c := first[ratings+i]; first[i].Score != float64(i)/ratings || c.Kind != wire.Comment || string(c.AttachedRating) != string(h[:]) {
				t.Errorf("after %d steps, comment %d has not its rating", stop, i)
			}
		}
		if n, _ := s.vote(t, subject); n != 1 {
			t.Errorf("%d votes", n)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOwnRowStays has the only one who speaks of this node declare void what it has said, before this
// node has signed anything: it signs all the same.
func TestOwnRowStays(t *testing.T) {
	dir, me, a, subject := t.TempDir(), newAuthor(t), newAuthor(t), newAuthor(t).id
	s := open(t, dir, me.key)
	s.accept(t, Stored, nil, a.rate(t, me.id, -1))
	s.took(t, a.epoch(t, 0), true, nil)
	for range 2 {
		s.mustAppend(t, subject, 1, true)
	}
	s = s.again(t, dir, me.key)
	if h := s.Head(); h == nil || h.Size != 2 {
		t.Errorf("the head is %v", h)
	}
}

// TestRecoverWaitsForNone has a store recover while the log of a stranger is void and damaged: that
// keeps neither it nor others.
func TestRecoverWaitsForNone(t *testing.T) {
	smallSteps(t, 2)
	dir, me, a, b, subject := t.TempDir(), newAuthor(t), newAuthor(t), newAuthor(t), newAuthor(t).id
	s, _, _ := forkedStore(t, dir, me, subject)
	for range 9 {
		s.accept(t, Stored, nil, a.rate(t, subject, 1), b.rate(t, subject, 1))
	}
	if _, err := s.conn.ExecContext(ctx, "UPDATE entry SET bytes = x'00' WHERE position = 5 AND author = (SELECT id FROM peer WHERE bytes = ?)", []byte(a.id)); err != nil {
		t.Fatal(err)
	}
	s.begins(t, a.epoch(t, 0))
	if e, err := s.Recover(ctx); e == nil || err != nil || s.MaySign() != nil {
		t.Errorf("it recovers: %v, %v", err, s.MaySign())
	}
	s.begins(t, b.epoch(t, 0))
	if err := s.SetCursor(ctx, a.id, Cursor{}, Cursor{Row: 1}); err != nil {
		t.Fatal(err)
	}
	fresh := a.anew().rate(t, subject, 1)
	s.accept(t, Refused, ErrVoiding, fresh)
	now := time.Now().Add(8 * 24 * time.Hour)
	s.now = func() time.Time { return now }
	if _, reasons, err := s.Accept(ctx, []*wire.Entry{fresh}); err != nil || !errors.Is(reasons[0], ErrFork) || errors.Is(reasons[0], ErrVoiding) {
		t.Errorf("it is waited for a damaged log without end: %v, %v", reasons, err)
	}
	if err := s.Sweep(ctx); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
	if c, err := s.Cursor(ctx, a.id); c.Row != 0 || err != nil {
		t.Errorf("it sweeps nothing: %v, %v", c, err)
	}
	if !s.Epochs()[a.id].voiding || s.Epochs()[b.id].voiding {
		t.Error("a damaged log keeps another")
	}
	s.accept(t, Stored, nil, b.anew().rate(t, subject, 1))
}
