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
