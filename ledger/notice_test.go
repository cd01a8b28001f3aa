// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// TestNoticesAreReadOnce has a peer hold evidence: it is asked for what is new, and once in a while
// for all of it.
func TestNoticesAreReadOnce(t *testing.T) {
	n, witness := fresh(t), newKey(t)
	liar := newForger(t, newKey(t)).grow(t, 1)
	alert := &wire.Alert{Peer: liar.id, A: liar.head(t, 1), B: liar.fork(t, 0, 1).head(t, 1), Witness: newForger(t, witness).id, Time: 1}
	if err := alert.Sign(witness); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var asked []uint64 // from which row on
	id := n.serves(t, wire.AlertsProtocol, func(r wire.Range) []wire.Item {
		mu.Lock()
		defer mu.Unlock()
		if asked = append(asked, r.From); r.From < 7 {
			return []wire.Item{{Index: 7, Entry: alert.Marshal()}}
		}
		return nil
	})
	ask := func() {
		t.Helper()
		if err := n.askNotices(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	ask()
	c := n.headsSeen(id)
	c.notices.anew = time.Now().Add(-noticesAnew)
	n.sawHeads(id, c)
	ask()
	if mu.Lock(); !slices.Equal(asked, []uint64{0, 7, 0}) || !n.store.Equivocators()[liar.id] {
		t.Errorf("asked from %v on", asked)
	}
	mu.Unlock()
}
