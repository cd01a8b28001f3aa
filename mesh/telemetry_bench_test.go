// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

const (
	telemetryPeers = 50
	// Ten announcements at one time, which keep all senders within their rate: many
	// workers keep a gateway busy, which is cheaper than to be woken up for each.
	telemetryBurst = 10
	telemetryPace  = 50 * time.Millisecond
)

// BenchmarkTelemetry compares an announcement of a worker to one gateway with what it is
// on nodes of stock GossipSub, all of which subscribe. All nodes are in the process, and
// cpu-us/op is the time that all of it computes for one; cpu-us/delivery that for each
// node that gets it.
func BenchmarkTelemetry(b *testing.B) {
	b.Run("ours", func(b *testing.B) {
		a := newTestApp(b, nil)
		var workers []*peerHost
		for range telemetryPeers {
			workers = append(workers, newWorker(b, a, nil))
		}
		sent := 0
		announce(b, 1, func() error {
			w := workers[sent%len(workers)]
			sent++
			w.CurrentTasks = sent % (w.MaxTasks + 1)
			w.publish(b)
			return nil
		}, func() bool {
			known := 0
			for _, i := range lease(b, a).Workers(false) {
				for _, w := range workers {
					if w.PeerID == i.PeerID && w.CurrentTasks == i.CurrentTasks {
						known++
					}
				}
			}
			return known == len(workers)
		})
	})
	b.Run("stock", func(b *testing.B) {
		var got atomic.Int64
		topics := stockNodes(b, &got)
		sent := 0
		announce(b, len(topics), func() error {
			t := topics[sent%len(topics)]
			sent++
			return t.Publish(context.Background(), telemetryOf(peer.ID("stock"), nil))
		}, func() bool { return got.Load() >= int64(sent*len(topics)) })
	})
}

// announce publishes b.N times, and waits until all is known, by so many nodes.
func announce(b *testing.B, nodes int, publish func() error, known func() bool) {
	before := computed(b)
	pace := time.NewTicker(telemetryPace)
	defer pace.Stop()
	for i := 0; b.Loop(); i++ {
		if i%telemetryBurst == 0 {
			<-pace.C
		}
		if err := publish(); err != nil {
			b.Fatal(err)
		}
	}
	await.Until(b, "all is known", known)
	us := float64(computed(b)-before) / 1e3 / float64(b.N)
	b.ReportMetric(us, "cpu-us/op")
	b.ReportMetric(us/float64(nodes), "cpu-us/delivery")
}

// stockNodes returns the topics of nodes with defaults, each of which subscribes and
// counts what it gets.
func stockNodes(b *testing.B, got *atomic.Int64) (topics []*pubsub.Topic) {
	ctx, cancel := context.WithCancel(context.Background())
	var hosts []host.Host
	b.Cleanup(func() {
		cancel()
		for _, h := range hosts {
			_ = h.Close()
		}
	})
	for range telemetryPeers {
		h, err := libp2p.New(libp2p.ListenAddrs(loopbackAddr))
		if err != nil {
			b.Fatal(err)
		}
		for _, other := range hosts[max(0, len(hosts)-6):] { // as many as a mesh of GossipSub has
			if err := h.Connect(ctx, peer.AddrInfo{ID: other.ID(), Addrs: other.Addrs()}); err != nil {
				b.Fatal(err)
			}
		}
		hosts = append(hosts, h)
		ps, err := pubsub.NewGossipSub(ctx, h)
		if err != nil {
			b.Fatal(err)
		}
		topic, err := ps.Join(wire.TelemetryTopic)
		if err != nil {
			b.Fatal(err)
		}
		sub, err := topic.Subscribe(pubsub.WithBufferSize(4096))
		if err != nil {
			b.Fatal(err)
		}
		go func() {
			for {
				if _, err := sub.Next(ctx); err != nil {
					return
				}
				got.Add(1)
			}
		}()
		topics = append(topics, topic)
	}
	await.Until(b, "the nodes have a mesh", func() bool {
		for _, t := range topics {
			if len(t.ListPeers()) == 0 {
				return false
			}
		}
		return true
	})
	time.Sleep(3 * time.Second) // in which GossipSub makes it: three of its heartbeats
	return topics
}
