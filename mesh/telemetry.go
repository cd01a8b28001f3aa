// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"encoding/binary"
	"sync"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"

	"github.com/Agent-FM/caddy-agentfm/internal/limit"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Limits on the telemetry of one sender and on the number of senders. A worker
// publishes every two seconds, and sooner when its tasks change.
const (
	senderRate   = 4 // messages a second
	senderBurst  = 20
	maxSenders   = 16384
	senderExpiry = 5 * time.Minute

	// A peer can make up senders as it likes, and so cannot bring us as many as
	// the table holds before the first of them expire.
	newcomerRate  = 20
	newcomerBurst = 2000
)

// senders remembers, of everyone who sent telemetry lately, the sequence number
// of the last message and how many more are welcome.
type senders struct {
	mu    sync.Mutex
	byID  map[peer.ID]*sender
	from  *limit.Table[peer.ID] // newcomers by who forwards their messages
	now   func() time.Time
	swept time.Time
}

type sender struct {
	rate  *rate.Limiter
	last  time.Time // when it sent anything new
	seqno uint64
}

func newSenders() *senders {
	return &senders{byID: make(map[peer.ID]*sender), from: limit.New[peer.ID](newcomerRate, newcomerBurst, maxSenders), now: time.Now}
}

// admit reports whether a message is newer than all before it from its sender,
// and within the sender's rate. Identities are free, so the table is bounded:
// when it is full, newcomers wait until others have been silent for a while.
func (s *senders) admit(from, id peer.ID, seqno uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	e, ok := s.byID[id]
	if !ok {
		if len(s.byID) >= maxSenders {
			s.sweep(now)
		}
		if len(s.byID) >= maxSenders || !s.from.Take(from, now) {
			return false
		}
		e = &sender{rate: rate.NewLimiter(senderRate, senderBurst), last: now}
		s.byID[id] = e
	}
	// Numbers begin with the time. Who comes itself, after a while without news, has started
	// with an earlier clock; anything else is replayed, or overtaken.
	if seqno <= e.seqno && (from != id || now.Sub(e.last) <= workerStale) {
		return false
	}
	e.last = now
	if !e.rate.AllowN(now, 1) {
		return false
	}
	e.seqno = seqno
	return true
}

// sweep forgets the silent, at most once a second.
func (s *senders) sweep(now time.Time) {
	if now.Sub(s.swept) < time.Second {
		return
	}
	s.swept = now
	for id, e := range s.byID {
		if now.Sub(e.last) > senderExpiry {
			delete(s.byID, id)
		}
	}
}

// validate is the validator of the telemetry topic. What it does not accept is
// not relayed. A peer is penalised only for messages of its own: AgentFM 1.3
// nodes relay everything, and are no liars for that.
func (s *senders) validate(_ context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
	author := m.GetFrom()
	bad := pubsub.ValidationIgnore
	if from == author {
		bad = pubsub.ValidationReject
	}
	if len(m.GetSeqno()) != 8 {
		return bad
	}
	if !s.admit(from, author, binary.BigEndian.Uint64(m.GetSeqno())) { // before it is read: what is bad counts, too
		return pubsub.ValidationIgnore
	}
	t, err := wire.ParseTelemetry(m.GetData())
	if err != nil || t.PeerID != author.String() {
		return bad
	}
	m.ValidatorData = t
	return pubsub.ValidationAccept
}

// subscribe feeds the directory with telemetry until ctx ends. It returns when
// the subscription stands.
func subscribe(ctx context.Context, ps *pubsub.PubSub, d *directory) (wait func(), err error) {
	if err := ps.RegisterTopicValidator(wire.TelemetryTopic, newSenders().validate); err != nil {
		return nil, err
	}
	topic, err := ps.Join(wire.TelemetryTopic)
	if err != nil {
		return nil, err
	}
	sub, err := topic.Subscribe(pubsub.WithBufferSize(1024))
	if err != nil {
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			m, err := sub.Next(ctx)
			if err != nil {
				return
			}
			if t, ok := m.ValidatorData.(wire.Telemetry); ok {
				d.update(t)
			}
		}
	}()
	return func() { <-done }, nil
}
