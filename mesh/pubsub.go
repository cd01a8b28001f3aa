// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Scores of GossipSub peers. A bootstrap node is worth scoreTrusted, everybody
// else starts at 0, which is too little for scoreAcceptPX: nobody but a bootstrap
// node can tell us whom to connect to.
const (
	scoreTrusted  = 200
	scoreAcceptPX = 100
	scoreGossip   = -100
	scorePublish  = -500
	scoreGraylist = -1000
	// maxPubSubMessage is what AgentFM 1.3 nodes send at most. Telemetry is held
	// to wire.MaxTelemetry by its validator.
	maxPubSubMessage = 1 << 20
	// seenFor is how long a message is remembered at least, so that its copies are dropped
	// unread: those of GossipSub come within seconds. It is forgotten within a minute more. It
	// takes half a kilobyte, and a thousand workers send five hundred a second; by default it is
	// two minutes. What comes later is judged by its sequence number, or by what is stored.
	seenFor = 15 * time.Second
)

// topics are those of the mesh; what a peer says of others is not kept.
var topics = []string{wire.TelemetryTopic, "agentfm-feedback-v1", "agentfm-equivocation-v1", "agentfm-inconsistency-v1", "agentfm-heads-v1", "agentfm-epochs-v1"}

// NewPubSub starts GossipSub on a host as the mesh uses it. trusted says which
// peers are bootstrap nodes.
func NewPubSub(ctx context.Context, h host.Host, trusted func(peer.ID) bool) (*pubsub.PubSub, error) {
	params := &pubsub.PeerScoreParams{
		SkipAtomicValidation: true,
		SeenMsgTTL:           seenFor,
		AppSpecificWeight:    1,
		AppSpecificScore: func(p peer.ID) float64 {
			if trusted(p) {
				return scoreTrusted
			}
			return 0
		},
		// many peers on one address cost nothing here: a cluster behind a router is
		// honest, and the resource manager bounds them
		BehaviourPenaltyWeight:    -10,
		BehaviourPenaltyThreshold: 6,
		BehaviourPenaltyDecay:     pubsub.ScoreParameterDecay(10 * time.Minute),
		DecayInterval:             time.Second,
		DecayToZero:               0.01,
		RetainScore:               10 * time.Minute,
		Topics:                    map[string]*pubsub.TopicScoreParams{wire.TelemetryTopic: telemetryScore()},
	}
	thresholds := &pubsub.PeerScoreThresholds{
		GossipThreshold:             scoreGossip,
		PublishThreshold:            scorePublish,
		GraylistThreshold:           scoreGraylist,
		AcceptPXThreshold:           scoreAcceptPX,
		OpportunisticGraftThreshold: 1,
	}
	return pubsub.NewGossipSub(ctx, h,
		pubsub.WithMessageSignaturePolicy(pubsub.StrictSign),
		pubsub.WithFloodPublish(true),
		pubsub.WithPeerExchange(false), // we send none; what we take is decided by the score
		pubsub.WithPeerScore(params, thresholds),
		pubsub.WithSeenMessagesTTL(seenFor),
		pubsub.WithMaxMessageSize(maxPubSubMessage),
		pubsub.WithAppSpecificRpcInspector(newFlows().inspect),
		pubsub.WithValidateQueueSize(1024),
		pubsub.WithPeerOutboundQueueSize(128),
		pubsub.WithSubscriptionFilter(pubsub.WrapLimitSubscriptionFilter(
			pubsub.NewAllowlistSubscriptionFilter(topics...), 4*len(topics))),
	)
}

// telemetryScore penalises a peer for invalid telemetry, with the square of its
// count: ten messages in a few minutes are enough for the gray list.
func telemetryScore() *pubsub.TopicScoreParams {
	return &pubsub.TopicScoreParams{
		SkipAtomicValidation:           true,
		TopicWeight:                    1,
		TimeInMeshQuantum:              time.Second, // divides, also where its weight is 0
		InvalidMessageDeliveriesWeight: -10,
		InvalidMessageDeliveriesDecay:  pubsub.ScoreParameterDecay(5 * time.Minute),
	}
}
