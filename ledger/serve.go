// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// Limits on what is served.
const (
	maxServing  = 32 // requests at one time
	maxOfOne    = 4  // of them, for one peer, which asks for one thing after another
	serveWithin = 30 * time.Second
)

// protocols are those that the ledger serves.
var protocols = []protocol.ID{wire.HeadProtocol, wire.LogProtocol, wire.InboxProtocol, wire.CommentProtocol, wire.HeadsProtocol, wire.AlertsProtocol}

// serve registers the protocols.
func (l *Ledger) serve() {
	for i, answer := range []func(io.Reader, io.Writer) error{l.serveHead, l.serveLog, l.serveInbox, l.serveComment, l.serveHeads, l.serveAlerts} {
		l.node.Host.SetStreamHandler(protocols[i], func(s network.Stream) { l.answer(s, answer) })
	}
	l.witnessing()
}

// places are those of the requests that are being answered.
type places struct {
	mu     sync.Mutex
	taken  map[peer.ID]int
	all    int
	closed bool
	used   sync.WaitGroup
}

// take takes a place for a peer's request; false when there is none.
func (p *places) take(id peer.ID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.all >= maxServing || p.taken[id] >= maxOfOne {
		return false
	}
	if p.taken == nil {
		p.taken = make(map[peer.ID]int)
	}
	p.taken[id]++
	p.all++
	p.used.Add(1)
	return true
}

// give gives a place back.
func (p *places) give(id peer.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken[id]--; p.taken[id] == 0 {
		delete(p.taken, id)
	}
	p.all--
	p.used.Done()
}

// close gives out no more places, and waits for those that are taken.
func (p *places) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.used.Wait()
}

// answer answers one request. When too many are being answered, of all or of the peer, or the
// ledger is closed, the stream is reset.
func (l *Ledger) answer(s network.Stream, answer func(io.Reader, io.Writer) error) {
	from := s.Conn().RemotePeer()
	if !l.serving.take(from) {
		_ = s.Reset()
		return
	}
	defer l.serving.give(from)
	defer context.AfterFunc(l.ctx, func() { _ = s.Reset() })()
	_ = s.SetDeadline(time.Now().Add(serveWithin))
	var out bytes.Buffer
	err := answer(s, &out)
	if err == nil {
		_, err = s.Write(out.Bytes())
	}
	if err != nil {
		_ = s.Reset()
		if errors.Is(err, store.ErrDamaged) {
			l.alarm(err)
		}
		l.node.Log().Debug("a request for the ledger was not answered", zap.Stringer("peer", from), zap.Error(err))
		return
	}
	_ = s.Close()
}

// serveHead answers with the head of the own log, once peers were asked whether it is the
// newest, and while it may be continued: else it may not be that of what was published.
func (l *Ledger) serveHead(_ io.Reader, w io.Writer) error {
	h, err := l.shown()
	if err != nil {
		return err
	}
	if h == nil || !l.confirmed.Load() || l.store.MaySign() != nil {
		return wire.WriteBytes(w, nil)
	}
	return wire.WriteBytes(w, h.Marshal())
}

func (l *Ledger) serveLog(r io.Reader, w io.Writer) error { return l.servePage(r, w, l.store.Log) }

func (l *Ledger) serveInbox(r io.Reader, w io.Writer) error { return l.servePage(r, w, l.store.Inbox) }

func (l *Ledger) serveHeads(r io.Reader, w io.Writer) error { return l.servePage(r, w, l.store.Heads) }

func (l *Ledger) serveAlerts(r io.Reader, w io.Writer) error {
	return l.servePage(r, w, l.store.Alerts)
}

// servePage answers with a page of what the store has.
func (l *Ledger) servePage(r io.Reader, w io.Writer, read func(context.Context, wire.Range) ([]wire.Item, error)) error {
	asked, err := wire.ReadRange(r)
	if err != nil {
		return err
	}
	items, err := read(l.ctx, asked)
	if err != nil {
		return err
	}
	return wire.WritePage(w, items)
}

func (l *Ledger) serveComment(r io.Reader, w io.Writer) error {
	cid, err := wire.ReadCID(r)
	if err != nil {
		return err
	}
	text, err := l.store.Comment(l.ctx, cid)
	if errors.Is(err, store.ErrNotFound) {
		return wire.WriteNoComment(w, "not found")
	}
	if err != nil {
		return err
	}
	return wire.WriteBytes(w, text)
}
