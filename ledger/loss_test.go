// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// lose has a node lose one in ten of the entries that gossip brings, which it does not pass on
// either.
func (n *testNode) lose(t testing.TB, lost *atomic.Int64) {
	t.Helper()
	if err := n.node.PubSub.UnregisterTopicValidator(wire.FeedbackTopic); err != nil {
		t.Fatal(err)
	}
	err := n.node.PubSub.RegisterTopicValidator(wire.FeedbackTopic, func(c context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
		if from != n.id() && rand.N(10) == 0 {
			lost.Add(1)
			return pubsub.ValidationIgnore
		}
		return n.validateEntry(c, from, m)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestGossipLoss loses a tenth of all messages while all nodes write. Afterwards each has the
// whole log of each, with its head.
func TestGossipLoss(t *testing.T) {
	count, entries, pause := 3, 60, time.Millisecond
	if os.Getenv("AGENTFM_TEST_NIGHTLY") == "1" {
		count, entries, pause = 5, 1200, 500*time.Millisecond // ten minutes
	} else {
		was := askEvery
		askEvery = 2 * time.Second
		t.Cleanup(func() { askEvery = was }) // after the nodes are closed
	}
	var nodes []*testNode
	var lost atomic.Int64
	for i := range count {
		n := fresh(t)
		n.lose(t, &lost)
		for _, m := range nodes[max(0, i-2):] {
			n.connect(t, m)
		}
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		await.Until(t, "all are confirmed, and the topic has peers", func() bool {
			return n.confirmed.Load() && len(n.gossip.feedback.ListPeers()) > 0
		})
	}
	subject := newID(t)
	last := make([]*wire.Entry, count)
	var writers sync.WaitGroup
	for i, n := range nodes {
		writers.Go(func() {
			for range entries {
				e := &wire.Entry{Kind: wire.Rating, Subject: subject, Dimension: wire.Honesty, Score: 0.5}
				if err := n.Append(ctx, e, nil); err != nil {
					t.Error(err)
					return
				}
				last[i] = e
				time.Sleep(pause)
			}
		})
	}
	writers.Wait()
	if t.Failed() {
		return
	}
	ended := time.Now()
	for i, author := range nodes {
		head := author.store.Head()
		for k, n := range nodes {
			equal := func() bool {
				p, err := n.store.Prove(ctx, subject, last[i].Hash())
				return err == nil && p.Position == uint64(entries)-1 && p.Head.Root == head.Root
			}
			for !equal() && time.Since(ended) < 2*time.Minute {
				time.Sleep(10 * time.Millisecond)
			}
			if !equal() {
				t.Errorf("node %d has %d of %d entries of node %d", k, n.has(author), entries, i)
			}
		}
	}
	if lost.Load() == 0 {
		t.Error("nothing was lost")
	}
	t.Logf("%d messages were lost; all logs were equal after %s", lost.Load(), time.Since(ended).Round(time.Millisecond))
}
