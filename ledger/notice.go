// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

const (
	// noticesAnew is how often all of a peer's notices are read again: what was refused for
	// being too much may be welcome, and the peer may have a new store.
	noticesAnew = 10 * time.Minute
	// noticePages is how many pages of them one peer is asked for at once: the rest comes in the
	// next round.
	noticePages = 12
	// badNotices is how many that are none, or prove nothing, are passed over: a peer that shows more
	// is left for this round.
	badNotices = 16
)

// notices is how far a peer's notices were read: its evidence against equivocators, and the epochs
// that it knows. Gossip tells of them, to who is there at that moment.
type notices struct {
	anew           time.Time // when they were read from the first on
	epochs, alerts uint64    // the last rows
}

// askNotices fetches the notices that a peer has got since it was asked last. The epochs come first,
// which clear some of whom there is evidence against.
func (l *Ledger) askNotices(ctx context.Context, id peer.ID) error {
	n := l.headsSeen(id).notices
	if time.Since(n.anew) >= noticesAnew {
		n = notices{anew: time.Now()}
	}
	err := errors.Join(
		l.readNotices(ctx, id, wire.EpochsProtocol, &n.epochs, l.epochNotice),
		l.readNotices(ctx, id, wire.AlertsProtocol, &n.alerts, l.accusation),
	)
	c := l.headsSeen(id)
	c.notices = n
	l.sawHeads(id, c)
	return err
}

// readNotices fetches those of one kind, after a row.
func (l *Ledger) readNotices(ctx context.Context, id peer.ID, p protocol.ID, last *uint64, take func(context.Context, []byte) error) error {
	has, err := l.node.Host.Peerstore().SupportsProtocols(id, p)
	if err != nil || len(has) == 0 {
		return err
	}
	bad := 0
	for range noticePages {
		items, err := l.page(ctx, id, p, *last, wire.MaxPage)
		if err != nil {
			return err
		}
		for _, i := range items {
			if i.Index <= *last {
				return fmt.Errorf("%w: the rows do not grow", wire.ErrBad)
			}
			*last = i.Index
			if err := take(ctx, i.Entry); err != nil {
				l.node.Log().Debug("a peer holds a notice that proves nothing", zap.Stringer("peer", id), zap.Error(err))
				if bad++; bad >= badNotices {
					return nil
				}
			}
		}
		if len(items) < wire.MaxPage {
			break
		}
	}
	return nil
}

// accusation takes in an alert that a peer holds. One against a known equivocator, or that an epoch
// has cleared, or of which there are too many, is not even verified. One that is news is told to the
// mesh: what gossip brings of it will be none here any more, and is not relayed to those behind
// this node.
func (l *Ledger) accusation(ctx context.Context, b []byte) error {
	a, err := wire.ParseAlert(b)
	if err != nil {
		return err
	}
	if l.store.Equivocators()[a.Peer] || l.store.Cleared(a) || l.store.MayAccuse(ctx, a.Peer) != nil {
		return nil
	}
	if err := a.Verify(); err != nil {
		return err
	}
	l.accuse(a)
	if l.gossip.accused.admit(a.Peer) {
		l.spread(a)
	}
	return nil
}
