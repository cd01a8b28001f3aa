// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

func TestEquivocator(t *testing.T) {
	s, a, w := newStore(t), newAuthor(t), newAuthor(t)
	one := a.rate(t, w.id, 1)
	s.accept(t, Stored, nil, one)
	good := a.head(t, 1, one.Hash())
	if other, ahead, err := s.Observe(ctx, good); other != nil || ahead || err != nil {
		t.Errorf("%v, %t, %v", other, ahead, err)
	}
	if other, ahead, err := s.Observe(ctx, a.head(t, 2, wire.Hash{2})); other != nil || !ahead || err != nil {
		t.Errorf("%v, %t, %v", other, ahead, err)
	}
	bad := a.head(t, 2, wire.Hash{3})
	alert, _, err := s.Observe(ctx, bad)
	if alert == nil || err != nil || alert.A.Root != (wire.Hash{2}) || alert.B.Root != (wire.Hash{3}) {
		t.Fatalf("no equivocation: %v", err)
	}
	if alert, _, err := s.Observe(ctx, a.head(t, 1, wire.Hash{9})); alert == nil || err != nil {
		t.Errorf("a head that is not of the entries: %v", err)
	}
	alert.Witness, alert.Time = w.id, time.Now().UnixNano()
	if _, err := s.Equivocation(ctx, alert); !errors.Is(err, wire.ErrSignature) {
		t.Errorf("an alert that nobody signed: %v", err)
	}
	if err := alert.Sign(w.key); err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		if news, err := s.Equivocation(ctx, alert); news != want || err != nil {
			t.Errorf("news %t, %v", news, err)
		}
	}
	s.accept(t, Refused, ErrEquivocator, a.rate(t, w.id, 1))
	if all := s.Equivocators(); len(all) != 1 || !all[a.id] {
		t.Errorf("%v", all)
	}
}

// TestEquivocatorsAreBounded has strangers equivocate: some are taken in, then those who have
// a log here, and who was sent tasks always. What is kept is short, and is read again.
func TestEquivocatorsAreBounded(t *testing.T) {
	dir, me := t.TempDir(), newAuthor(t)
	s := open(t, dir, me.key)
	accuse := func(a *author) error {
		alert := &wire.Alert{Peer: a.id, A: a.head(t, 2, wire.Hash{1}), B: a.head(t, 2, wire.Hash{2}), Witness: me.id, Time: 1}
		alert.A.Anchor = strings.Repeat("x", 1<<10)
		alert.B.Witnesses = []wire.Witness{{Peer: me.id, Signature: make([]byte, 64)}}
		if err := alert.Sign(me.key); err != nil {
			t.Fatal(err)
		}
		news, err := s.Equivocation(ctx, alert)
		if news != (err == nil) || news != s.Equivocators()[a.id] {
			t.Errorf("news %t, %v", news, err)
		}
		return err
	}
	fill := func(n int) {
		const q = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT OR IGNORE INTO equivocator (peer, evidence) SELECT 'filler ' || i, x'' FROM n"
		if _, err := s.conn.ExecContext(ctx, q, n); err != nil {
			t.Fatal(err)
		}
	}
	stranger, logged, worker := newAuthor(t), newAuthor(t), newAuthor(t)
	if err := accuse(stranger); err != nil {
		t.Fatal(err)
	}
	s.accept(t, Stored, nil, logged.rate(t, me.id, 1))
	if err := s.Note(ctx, map[peer.ID]Tally{worker.id: {Good: 1}}); err != nil {
		t.Fatal(err)
	}
	fill(maxUnknown)
	if err := accuse(newAuthor(t)); !errors.Is(err, ErrQuota) || s.MayAccuse(ctx, logged.id) != nil {
		t.Errorf("one unknown too many: %v", err)
	}
	fill(maxEquivocators)
	if err := accuse(logged); !errors.Is(err, ErrQuota) || !errors.Is(s.MayAccuse(ctx, logged.id), ErrQuota) {
		t.Errorf("one too many: %v", err)
	}
	if err := accuse(worker); err != nil {
		t.Errorf("one that was sent tasks: %v", err)
	}
	if _, err := s.conn.ExecContext(ctx, "DELETE FROM equivocator WHERE peer LIKE 'filler%'"); err != nil {
		t.Fatal(err)
	}
	var longest int
	if err := s.ro.QueryRowContext(ctx, "SELECT max(length(evidence)) FROM equivocator").Scan(&longest); err != nil || longest > 1<<10 {
		t.Errorf("evidence of %d bytes, %v", longest, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := open(t, dir, me.key).Equivocators(); len(got) != 2 || !got[stranger.id] || !got[worker.id] {
		t.Errorf("%v", got)
	}
}
