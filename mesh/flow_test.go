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

// bring returns how many of a number of messages get through.
func (f *flows) bring(t *testing.T, from, author peer.ID, topic string, n int) int {
	t.Helper()
	rpc := &pubsub.RPC{}
	for range n {
		rpc.Publish = append(rpc.Publish, &pb.Message{Topic: &topic, From: []byte(author)})
	}
	if err := f.inspect(from, rpc); err != nil {
		t.Fatal(err)
	}
	return len(rpc.Publish)
}

// TestFlows bounds what one peer brings of a topic of the ledger, and neither telemetry nor
// others.
func TestFlows(t *testing.T) {
	f, now := newFlows(), time.Now()
	f.now = func() time.Time { return now }
	const entries, alerts = "agentfm-feedback-v1", "agentfm-equivocation-v1"
	for _, c := range []struct {
		name         string
		from, author peer.ID
		topic        string
		later        time.Duration
		n            int
		want         int
	}{
		{"a burst", "a", "x", entries, 0, 600, 100},
		{"of another author", "a", "y", entries, 0, 10, 0},
		{"a second later", "a", "x", entries, time.Second, 100, 50},
		{"another", "b", "x", entries, 0, 10, 10},
		{"another topic", "a", "x", alerts, 0, 600, 100},
		{"its own", "a", "a", entries, 0, 600, 100},
		{"telemetry", "a", "x", wire.TelemetryTopic, 0, 20_000, relayedBurst},
		{"telemetry of another", "b", "x", wire.TelemetryTopic, 0, 5000, 5000},
		{"no topic of ours", "a", "x", "z", 0, 1, 0},
	} {
		now = now.Add(c.later)
		if got := f.bring(t, c.from, c.author, c.topic, c.n); got != c.want {
			t.Errorf("%s: %d of %d", c.name, got, c.n)
		}
	}
	for i := range 2 * maxFlows {
		f.bring(t, peer.ID(fmt.Sprint(i)), "x", entries, 1)
	}
	if f.table.Len() > maxFlows {
		t.Errorf("%d flows are remembered", f.table.Len())
	}
	now = now.Add(time.Minute)
	if f.bring(t, "late", "x", entries, 1) != 1 || f.table.Len() > 2 {
		t.Errorf("%d flows are remembered a minute later", f.table.Len())
	}
}

// TestHonestRelayIsHeard has strangers fill what an honest peer relays with their entries. Its
// alerts and heads come all, and so do its own entries.
func TestHonestRelayIsHeard(t *testing.T) {
	f, now := newFlows(), time.Now()
	f.now = func() time.Time { return now }
	const seconds = 60
	junk, heard := 0, map[string]int{}
	for range seconds {
		for range 20 {
			now = now.Add(time.Second / 20)
			junk += f.bring(t, "relay", "stranger", "agentfm-feedback-v1", 6)
		}
		for name, m := range map[string]struct {
			author peer.ID
			topic  string
		}{
			"an alert":            {"witness", "agentfm-equivocation-v1"},
			"a head of another":   {"gateway", "agentfm-heads-v1"},
			"its own head":        {"relay", "agentfm-heads-v1"},
			"an entry of its own": {"relay", "agentfm-feedback-v1"},
		} {
			heard[name] += f.bring(t, "relay", m.author, m.topic, 1)
		}
	}
	if most := flowBurst + seconds*flowRate; junk > most {
		t.Errorf("%d entries of strangers, want %d at most", junk, most)
	}
	for name, n := range heard {
		if n != seconds {
			t.Errorf("%s: %d of %d are heard", name, n, seconds)
		}
	}
}
