// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// fill has a store hold one thing more of each kind about a subject.
func (s *Store) fill(t *testing.T, a *author, subject peer.ID) {
	t.Helper()
	s.mustAppend(t, subject, 0.5, true)
	s.accept(t, Stored, nil, a.rate(t, subject, 1))
	if err := s.Note(ctx, map[peer.ID]Tally{subject: {Good: 2, Bad: 1}}); err != nil {
		t.Fatal(err)
	}
}

// TestDamage flips bytes of the file wherever they are. The store must refuse to open, or to
// answer, or answer as before; never otherwise, and never with another identity.
func TestDamage(t *testing.T) {
	dir, me, a := t.TempDir(), newAuthor(t), newAuthor(t)
	subject := newAuthor(t).id
	s := open(t, dir, me.key)
	for range 3 {
		s.fill(t, a, subject)
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
	var places []int
	for i := range flips {
		places = append(places, i*len(good)/flips)
	}
	for at := range len(good) - len(a.id) { // and in each name of a peer, in tables and indexes
		if bytes.HasPrefix(good[at:], []byte(a.id)) {
			places = append(places, at+len(a.id)/2)
		}
	}
	refused := 0
	for i, at := range places {
		bad := slices.Clone(good)
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
	t.Logf("%d of %d refused", refused, len(places))
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

// TestLostRow loses an entry of the own log from the index by which it is read, as a bit that
// turns in that does: the log is not shown without it.
func TestLostRow(t *testing.T) {
	for _, lost := range []int{0, 1, 2} {
		s, subject := newStore(t), newAuthor(t).id
		for range 3 {
			s.mustAppend(t, subject, 0.5, true)
		}
		if _, err := s.conn.ExecContext(ctx, "UPDATE entry SET position = position + 1000 WHERE author = ? AND position = ?", s.me, lost); err != nil {
			t.Fatal(err)
		}
		if items, err := s.Log(ctx, wire.Range{Count: 10}); !errors.Is(err, ErrDamaged) {
			t.Errorf("without entry %d: %d entries, %v", lost, len(items), err)
		}
	}
}

// TestUpgradeToMarks opens a store of version 2, in which nothing has a mark.
func TestUpgradeToMarks(t *testing.T) {
	dir, me, a, subject := t.TempDir(), newAuthor(t), newAuthor(t), newAuthor(t).id
	s := open(t, dir, me.key)
	s.fill(t, a, subject)
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
