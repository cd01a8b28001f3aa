// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// maxHeadCursors bounds the peers of which is known how far their heads were read.
const maxHeadCursors = 4096

// askHeads fetches the heads that a peer holds and has got since it was asked last: of this
// node's own log, which tells whether the store lacks something, and of others, which tells
// whether they show one log to one peer and another to another.
func (l *Ledger) askHeads(ctx context.Context, id peer.ID) error {
	has, err := l.node.Host.Peerstore().SupportsProtocols(id, wire.HeadsProtocol)
	if err != nil || len(has) == 0 {
		return err
	}
	for {
		from := l.headsSeen(id)
		items, err := l.page(ctx, id, wire.HeadsProtocol, from, wire.MaxPage)
		if err != nil {
			return err
		}
		for _, i := range items {
			if i.Index <= from {
				return fmt.Errorf("%w: the rows do not grow", wire.ErrBad)
			}
			from = i.Index
			if err := l.heard(ctx, i.Entry); err != nil {
				return err
			}
		}
		l.sawHeads(id, from)
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

// headsSeen returns the row up to which the heads of a peer were read.
func (l *Ledger) headsSeen(id peer.ID) uint64 {
	l.heads.Lock()
	defer l.heads.Unlock()
	return l.heads.seen[id]
}

func (l *Ledger) sawHeads(id peer.ID, row uint64) {
	l.heads.Lock()
	defer l.heads.Unlock()
	if len(l.heads.seen) >= maxHeadCursors || l.heads.seen == nil {
		l.heads.seen = make(map[peer.ID]uint64)
	}
	l.heads.seen[id] = row
}

// observe takes in a head, and tells the mesh when it contradicts another.
func (l *Ledger) observe(h *wire.Head) (ahead bool, err error) {
	evidence, ahead, err := l.store.Observe(l.ctx, h)
	if evidence != nil {
		l.equivocated(evidence)
	}
	return ahead, err
}
