// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

const (
	// maxHeadCursors bounds the peers of which is known how far their heads were read.
	maxHeadCursors = 4096
	// headsAnew is how often all of a peer's heads are read again, when there are logs here
	// that were not known: a head of such a log is not kept.
	headsAnew = 10 * time.Minute
	// alertsEvery is how often a peer is asked for its evidence against equivocators.
	alertsEvery = 10 * time.Minute
)

// headCursor is how far the heads of a peer were read.
type headCursor struct {
	row  uint64
	logs uint64    // that were known then
	anew time.Time // when they were read from the first on

	alerts time.Time // when its evidence was read
}

// askHeads fetches the heads that a peer holds and has got since it was asked last: of this
// node's own log, which tells whether the store lacks something, and of others, which tells
// whether they show one log to one peer and another to another.
func (l *Ledger) askHeads(ctx context.Context, id peer.ID) error {
	return l.readHeads(ctx, id, headsAnew)
}

// readHeads does that. All of them are fetched again when there are new logs here, and they
// were not for that long.
func (l *Ledger) readHeads(ctx context.Context, id peer.ID, anew time.Duration) error {
	has, err := l.node.Host.Peerstore().SupportsProtocols(id, wire.HeadsProtocol)
	if err != nil || len(has) == 0 {
		return err
	}
	c, logs := l.headsSeen(id), l.logs.Load()
	if c.logs != logs && time.Since(c.anew) >= anew {
		c = headCursor{logs: logs, anew: time.Now(), alerts: c.alerts}
	}
	for {
		items, err := l.page(ctx, id, wire.HeadsProtocol, c.row, wire.MaxPage)
		if err != nil {
			return err
		}
		for _, i := range items {
			if i.Index <= c.row {
				return fmt.Errorf("%w: the rows do not grow", wire.ErrBad)
			}
			c.row = i.Index
			if err := l.heard(ctx, i.Entry); err != nil {
				return err
			}
		}
		l.sawHeads(id, c)
		if len(items) < wire.MaxPage {
			return nil
		}
	}
}

// heard takes in a head that a peer holds. That it is none, or not of the entries that are
// stored, is not the peer's fault.
func (l *Ledger) heard(ctx context.Context, b []byte) error {
	h, err := wire.ParseHead(b)
	if err != nil {
		return nil
	}
	if h.Peer == l.store.Self() {
		err = l.store.Claim(ctx, h)
		if err == nil {
			l.alarm(l.store.MaySign())
		}
	} else {
		_, err = l.observe(h)
	}
	switch {
	case errors.Is(err, store.ErrFork):
		l.node.Log().Warn("a peer has signed a head that is not that of its entries", zap.Stringer("peer", h.Peer), zap.Error(err))
	case errors.Is(err, wire.ErrSignature), errors.Is(err, wire.ErrBad):
	default:
		return err
	}
	return nil
}

// askAlerts fetches the evidence that a peer holds against equivocators, once in a while: what
// gossip tells of them comes to who is there at that moment.
func (l *Ledger) askAlerts(ctx context.Context, id peer.ID) error {
	has, err := l.node.Host.Peerstore().SupportsProtocols(id, wire.AlertsProtocol)
	c := l.headsSeen(id)
	if err != nil || len(has) == 0 || time.Since(c.alerts) < alertsEvery {
		return err
	}
	for from := uint64(0); ; from += wire.MaxPage {
		items, err := l.page(ctx, id, wire.AlertsProtocol, from, wire.MaxPage)
		if err != nil {
			return err
		}
		for _, i := range items {
			if a, err := wire.ParseAlert(i.Entry); err == nil && !l.store.Equivocators()[a.Peer] && a.Verify() == nil {
				l.accuse(a)
			}
		}
		if len(items) < wire.MaxPage {
			break
		}
	}
	c = l.headsSeen(id)
	c.alerts = time.Now()
	l.sawHeads(id, c)
	return nil
}

// headsSeen returns how far the heads of a peer were read.
func (l *Ledger) headsSeen(id peer.ID) headCursor {
	l.heads.Lock()
	defer l.heads.Unlock()
	return l.heads.seen[id]
}

func (l *Ledger) sawHeads(id peer.ID, c headCursor) {
	l.heads.Lock()
	defer l.heads.Unlock()
	if len(l.heads.seen) >= maxHeadCursors || l.heads.seen == nil {
		l.heads.seen = make(map[peer.ID]headCursor)
	}
	l.heads.seen[id] = c
}

// observe takes in a head, and tells the mesh when it contradicts another.
func (l *Ledger) observe(h *wire.Head) (ahead bool, err error) {
	evidence, ahead, err := l.store.Observe(l.ctx, h)
	if evidence != nil {
		l.equivocated(evidence)
	}
	return ahead, err
}

// tell shows a head to the mesh that has just come from its owner: who has been shown another
// log of that owner has evidence then. The same is not shown twice in a row.
func (l *Ledger) tell(h *wire.Head) {
	l.heads.Lock()
	if l.heads.told == nil || len(l.heads.told) >= maxHeadCursors {
		l.heads.told = make(map[peer.ID]wire.Hash)
	}
	again := l.heads.told[h.Peer] == h.Root
	l.heads.told[h.Peer] = h.Root
	l.heads.Unlock()
	if again || l.store.Equivocators()[h.Peer] {
		return
	}
	if err := l.gossip.heads.Publish(l.ctx, h.Bare().Marshal()); err != nil && l.ctx.Err() == nil {
		l.node.Log().Debug("publishing a head", zap.Error(err))
	}
}

// validateHead is the validator of heads.
func (l *Ledger) validateHead(_ context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
	h, err := wire.ParseHead(m.GetData())
	if err == nil && (len(h.Witnesses) > 0 || h.Anchor != "") {
		err = fmt.Errorf("%w: a head has nothing but its owner's signature here", wire.ErrBad)
	}
	if err == nil {
		err = h.Verify()
	}
	if err == nil && from != l.store.Self() && !l.gossip.owners.admit(h.Peer) {
		err = errLater
	}
	return judge(err, from, m)
}

// takeHeads takes in the heads that gossip brings.
func (l *Ledger) takeHeads(sub *pubsub.Subscription) {
	for {
		m, err := sub.Next(l.ctx)
		if err != nil {
			return
		}
		if m.GetFrom() != l.store.Self() {
			l.alarm(l.heard(l.ctx, m.GetData()))
		}
	}
}
