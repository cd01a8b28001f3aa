// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"crypto/sha256"
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
	// headPages is how many pages of heads one peer is asked for at once: the rest comes in the
	// next round. There are headsOfOne of one log at most: see [store.Store.Heads].
	headPages  = 4
	headsOfOne = 3
	// headSignatures is how many signatures of witnesses are verified at once, about.
	headSignatures = 1024
)

// headCursor is how far the heads of a peer were read.
type headCursor struct {
	row  uint64
	last wire.Hash // of what that row had
	logs uint64    // that were known then
	anew time.Time // when they were read from the first on

	notices notices
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
		c = headCursor{logs: logs, anew: time.Now(), notices: c.notices}
	}
	signatures := 0
	for range headPages {
		more, err := l.readHeadPage(ctx, id, &c, &signatures)
		if err != nil {
			return err
		}
		l.sawHeads(id, c)
		if !more {
			return nil
		}
	}
	return nil
}

// readHeadPage fetches and takes in a page of a peer's heads, and reports whether there are
// more to be read now. A peer that shows what it cannot have verified itself is left. The page
// begins with the last row that is known: when there is none, or it is another, the peer has a
// new store, of which nothing was read.
func (l *Ledger) readHeadPage(ctx context.Context, id peer.ID, c *headCursor, signatures *int) (more bool, err error) {
	items, err := l.page(ctx, id, wire.HeadsProtocol, max(c.row, 1)-1, wire.MaxPage)
	if err != nil {
		return false, err
	}
	more = len(items) == wire.MaxPage
	if c.row > 0 {
		switch {
		case len(items) == 0 || items[0].Index == c.row && sha256.Sum256(items[0].Entry) != c.last:
			c.row = 0
			return true, nil
		case items[0].Index == c.row:
			items = items[1:]
		}
	}
	of := make(map[peer.ID]int)
	for _, i := range items {
		if i.Index <= c.row {
			return false, fmt.Errorf("%w: the rows do not grow", wire.ErrBad)
		}
		if *signatures >= headSignatures {
			return false, nil
		}
		c.row, c.last = i.Index, sha256.Sum256(i.Entry)
		h, err := wire.ParseHead(i.Entry)
		if err != nil {
			continue
		}
		if of[h.Peer]++; of[h.Peer] > headsOfOne {
			return false, fmt.Errorf("%w: more than %d heads of one log", wire.ErrBad, headsOfOne)
		}
		*signatures += len(h.Witnesses)
		if h.Verify() != nil || len(h.Checked().Witnesses) < len(h.Witnesses) {
			return false, fmt.Errorf("a head of %s: %w", h.Peer, wire.ErrSignature)
		}
		if err := l.heard(ctx, h); err != nil {
			return false, err
		}
	}
	return more, nil
}

// heard takes in a head that a peer holds. That it is not of the entries that are stored is not
// the peer's fault.
func (l *Ledger) heard(ctx context.Context, h *wire.Head) (err error) {
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
		l.warnFork(h.Peer, err)
	case errors.Is(err, wire.ErrSignature), errors.Is(err, wire.ErrBad):
	default:
		return err
	}
	return nil
}

// warnFork logs that a peer has signed a head that is not of its entries: once, and of a bounded
// number of peers.
func (l *Ledger) warnFork(id peer.ID, err error) {
	l.heads.Lock()
	defer l.heads.Unlock()
	if l.heads.forks == nil {
		l.heads.forks = make(map[peer.ID]bool)
	}
	if l.heads.forks[id] || len(l.heads.forks) >= maxHeadCursors {
		return
	}
	l.heads.forks[id] = true
	l.node.Log().Warn("a peer has signed a head that is not that of its entries", zap.Stringer("peer", id), zap.Error(err))
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

// validateHead is the validator of heads. One that says nothing new here may be news behind this node; but
// anybody can send it again, so that it spends nothing of what its owner may send that is new.
func (l *Ledger) validateHead(_ context.Context, from peer.ID, m *pubsub.Message) pubsub.ValidationResult {
	h, err := wire.ParseHead(m.GetData())
	if err == nil && (len(h.Witnesses) > 0 || h.Anchor != "") {
		err = fmt.Errorf("%w: a head has nothing but its owner's signature here", wire.ErrBad)
	}
	if err == nil && l.store.Voided(h) {
		return pubsub.ValidationIgnore
	}
	if err == nil {
		err = h.Verify()
	}
	if err == nil && from != l.store.Self() {
		rate := l.gossip.owners
		if known, bad := l.store.Holds(h); bad == nil && known {
			rate = l.gossip.repeated
		}
		if !rate.admit(h.Peer) {
			err = errLater
		}
	}
	m.ValidatorData = h
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
			if h, ok := m.ValidatorData.(*wire.Head); ok {
				l.alarm(l.heard(l.ctx, h))
			}
		}
	}
}
