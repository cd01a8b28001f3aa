// SPDX-License-Identifier: Apache-2.0

package store

import (
	"testing"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// BenchmarkAccept stores entries of one author, 100 at a time.
func BenchmarkAccept(b *testing.B) {
	s, a, subject := newStore(b), newAuthor(b), newAuthor(b).id
	var batch []*wire.Entry
	for range b.N {
		batch = append(batch, a.rate(b, subject, 1))
	}
	b.ResetTimer()
	for len(batch) > 0 {
		n := min(len(batch), 100)
		s.accept(b, Stored, nil, batch[:n]...)
		batch = batch[n:]
	}
}

// BenchmarkVotes reads all votes of 100 peers about each other.
func BenchmarkVotes(b *testing.B) {
	const peers = 100
	s := newStore(b)
	var authors [peers]*author
	for i := range authors {
		authors[i] = newAuthor(b)
	}
	for _, a := range authors {
		var batch []*wire.Entry
		for _, about := range authors {
			if about != a {
				batch = append(batch, a.rate(b, about.id, 1))
			}
		}
		s.accept(b, Stored, nil, batch...)
	}
	votes := 0
	for b.Loop() {
		if err := s.Votes(ctx, func(Vote) { votes++ }); err != nil {
			b.Fatal(err)
		}
	}
	if votes != b.N*peers*(peers-1) {
		b.Errorf("%d votes", votes)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(votes), "ns/vote")
}
