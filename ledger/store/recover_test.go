// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/tree"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// forked returns a store with a rating and the comment on it behind another, which has been shown an
// entry of another log; and an entry that comes after that one.
func forkedStore(t *testing.T, dir string, me *author, subject peer.ID) (s *Store, rating *wire.Entry, theirs []*wire.Entry) {
	t.Helper()
	s = open(t, dir, me.key)
	if _, err := s.Recover(ctx); !errors.Is(err, ErrNotForked) || !errors.Is(s.MayRecover(), ErrNotForked) {
		t.Fatal(err)
	}
	me.prev = s.mustAppend(t, subject, 1, true).Hash()
	theirs = []*wire.Entry{me.rate(t, subject, -1), me.rate(t, subject, -1)} // of the lost part
	rating = s.mustAppend(t, subject, 0.5, true)
	hash := rating.Hash()
	comment := &wire.Entry{Kind: wire.Comment, Subject: subject, TextCID: wire.CID([]byte("good")), AttachedRating: hash[:]}
	if err := s.Append(ctx, comment, []byte("good"), true); err != nil {
		t.Fatal(err)
	}
	s.accept(t, Refused, nil, theirs[0])
	return s, rating, theirs
}

// TestRecover has a store that forked begin its epoch: all that it has stands in a new log. It can do
// so once.
func TestRecover(t *testing.T) {
	dir, me, subject := t.TempDir(), newAuthor(t), newAuthor(t).id
	s, rating, theirs := forkedStore(t, dir, me, subject)
	old := s.Head()
	s = s.again(t, dir, me.key)
	if err := s.MaySign(); !errors.Is(err, ErrForked) {
		t.Errorf("that it forked is forgotten: %v", err)
	}
	e, err := s.Recover(ctx)
	if err != nil || e.Verify() != nil || s.MaySign() != nil {
		t.Fatal(e, err)
	}
	if ahead := time.Until(time.Unix(0, e.Time)); ahead < skew-time.Minute || ahead >= maxAhead {
		t.Errorf("it is ahead of the clock by %s", ahead)
	}
	for range 2 {
		if h := s.Head(); h.Size != 3 || h.Root == old.Root || h.Time <= e.Time || s.Voided(h) || !s.Voided(old) {
			t.Errorf("the head is %v", h)
		}
		if err := s.Claim(ctx, old); err != nil || s.MaySign() != nil {
			t.Errorf("a head that is void counts: %v, %v", err, s.MaySign())
		}
		s.accept(t, Refused, ErrFork, theirs...)
		s = s.again(t, dir, me.key)
	}
	fresh, err := s.Publish(ctx)
	if err != nil || len(fresh) != 3 {
		t.Fatal(fresh, err)
	}
	if h := fresh[1].Hash(); string(fresh[2].AttachedRating) != string(h[:]) || fresh[1].Score != 0.5 || h == rating.Hash() {
		t.Errorf("the comment has lost its rating")
	}
	if _, err := s.Recover(ctx); !errors.Is(err, ErrNotForked) {
		t.Error(err)
	}
	me.prev = fresh[0].Hash()
	s.accept(t, Refused, nil, me.say(t, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: wire.Honesty, Time: time.Now().Add(skew + time.Minute).UnixNano()}))
	if _, err := s.Recover(ctx); !errors.Is(err, ErrSecondEpoch) || !errors.Is(s.MayRecover(), ErrSecondEpoch) {
		t.Errorf("a second fork is forgiven: %v", err)
	}
}

// TestEpochCoversTheOther has a store know by a head alone that it forked, signed by a clock that is
// ahead: that is void, too.
func TestEpochCoversTheOther(t *testing.T) {
	for _, ahead := range []time.Duration{0, skew - time.Minute, maxAhead - time.Minute} {
		me, subject := newAuthor(t), newAuthor(t).id
		s := open(t, t.TempDir(), me.key)
		for range 5 {
			s.mustAppend(t, subject, 1, true)
		}
		other := me.headAt(t, 2, wire.Hash{1}, time.Now().Add(ahead).UnixNano())
		if err := s.Claim(ctx, other); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recover(ctx); err != nil || s.Head().Size != 5 || !s.Voided(other) || s.Voided(s.Head()) {
			t.Errorf("%s ahead: %v", ahead, err)
		}
	}
}

// TestProofAfterRecovery wants the proof of an entry of the new log to have a head of it, also while
// witnesses have signed the old one alone.
func TestProofAfterRecovery(t *testing.T) {
	dir, me, subject := t.TempDir(), newAuthor(t), newAuthor(t).id
	s, _, _ := forkedStore(t, dir, me, subject)
	old := s.Head().Bare()
	if err := s.SetCosigned(ctx, old); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recover(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.SetCosigned(ctx, old); err != nil { // a witness was asked before
		t.Fatal(err)
	}
	fresh, err := s.Publish(ctx)
	if err != nil || len(fresh) != 3 {
		t.Fatal(fresh, err)
	}
	for i, e := range fresh {
		p, err := s.Prove(ctx, subject, e.Hash())
		if err != nil || s.Voided(p.Head) {
			t.Fatal(p, err)
		}
		if err := tree.VerifyInclusion(uint64(i), p.Head.Size, e.Hash(), p.Path, p.Head.Root); err != nil {
			t.Error(err)
		}
	}
}

// TestLearnedEpoch has a store learn of an epoch that it has not begun: another process may have its
// key, and be running, so it must be opened again. What it has published and is void goes then, and what
// nobody has seen stands behind what was signed since.
func TestLearnedEpoch(t *testing.T) {
	for name, hasForked := range map[string]bool{"forked": true, "not forked, as far as it knows": false} {
		t.Run(name, func(t *testing.T) {
			dir, me, subject := t.TempDir(), newAuthor(t), newAuthor(t).id
			s := open(t, dir, me.key)
			for range 3 {
				s.mustAppend(t, subject, 1, true)
			}
			s.mustAppend(t, subject, -1, false)
			if hasForked {
				s.accept(t, Refused, nil, me.rate(t, subject, 0))
			}
			if err := s.SetCursor(ctx, subject, Cursor{}, Cursor{Row: 7}); err != nil {
				t.Fatal(err)
			}
			s.took(t, me.epoch(t, 0), true, nil)
			if err := s.Append(ctx, &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: wire.Honesty}, nil, true); !errors.Is(err, ErrOther) || !errors.Is(s.MaySign(), ErrOther) {
				t.Errorf("it signs: %v", err)
			}
			if _, err := s.Publish(ctx); !errors.Is(err, ErrOther) {
				t.Errorf("it publishes: %v", err)
			}
			if _, err := s.Recover(ctx); !errors.Is(err, ErrOther) {
				t.Error(err)
			}
			if items, err := s.Log(ctx, wire.Range{From: 1, Count: 10}); err != nil || len(items) != 0 {
				t.Errorf("it shows %d entries, %v", len(items), err)
			}

			s = s.again(t, dir, me.key)
			if c, err := s.Cursor(ctx, subject); c.Row != 0 || err != nil || s.MaySign() != nil {
				t.Errorf("row %d, %v, %v", c.Row, err, s.MaySign())
			}
			theirs := me.anew()
			head := []*wire.Entry{theirs.rate(t, subject, 0.1), theirs.rate(t, subject, 0.2)}
			s.accept(t, Stored, nil, head...)
			fresh, err := s.Publish(ctx)
			if err != nil || len(fresh) != 1 || fresh[0].Score != -1 || fresh[0].Prev != head[1].Hash() || s.Head().Size != 3 {
				t.Errorf("%v, %v", fresh, err)
			}
			s.took(t, me.epoch(t, time.Minute), true, nil)
			if err := s.MaySign(); !errors.Is(err, ErrForked) {
				t.Errorf("it has two epochs, and may sign: %v", err)
			}
			if _, err := s.Recover(ctx); !errors.Is(err, ErrSecondEpoch) {
				t.Error(err)
			}
		})
	}
}
