// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"slices"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/internal/limit"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Limits on what one peer brings of each topic of the ledger, of its own, and of what others
// have signed: to verify it takes longer than to send it, and what others send must not wait
// for that. What is dropped comes when peers are asked for what they have.
const (
	flowRate  = 50 // messages a second
	flowBurst = 100
	maxFlows  = 32768

	// A peer may relay the telemetry of a whole mesh, of which each author is limited later:
	// 10,000 workers announce themselves every two seconds.
	relayedRate  = 6_000
	relayedBurst = 12_000
)

// flow is what is counted together. Whoever has an honest peer relay too much fills that flow
// alone: not the alerts and heads that it brings, nor what it has signed itself.
type flow struct {
	from  peer.ID
	topic string
	own   bool
}

// flows remembers what peers have brought.
type flows struct {
	now       func() time.Time
	table     *limit.Table[flow]
	telemetry *limit.Table[peer.ID]
}

func newFlows() *flows {
	return &flows{
		now: time.Now, table: limit.New[flow](flowRate, flowBurst, maxFlows), telemetry: limit.New[peer.ID](relayedRate, relayedBurst, maxFlows),
	}
}

// inspect drops the messages that are too many. Of topics that are not the mesh's, nobody
// listens to any.
func (f *flows) inspect(from peer.ID, rpc *pubsub.RPC) error {
	now := f.now()
	rpc.Publish = slices.DeleteFunc(rpc.Publish, func(m *pb.Message) bool {
		topic := m.GetTopic()
		if topic == wire.TelemetryTopic {
			return !f.telemetry.Take(from, now)
		}
		own := peer.ID(m.GetFrom()) == from // which is verified later, and no other gains by it
		return !slices.Contains(topics, topic) || !f.table.Take(flow{from, topic, own}, now)
	})
	return nil
}
