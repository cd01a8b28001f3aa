// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// Limits on asking peers.
const (
	// headsEvery is how often peers are asked for the heads that they hold: who shows one log
	// to one peer and another to another shall not do so for long.
	headsEvery = 10 * time.Second
	askAgain   = 3 * time.Second // after it came
	askPeers   = 16              // in one round
	askAtOnce  = 4
	maxKicked  = 8 // asked beside the rounds, as they came
	// askWithin bounds one request, roundWithin all that one peer is asked in a round.
	askWithin   = 30 * time.Second
	headWithin  = 15 * time.Second
	roundWithin = 2 * time.Minute
	// textsARound is how many texts of comments are asked for.
	textsARound = 64
)

// askEvery is how often peers are asked for all that they have. A variable for tests.
var askEvery = time.Minute

// keepInStep asks peers for what they have: each when it comes, and some every minute.
func (l *Ledger) keepInStep() error {
	sub, err := l.node.Host.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted), eventbus.Name("ledger"), eventbus.BufSize(256))
	if err != nil {
		return err
	}
	l.running.Go(func() {
		defer sub.Close()
		for {
			select {
			case <-l.ctx.Done():
				return
			case ev := <-sub.Out():
				id, ok := ev.(event.EvtPeerIdentificationCompleted)
				if !ok || !slices.Contains(id.Protocols, wire.InboxProtocol) {
					continue
				}
				l.kick(id.Peer)
				// It may not show its log before it has asked us for that; and what is
				// published before the topics have met is lost.
				time.AfterFunc(askAgain, func() { l.kick(id.Peer) })
			}
		}
	})
	l.running.Go(l.rounds)
	l.running.Go(l.newcomers)
	return nil
}

// kick has a peer asked now. When too many are, the next round asks it.
func (l *Ledger) kick(id peer.ID) {
	select {
	case l.kicks <- id:
	default:
	}
}

// newcomers asks peers as they come, until the ledger is closed: some beside each other, so
// that a slow one keeps nobody waiting. One that is being asked is not asked again.
func (l *Ledger) newcomers() {
	asked := make(map[peer.ID]bool)
	done := make(chan peer.ID, maxKicked)
	for {
		select {
		case <-l.ctx.Done():
			return
		case id := <-done:
			delete(asked, id)
		case id := <-l.kicks:
			if asked[id] || len(asked) >= maxKicked {
				continue // the next round asks it
			}
			asked[id] = true
			l.running.Go(func() {
				l.round([]peer.ID{id})
				done <- id
			})
		}
	}
}

// rounds asks peers until the ledger is closed.
func (l *Ledger) rounds() {
	l.round(l.peers())
	tick, heads := time.NewTicker(askEvery), time.NewTicker(headsEvery)
	defer tick.Stop()
	defer heads.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-heads.C:
			l.each(l.peers(), headWithin, l.askHeads)
		case <-tick.C:
			l.round(l.peers())
			l.alarm(l.store.Sweep(l.ctx))
		}
	}
}

// peers returns peers with a ledger: the bootstrap nodes first, then any.
func (l *Ledger) peers() []peer.ID {
	bootstrap := make(map[peer.ID]bool)
	for _, b := range l.node.Bootstrap() {
		bootstrap[b.ID] = true
	}
	var first, rest []peer.ID
	for _, id := range l.node.Host.Network().Peers() { // in random order: of a map
		if !l.speaks(id) {
			continue
		}
		if bootstrap[id] {
			first = append(first, id)
		} else {
			rest = append(rest, id)
		}
	}
	all := append(first, rest...)
	return all[:min(len(all), askPeers)]
}

// speaks reports whether a peer has a ledger, by what it has said of itself.
func (l *Ledger) speaks(id peer.ID) bool {
	has, err := l.node.Host.Peerstore().SupportsProtocols(id, wire.InboxProtocol)
	return err == nil && len(has) > 0
}

// round asks some peers for all that they have. Who has much is still being asked in the next round.
func (l *Ledger) round(ids []peer.ID) {
	l.each(ids, roundWithin, func(ctx context.Context, id peer.ID) error {
		if _, is := l.asking.LoadOrStore(id, true); is {
			return nil
		}
		defer l.asking.Delete(id)
		if err := l.ask(ctx, id); err != nil {
			return err
		}
		if !l.confirmed.Load() {
			l.asked(id)
		}
		return nil
	})
	l.texts(ids)
}

// each asks some peers for something.
func (l *Ledger) each(ids []peer.ID, within time.Duration, ask func(context.Context, peer.ID) error) {
	var wait sync.WaitGroup
	turns := make(chan struct{}, askAtOnce)
	for _, id := range ids {
		turns <- struct{}{}
		wait.Go(func() {
			defer func() { <-turns }()
			ctx, cancel := context.WithTimeout(l.ctx, within)
			defer cancel()
			if err := ask(ctx, id); err != nil {
				l.node.Log().Debug("a peer was not asked for all of its ledger", zap.Stringer("peer", id), zap.Error(err))
			}
		})
	}
	wait.Wait()
}

// ask asks one peer for the notices that it has, its log, the heads that it holds, and its inbox.
func (l *Ledger) ask(ctx context.Context, id peer.ID) error {
	err := l.askNotices(ctx, id)
	if err != nil {
		err = fmt.Errorf("notices: %w", err)
	}
	return errors.Join(err, l.askLogs(ctx, id)) // without notices, the rest is worth as much
}

// askLogs asks one peer for its log, the heads that it holds, and its inbox.
func (l *Ledger) askLogs(ctx context.Context, id peer.ID) error {
	if err := l.askHeads(ctx, id); err != nil {
		return fmt.Errorf("heads: %w", err)
	}
	if err := l.askLog(ctx, id); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	if err := l.askInbox(ctx, id); err != nil {
		return fmt.Errorf("inbox: %w", err)
	}
	if err := l.readHeads(ctx, id, 0); err != nil { // of the logs that have just come
		return fmt.Errorf("heads: %w", err)
	}
	return nil
}

// askLog fetches what is new in a peer's log, and holds it against the head that it signs.
func (l *Ledger) askLog(ctx context.Context, id peer.ID) error {
	var head *wire.Head
	err := l.request(ctx, id, wire.HeadProtocol, headWithin, nil, func(r io.Reader) (err error) {
		head, err = wire.ReadHead(r)
		return err
	})
	if err != nil || head == nil {
		return err
	}
	if head.Peer != id {
		return fmt.Errorf("%w: the head is of %s", wire.ErrBad, head.Peer)
	}
	ahead, err := l.observe(head)
	l.tell(head)
	for err == nil && ahead {
		var before, after uint64
		if before, err = l.store.Size(ctx, id); err != nil {
			return err
		}
		var items []wire.Item
		if items, err = l.page(ctx, id, wire.LogProtocol, before+1, min(head.Size-before, wire.MaxPage)); err != nil {
			return err
		}
		if err = l.takeItems(items, id); err != nil {
			return err
		}
		if after, err = l.store.Size(ctx, id); err != nil {
			return err
		}
		if after <= before {
			return fmt.Errorf("%w: the peer does not show the entries of which it has signed %d", wire.ErrBad, head.Size)
		}
		ahead, err = l.observe(head)
	}
	return err
}

// page fetches a page of entries.
func (l *Ledger) page(ctx context.Context, id peer.ID, p protocol.ID, from, count uint64) (items []wire.Item, err error) {
	err = l.request(ctx, id, p, askWithin,
		func(w io.Writer) error { return wire.WriteRange(w, wire.Range{From: from, Count: count}) },
		func(r io.Reader) (err error) {
			items, err = wire.ReadPage(r, count)
			return err
		})
	return items, err
}

// request makes one request to a peer that is connected.
func (l *Ledger) request(ctx context.Context, id peer.ID, p protocol.ID, within time.Duration, ask func(io.Writer) error, read func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(network.WithNoDial(ctx, "ledger"), within)
	defer cancel()
	return l.exchange(ctx, id, p, ask, read)
}

// exchange makes one request to a peer, until the deadline of ctx.
func (l *Ledger) exchange(ctx context.Context, id peer.ID, p protocol.ID, ask func(io.Writer) error, read func(io.Reader) error) error {
	s, err := l.node.Host.NewStream(network.WithAllowLimitedConn(ctx, "ledger"), id, p)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	deadline, _ := ctx.Deadline()
	_ = s.SetDeadline(deadline)
	if ask != nil {
		err = ask(s)
	}
	if err == nil {
		err = s.CloseWrite()
	}
	if err == nil {
		err = read(s)
	}
	if err != nil {
		_ = s.Reset()
		return err
	}
	return s.Close()
}

// texts fetches the texts of comments that are missing: from their authors, or else from
// the peers that were asked.
func (l *Ledger) texts(ids []peer.ID) {
	if len(ids) == 0 {
		return
	}
	wanted, err := l.store.Wanted(l.ctx, textsARound)
	if err != nil {
		l.alarm(err)
		return
	}
	ctx, cancel := context.WithTimeout(l.ctx, roundWithin)
	defer cancel()
	for _, w := range wanted {
		for _, id := range append([]peer.ID{w.Author}, ids[:min(len(ids), 4)]...) {
			if id == l.store.Self() || l.node.Host.Network().Connectedness(id) == network.NotConnected {
				continue
			}
			if l.text(ctx, id, w.CID) == nil {
				break
			}
		}
	}
}

// text fetches the text of a comment from a peer.
func (l *Ledger) text(ctx context.Context, id peer.ID, cid []byte) error {
	var text []byte
	err := l.request(ctx, id, wire.CommentProtocol, askWithin,
		func(w io.Writer) error { return wire.WriteBytes(w, cid) },
		func(r io.Reader) (err error) {
			text, err = wire.ReadComment(r, cid)
			return err
		})
	if err != nil {
		return err
	}
	if err := l.store.PutComment(ctx, cid, text); !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return nil
}
