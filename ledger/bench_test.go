// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// BenchmarkCatchUp has a node that comes later fetch 10,000 entries of 100 authors from one peer.
func BenchmarkCatchUp(b *testing.B) {
	const authors, rounds = 100, 100
	archive, subject := fresh(b), newID(b)
	var keys [authors]crypto.PrivKey
	var ids [authors]peer.ID
	var prev [authors]wire.Hash
	for i := range keys {
		keys[i] = newKey(b)
		ids[i], _ = peer.IDFromPrivateKey(keys[i])
	}
	for range rounds {
		var batch []*wire.Entry
		for i, key := range keys {
			e := &wire.Entry{Kind: wire.Rating, Rater: ids[i], Subject: subject, Dimension: wire.Honesty, Score: 0.5, Prev: prev[i], Time: time.Now().UnixNano()}
			if err := e.Sign(key); err != nil {
				b.Fatal(err)
			}
			prev[i], batch = e.Hash(), append(batch, e)
		}
		if _, _, err := archive.store.Accept(ctx, batch); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		late := fresh(b)
		late.connect(b, archive)
		for size := uint64(0); size < rounds; time.Sleep(time.Millisecond) {
			size, _ = late.store.Size(ctx, ids[authors-1])
		}
		late.close()
	}
	b.ReportMetric(float64(b.N*authors*rounds)/b.Elapsed().Seconds(), "entries/s")
}
