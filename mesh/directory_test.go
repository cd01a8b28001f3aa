// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// TestDirectoryOrder has workers come, go and be forgotten by chance: lists have all that are
// known, those online first, then the newest first, and what a list holds does not change.
func TestDirectoryOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	now := time.Unix(1_700_000_000, 0)
	d := newDirectory(zap.NewNop)
	d.now = func() time.Time { return now }
	for range 2000 {
		peer := fmt.Sprint("worker ", r.IntN(50))
		before := d.list(true)
		was := make([]WorkerInfo, len(before))
		for i, w := range before {
			was[i] = *w
		}
		switch r.IntN(10) {
		case 0:
			d.offline(peer)
		case 1:
			now = now.Add(time.Duration(r.IntN(3)) * workerForget / 4)
			d.expire()
		case 2:
			now = now.Add(-time.Minute)
		default:
			d.update(wire.Telemetry{PeerID: peer, Model: "m", MaxTasks: 1, CurrentTasks: r.IntN(2), Status: wire.StatusAvailable})
			now = now.Add(time.Duration(r.IntN(2)) * time.Second)
		}
		for i, w := range before {
			if w.CurrentTasks != was[i].CurrentTasks || w.Online != was[i].Online || w.LastSeen != was[i].LastSeen {
				t.Fatalf("a list changed: %+v, was %+v", w, was[i])
			}
		}
		list := d.list(true)
		if len(list) != len(d.workers) || len(d.order) != len(d.workers) || !slices.IsSortedFunc(list, func(a, b *WorkerInfo) int {
			online := func(w *WorkerInfo) int { return map[bool]int{true: 0, false: 1}[w.Online] }
			return cmp.Or(online(a)-online(b), b.FirstSeen.Compare(a.FirstSeen), cmp.Compare(a.PeerID, b.PeerID))
		}) {
			t.Fatalf("%d workers, in the list: %+v", len(d.workers), list)
		}
		if len(d.list(false)) != d.online() || len(list) > 0 && d.worker(list[0].PeerID) != list[0] {
			t.Fatalf("%d online, %d in the list", d.online(), len(d.list(false)))
		}
	}
}
