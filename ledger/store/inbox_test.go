// SPDX-License-Identifier: Apache-2.0

package store

import (
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

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

// TestOnlyNewsIsVerified has entries come again: of what is stored the signature says nothing, and
// what is forged is stored nowhere.
func TestOnlyNewsIsVerified(t *testing.T) {
	s, a, subject := newStore(t), newAuthor(t), newAuthor(t).id
	entries := []*wire.Entry{a.rate(t, subject, 1), a.rate(t, subject, 1)}
	s.accept(t, Stored, nil, entries[0])
	for _, e := range entries {
		e.Signature = make([]byte, 64)
	}
	s.accept(t, Known, nil, entries[0])
	s.accept(t, Refused, wire.ErrSignature, entries[1])
	if lines, err := s.About(ctx, subject, 10, 0); err != nil || len(lines) != 1 || lines[0].Verify() != nil {
		t.Errorf("%v, %v", lines, err)
	}
}
