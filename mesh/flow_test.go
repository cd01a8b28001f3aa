// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// TestFlows bounds what one peer brings of the ledger, and neither telemetry nor others.
func TestFlows(t *testing.T) {
	f, now := newFlows(), time.Now()
	f.now = func() time.Time { return now }
	send := func(from peer.ID, topic string, n int) int {
		t.Helper()
		rpc := &pubsub.RPC{}
		for range n {
			rpc.Publish = append(rpc.Publish, &pb.Message{Topic: &topic})
		}
		if err := f.inspect(from, rpc); err != nil {
			t.Fatal(err)
		}
		return len(rpc.Publish)
	}
	for _, c := range []struct {
		name  string
		from  peer.ID
		topic string
		later time.Duration
		n     int
		want  int
	}{
		{"a burst", "a", topics[1], 0, 600, 100},
		{"more of it", "a", topics[2], 0, 10, 0},
		{"a second later", "a", topics[1], time.Second, 100, 50},
		{"another", "b", topics[1], 0, 10, 10},
		{"telemetry", "a", wire.TelemetryTopic, 0, 5000, 5000},
	} {
		now = now.Add(c.later)
		if got := send(c.from, c.topic, c.n); got != c.want {
			t.Errorf("%s: %d of %d", c.name, got, c.n)
		}
	}
	for i := range 2 * maxFlows {
		send(peer.ID(fmt.Sprint(i)), topics[1], 1)
	}
	if len(f.peers) > maxFlows {
		t.Errorf("%d peers are remembered", len(f.peers))
	}
	now = now.Add(time.Minute)
	if send("late", topics[1], 1) != 1 || len(f.peers) > 2 {
		t.Errorf("%d peers are remembered a minute later", len(f.peers))
	}
}
