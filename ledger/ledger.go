// SPDX-License-Identifier: Apache-2.0

// Package ledger is the reputation ledger of a gateway: what it and others say of the
// workers of a mesh, signed and in order, and what follows from that. It spreads entries
// by gossip, and repairs with its peers what gossip has lost.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/lifetime"
	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// Ledger is the ledger of the process. It lives with the node.
type Ledger struct {
	node    mesh.Node
	store   *store.Store
	dir     string
	first   Settings // of the configuration that opened it
	parts   *lifetime.Lifetime[*Part]
	gate    gate
	clients clients

	gossip    gossip
	cosigning cosigning
	serving   counter
	confirmed atomic.Bool  // peers were asked for what they have of the own log
	kicks     chan peer.ID // peers that came
	heads     struct {     // how far the heads of peers were read
		sync.Mutex
		seen map[peer.ID]headCursor
		told map[peer.ID]wire.Hash // the root of the last that was shown to the mesh
		// forks are who is known to have signed one that is not of the entries.
		forks map[peer.ID]bool
	}
	logs     atomic.Uint64 // of which the first entry was stored
	opened   time.Time
	answered struct { // which bootstrap nodes have, until the own log is confirmed
		sync.Mutex
		of map[peer.ID]bool
	}

	alarms struct { // the last one
		sync.Mutex
		text string
		at   time.Time
	}

	running sync.WaitGroup
	cancel  context.CancelFunc
	ctx     context.Context
}

// How long this node waits for bootstrap nodes before it believes other peers that it has
// published nothing else: for those that it cannot reach, and for those that do not answer.
const (
	confirmWait = 15 * time.Second
	answerWait  = 2 * time.Minute
)

// Open opens the ledger in a folder, and takes part in the mesh's by the node. The settings
// are those until a [Part] has others.
func Open(node mesh.Node, dir string, first Settings) (*Ledger, error) {
	s, err := store.Open(dir, node.Key)
	if err != nil {
		return nil, err
	}
	l := &Ledger{node: node, store: s, dir: dir, kicks: make(chan peer.ID, 64), opened: time.Now(), first: first, parts: newParts(), serving: newCounter(), cosigning: newCosigning()}
	l.gate.dirty, l.gate.fresh = make(chan struct{}, 1), make(map[string]store.Tally)
	l.answered.of = make(map[peer.ID]bool)
	l.ctx, l.cancel = context.WithCancel(node.Context)
	if err := l.start(); err != nil {
		l.Close()
		return nil, fmt.Errorf("starting the ledger: %w", err)
	}
	return l, nil
}

// start begins the ledger's work on the mesh.
func (l *Ledger) start() error {
	if err := l.score(); err != nil {
		return err
	}
	if err := l.gossip.join(l); err != nil {
		return err
	}
	l.serve()
	l.node.Judge(l.judge)
	l.running.Go(l.watch)
	l.running.Go(l.seekSignatures)
	return l.keepInStep()
}

// Close ends the work and closes the store.
func (l *Ledger) Close() {
	l.cancel()
	for _, p := range protocols {
		l.node.Host.RemoveStreamHandler(p)
	}
	l.witnessing()
	l.gossip.leave()
	l.running.Wait()
	l.serving.open.close()
	l.cosigning.served.open.close()
	l.node.Trust(func(string) mesh.Trust { return mesh.Trusted }) // who cannot ask it any more is not to be judged by it
	if err := l.store.Close(); err != nil {
		l.node.Log().Warn("closing the ledger", zap.Error(err))
	}
}

// Append signs an entry as this node's and adds it to its log. The text is that of a
// comment. What is appended before peers were asked is shown to them afterwards.
func (l *Ledger) Append(ctx context.Context, e *wire.Entry, text []byte) error {
	public := l.confirmed.Load()
	if err := l.store.Append(ctx, e, text, public); err != nil {
		return err
	}
	l.node.Entry(e.Subject, e.Kind.String())
	l.news()
	if public {
		l.gossip.publish(e)
		l.cosigning.sign()
	}
	return nil
}

// confirm says that a peer was asked: once the bootstrap nodes were, which know the most, the
// own log may be shown.
func (l *Ledger) confirm(answered peer.ID) {
	l.answered.Lock()
	waiting := false
	for _, b := range l.node.Bootstrap() {
		if b.ID == answered {
			l.answered.of[b.ID] = true
		}
		waiting = waiting || !l.answered.of[b.ID] && l.awaits(b.ID)
	}
	l.answered.Unlock()
	if waiting {
		return
	}
	fresh, err := l.store.Publish(l.ctx)
	if err != nil {
		l.alarm(err)
		return
	}
	l.confirmed.Store(true)
	l.cosigning.sign()
	for _, e := range fresh {
		l.gossip.publish(e)
	}
}

// awaits reports whether the answer of a bootstrap node may still come.
func (l *Ledger) awaits(id peer.ID) bool {
	if id == l.store.Self() {
		return false
	}
	since := time.Since(l.opened)
	if l.node.Host.Network().Connectedness(id) == network.NotConnected {
		return since < confirmWait
	}
	has, err := l.node.Host.Peerstore().GetProtocols(id)
	if err == nil && len(has) > 0 && !l.speaks(id) {
		return false // it keeps no ledger
	}
	return since < answerWait
}

// alarm logs what keeps this node from signing, or that the store fails; the same once a
// minute.
func (l *Ledger) alarm(err error) {
	if err == nil || l.ctx.Err() != nil {
		return
	}
	l.alarms.Lock()
	repeated := l.alarms.text == err.Error() && time.Since(l.alarms.at) < time.Minute
	if !repeated {
		l.alarms.text, l.alarms.at = err.Error(), time.Now()
	}
	l.alarms.Unlock()
	if repeated {
		return
	}
	switch {
	case errors.Is(err, store.ErrForked):
		l.node.Log().Error("this node signs no more: its log was continued by another process with its key, or a store was restored that is older than what was published", zap.Error(err))
	case errors.Is(err, store.ErrBehind):
		l.node.Log().Warn("this node does not sign before a peer has given back what its store has lost", zap.Error(err))
	default:
		l.node.Log().Error("the ledger fails", zap.Error(err))
	}
}

// Interface guard
var _ mesh.Attachment = (*Ledger)(nil)
