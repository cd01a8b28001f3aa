// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"slices"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Limits on what one peer brings of the topics of the ledger, whoever has signed it: to
// verify it takes longer than to send it, and what others send must not wait for that. What
// is dropped comes when peers are asked for what they have.
const (
	flowRate  = 50.0 // messages a second
	flowBurst = 100.0
	maxFlows  = 4096
)

// flows remembers what peers have brought. It is for the one goroutine of PubSub.
type flows struct {
	now   func() time.Time
	peers map[peer.ID]*bucket
}

func newFlows() *flows { return &flows{now: time.Now, peers: make(map[peer.ID]*bucket)} }

// inspect drops the messages that are too many. Telemetry has limits of its own.
func (f *flows) inspect(from peer.ID, rpc *pubsub.RPC) error {
	rpc.Publish = slices.DeleteFunc(rpc.Publish, func(m *pb.Message) bool {
		return m.GetTopic() != wire.TelemetryTopic && !f.take(from)
	})
	return nil
}

// take counts a message of a peer; false when it is too many.
func (f *flows) take(from peer.ID) bool {
	now := f.now()
	b, ok := f.peers[from]
	if !ok {
		if len(f.peers) >= maxFlows {
			for id, b := range f.peers {
				if now.Sub(b.last).Seconds()*flowRate > flowBurst {
					delete(f.peers, id)
				}
			}
		}
		if len(f.peers) >= maxFlows {
			return false
		}
		b = &bucket{tokens: flowBurst, last: now}
		f.peers[from] = b
	}
	return b.take(now, flowRate, flowBurst)
}
