// SPDX-License-Identifier: Apache-2.0

package store

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

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
