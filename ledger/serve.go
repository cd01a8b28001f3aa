// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	manet "github.com/multiformats/go-multiaddr/net"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// Limits on what is served. A request has a place among the open ones from its first byte on,
// and one among those that are answered once it has come whole: who asks slowly keeps nobody
// else waiting. Peer ids are free, so there is a limit for an IP address too.
const (
	maxOpen     = 1024
	maxOpenOfIP = 128
	maxOfOne    = 4 // open ones of one peer, which asks for one thing after another
	maxBusy     = 32
	maxBusyOfIP = 16
	readWithin  = 3 * time.Second
	serveWithin = 30 * time.Second
)

// errBusy says that there is no place for a request.
var errBusy = errors.New("too many requests")

// request reads a request, and returns what answers it.
type request func(io.Reader) (reply, error)

// reply writes an answer.
type reply func(io.Writer) error

// protocols are those that the ledger serves.
var protocols = []protocol.ID{wire.HeadProtocol, wire.LogProtocol, wire.InboxProtocol, wire.CommentProtocol, wire.HeadsProtocol, wire.AlertsProtocol, wire.EpochsProtocol}

// serve registers the protocols.
func (l *Ledger) serve() {
	for i, read := range []request{l.serveHead, l.pages(l.store.Log), l.pages(l.store.Inbox), l.serveComment, l.pages(l.store.Heads), l.pages(l.store.Alerts), l.pages(l.store.EpochPage)} {
		l.node.Host.SetStreamHandler(protocols[i], func(s network.Stream) { l.answer(s, &l.serving, read) })
	}
	l.witnessing()
}

// counter is where requests are answered.
type counter struct {
	open, busy places
}

func newCounter() counter {
	return counter{
		open: places{most: maxOpen, ofIP: maxOpenOfIP, ofPeer: maxOfOne},
		busy: places{most: maxBusy, ofIP: maxBusyOfIP, ofPeer: maxOfOne},
	}
}

// places are those of requests.
type places struct {
	most, ofIP, ofPeer int

	mu     sync.Mutex
	taken  map[string]int // by peer id and by IP address
	all    int
	closed bool
	used   sync.WaitGroup
}

// take takes a place for a request that comes by a connection; false when there is none.
func (p *places) take(c network.Conn) bool {
	id, ip := string(c.RemotePeer()), addressOf(c)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.all >= p.most || p.taken[id] >= p.ofPeer || p.taken[ip] >= p.ofIP {
		return false
	}
	if p.taken == nil {
		p.taken = make(map[string]int)
	}
	p.taken[id]++
	p.taken[ip]++
	p.all++
	p.used.Add(1)
	return true
}

// give gives a place back.
func (p *places) give(c network.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range []string{string(c.RemotePeer()), addressOf(c)} {
		if p.taken[key]--; p.taken[key] == 0 {
			delete(p.taken, key)
		}
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

// addressOf returns the IP address that a connection comes from, of version 6 the prefix that one
// customer gets. Who comes by a relay has that of the relay.
func addressOf(c network.Conn) string {
	ip, err := manet.ToIP(c.RemoteMultiaddr())
	if err != nil {
		return "none"
	}
	if ip.To4() == nil {
		ip = ip.Mask(net.CIDRMask(56, 128))
	}
	return ip.String()
}

// answer answers one request. When there is no place for it, or the ledger is closed, the stream
// is reset.
func (l *Ledger) answer(s network.Stream, at *counter, read request) {
	if !at.open.take(s.Conn()) {
		_ = s.Reset()
		return
	}
	defer at.open.give(s.Conn())
	defer context.AfterFunc(l.ctx, func() { _ = s.Reset() })()
	if err := serveStream(s, &at.busy, read); err != nil {
		_ = s.Reset()
		if errors.Is(err, store.ErrDamaged) {
			l.alarm(err)
		}
		l.node.Log().Debug("a request for the ledger was not answered", zap.Stringer("peer", s.Conn().RemotePeer()), zap.Error(err))
		return
	}
	_ = s.Close()
}

// serveStream reads the request of a stream, takes a place for it, and writes the answer.
func serveStream(s network.Stream, busy *places, read request) error {
	_ = s.SetDeadline(time.Now().Add(readWithin))
	write, err := read(s)
	if err != nil {
		return err
	}
	if !busy.take(s.Conn()) {
		return errBusy
	}
	defer busy.give(s.Conn())
	_ = s.SetDeadline(time.Now().Add(serveWithin))
	var out bytes.Buffer
	if err := write(&out); err != nil {
		return err
	}
	_, err = s.Write(out.Bytes())
	return err
}

// pages answers requests for a page of something.
func (l *Ledger) pages(of func(context.Context, wire.Range) ([]wire.Item, error)) request {
	return func(r io.Reader) (reply, error) {
		asked, err := wire.ReadRange(r)
		return func(w io.Writer) error {
			items, err := of(l.ctx, asked)
			if err != nil {
				return err
			}
			return wire.WritePage(w, items)
		}, err
	}
}

// serveHead answers with the head of the own log that others may see.
func (l *Ledger) serveHead(io.Reader) (reply, error) {
	return func(w io.Writer) error {
		h, err := l.public()
		if err != nil {
			return err
		}
		if h == nil {
			return wire.WriteBytes(w, nil)
		}
		return wire.WriteBytes(w, h.Marshal())
	}, nil
}

// public returns the head of the own log that others may see; nil for none. There is one once
// peers were asked whether it is the newest, and while it may be continued: else it may not be
// that of what was published.
func (l *Ledger) public() (*wire.Head, error) {
	if !l.confirmed.Load() || l.store.MaySign() != nil {
		return nil, nil
	}
	return l.shown()
}

func (l *Ledger) serveComment(r io.Reader) (reply, error) {
	cid, err := wire.ReadCID(r)
	return func(w io.Writer) error {
		text, err := l.store.Comment(l.ctx, cid)
		if errors.Is(err, store.ErrNotFound) {
			return wire.WriteNoComment(w, "not found")
		}
		if err != nil {
			return err
		}
		return wire.WriteBytes(w, text)
	}, err
}
