// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// announce tells the mesh of an epoch.
func (l *Ledger) announce(e *wire.Epoch) {
	if err := l.gossip.epochs.Publish(l.ctx, e.Marshal()); err != nil && l.ctx.Err() == nil {
		l.node.Log().Debug("publishing an epoch", zap.Error(err))
	}
}

// validateEpoch is the validator of epochs. One that is known is no news, nor is any more of who has
// two.
func (l *Ledger) validateEpoch(ctx context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
	e, err := wire.ParseEpoch(m.GetData())
	if err == nil && from != l.store.Self() && l.knows(e) {
		return pubsub.ValidationIgnore
	}
	if err == nil {
		err = e.Verify()
	}
	if err == nil && from != l.store.Self() && (l.store.MayDeclare(ctx, e) != nil || !l.gossip.declared.admit(e.Peer)) {
		err = errLater
	}
	m.ValidatorData = e
	return judge(err, from, m)
}

// knows reports whether an epoch is no news.
func (l *Ledger) knows(e *wire.Epoch) bool {
	have, ok := l.store.Epochs()[e.Peer]
	return ok && (have.Twice || have.Time == e.Time)
}

// takeEpochs takes in the epochs that gossip brings.
func (l *Ledger) takeEpochs(sub *pubsub.Subscription) {
	for {
		m, err := sub.Next(l.ctx)
		if err != nil {
			return
		}
		if e, ok := m.ValidatorData.(*wire.Epoch); ok && m.GetFrom() != l.store.Self() {
			l.takeEpoch(e)
		}
	}
}

// epochNotice takes in an epoch that a peer holds. One that is news is told to the mesh.
func (l *Ledger) epochNotice(ctx context.Context, b []byte) error {
	e, err := wire.ParseEpoch(b)
	if err != nil || l.knows(e) || l.store.MayDeclare(ctx, e) != nil {
		return err
	}
	if err := e.Verify(); err != nil {
		return err
	}
	if (e.Peer == l.store.Self() || l.gossip.declared.admit(e.Peer)) && l.takeEpoch(e) {
		l.announce(e)
	}
	return nil
}

// takeEpoch takes in an epoch, and reports whether it is news.
func (l *Ledger) takeEpoch(e *wire.Epoch) bool {
	news, err := l.store.TakeEpoch(l.ctx, e)
	if err != nil && !errors.Is(err, store.ErrQuota) && !errors.Is(err, store.ErrFuture) {
		l.alarm(err)
	}
	if !news {
		return false
	}
	l.news()
	what := "a peer has begun a new epoch of its log: what it signed before is void"
	if l.store.Equivocators()[e.Peer] {
		what = "a peer has begun a second epoch of its log, or signed two logs in its first"
	}
	l.node.Log().Warn(what, zap.Stringer("peer", e.Peer))
	if e.Peer == l.store.Self() {
		l.alarm(l.store.MaySign())
	}
	return true
}

// penance is for how long who has begun an epoch is trusted no further than a newcomer: from when
// this node has heard of it, for of when that was there is only its owner's word.
const penance = 30 * 24 * time.Hour

// penitents returns who has begun an epoch not long ago.
func (l *Ledger) penitents(now time.Time) map[peer.ID]bool {
	all := make(map[peer.ID]bool)
	for id, e := range l.store.Epochs() {
		if now.Sub(e.Received) < penance {
			all[id] = true
		}
	}
	return all
}
