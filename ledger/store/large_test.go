// SPDX-License-Identifier: Apache-2.0

package store

import (
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// TestLargeLedger reads a ledger of 1,000,000 entries by 10,000 peers about each other, or a
// small part of that; AGENTFM_TEST_LEDGER says how many entries. Ten of the peers are rated by
// all. What a read takes must not grow with the ledger: with the whole of it, 99 of 100 reads
// have 10 ms.
func TestLargeLedger(t *testing.T) {
	entries := 1000
	if os.Getenv("AGENTFM_TEST_NIGHTLY") == "1" {
		entries = 1_000_000
	}
	if n, err := strconv.Atoi(os.Getenv("AGENTFM_TEST_LEDGER")); err == nil {
		entries = n
	}
	s := newStore(t)
	authors := make([]*author, max(entries/100, 20))
	for i := range authors {
		authors[i] = newAuthor(t)
	}
	// subject is whom an entry is about: of those of an author, one in four is about one of ten.
	subject := func(n int) peer.ID {
		of, round := len(authors), n/len(authors)
		if round%4 == 0 {
			n, of, round = n%len(authors), 10, round/4
		}
		return authors[(n*7919+round)%of].id
	}
	for done := 0; done < entries; {
		err := s.write(ctx, func(tx *tx) error {
			for range min(1000, entries-done) {
				a := authors[done%len(authors)]
				e := &wire.Entry{Kind: wire.Rating, Rater: a.id, Subject: subject(done), Dimension: wire.Honesty,
					Score: 0.5, Context: "task:successes=5,failures=0,window=3600s", Time: time.Now().UnixNano(), Prev: a.prev, Signature: make([]byte, 64)}
				a.prev = e.Hash()
				if o, err := tx.accept(e); o != Stored || err != nil { // signatures are not what is tried here
					t.Fatal(o, err)
				}
				done++
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var took []time.Duration
	for i := range 1000 {
		id := authors[i*13%len(authors)].id
		if i%10 == 0 {
			id = authors[i/10%10].id
		}
		begun := time.Now()
		sum, err := s.Summary(ctx, id)
		if err != nil {
			t.Fatal(sum, err)
		}
		lines, err := s.About(ctx, id, 1, 0)
		took = append(took, time.Since(begun))
		if err != nil || len(lines) != min(sum.Entries, 1) {
			t.Fatal(lines, err)
		}
	}
	slices.Sort(took)
	p99 := took[len(took)*99/100]
	begun := time.Now()
	votes := 0
	if err := s.Votes(ctx, func(Vote) { votes++ }); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d entries: summary and newest line in %s (p99), %d votes in %s", entries, p99, votes, time.Since(begun))
	if entries >= 1_000_000 && p99 > 10*time.Millisecond {
		t.Errorf("99 of 100 reads took up to %s", p99)
	}
}
