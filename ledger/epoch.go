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

// ErrAsking says that not all were asked yet who may know more of the own log.
var ErrAsking = errors.New("this node has not yet asked its peers, bootstrap nodes and witnesses what they have of its log; try again in two minutes")

// Recover begins the epoch of the own log, which was continued twice by accident: see
// [store.Store.Recover]. Peers, bootstrap nodes and witnesses must have been asked for what they
// have of it. It returns how many entries stay as they were.
func (l *Ledger) Recover(ctx context.Context) (kept uint64, err error) {
	if !l.confirmed.Load() && l.waiting() {
		return 0, ErrAsking
	}
	e, err := l.store.Recover(ctx)
	if err != nil {
		return 0, err
	}
	l.node.Log().Warn("this node has begun a new epoch of its log", zap.Uint64("kept", e.Size))
	l.news()
	l.announce(e)
	l.publishAll()
	return e.Size, nil
}

// announce tells the mesh of an epoch.
func (l *Ledger) announce(e *wire.Epoch) {
	if err := l.gossip.epochs.Publish(l.ctx, e.Marshal()); err != nil && l.ctx.Err() == nil {
		l.node.Log().Debug("publishing an epoch", zap.Error(err))
	}
}

// validateEpoch is the validator of epochs. One that is known is no news.
func (l *Ledger) validateEpoch(ctx context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
	e, err := wire.ParseEpoch(m.GetData())
	if err == nil && from != l.store.Self() {
		if known, err := l.store.Knows(ctx, e); err != nil || known {
			return pubsub.ValidationIgnore
		}
	}
	if err == nil {
		err = e.Verify()
	}
	if err == nil && from != l.store.Self() && (l.store.MayDeclare(ctx, e.Peer) != nil || !l.gossip.declared.admit(e.Peer)) {
		err = errLater
	}
	m.ValidatorData = e
	return judge(err, from, m)
}

// takeEpochs takes in the epochs that gossip brings.
func (l *Ledger) takeEpochs(sub *pubsub.Subscription) {
	for {
		m, err := sub.Next(l.ctx)
		if err != nil {
			return
		}
		if e, ok := m.ValidatorData.(*wire.Epoch); ok && m.GetFrom() != l.store.Self() {
			l.declared(e)
		}
	}
}

// declaration takes in an epoch that a peer holds. One that is news is told to the mesh.
func (l *Ledger) declaration(ctx context.Context, b []byte) error {
	e, err := wire.ParseEpoch(b)
	if err != nil || l.store.MayDeclare(ctx, e.Peer) != nil {
		return err
	}
	if known, err := l.store.Knows(ctx, e); err != nil || known {
		return err
	}
	if err := e.Verify(); err != nil {
		return err
	}
	if l.declared(e) && l.gossip.declared.admit(e.Peer) {
		l.announce(e)
	}
	return nil
}

// declared takes in an epoch, and reports whether it is news.
func (l *Ledger) declared(e *wire.Epoch) bool {
	news, err := l.store.Declared(l.ctx, e)
	if err != nil && !errors.Is(err, store.ErrQuota) && !errors.Is(err, store.ErrFuture) {
		l.alarm(err)
	}
	if news {
		l.news()
		what := "a peer has begun a new epoch of its log: what it signed before, behind what it keeps, is void"
		if l.store.Equivocators()[e.Peer] {
			what = "a peer has begun a second epoch of its log, or signed two logs in its first"
		}
		l.node.Log().Warn(what, zap.Stringer("peer", e.Peer), zap.Uint64("kept", e.Size))
	}
	return news
}

// penance is for how long who has begun an epoch is trusted no further than a newcomer.
const penance = 30 * 24 * time.Hour

// penitents returns who has begun an epoch not long ago.
func (l *Ledger) penitents(now time.Time) map[peer.ID]bool {
	all := make(map[peer.ID]bool)
	for id, e := range l.store.Epochs() {
		if now.Sub(time.Unix(0, e.Time)) < penance {
			all[id] = true
		}
	}
	return all
}
