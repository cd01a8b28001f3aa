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
	"github.com/Agent-FM/caddy-agentfm/internal/limit"
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
	clients *limit.Table[string]

	gossip    gossip
	cosigning cosigning
	serving   counter
	showing   sync.Mutex   // held while it changes whether the own log may be shown, and while it is continued
	confirmed atomic.Bool  // peers were asked for what they have of the own log
	kicks     chan peer.ID // peers that came
	asking    sync.Map     // who is being asked for all that it has
	heads     struct {     // how far the heads of peers were read
		sync.Mutex
		seen map[peer.ID]headCursor
		told map[peer.ID]wire.Hash // the root of the last that was shown to the mesh
		// forks are who is known to have signed one that is not of the entries.
		forks map[peer.ID]bool
	}
	logs     atomic.Uint64 // of which the first entry was stored
	opened   time.Time
	answered struct { // who has, until the own log is confirmed
		sync.Mutex
		any bool             // some peer
		of  map[peer.ID]bool // which bootstrap nodes
		as  map[peer.ID]bool // which witnesses have said what they have signed
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

// How long this node waits for bootstrap nodes and witnesses before it believes other peers that
// it has published nothing else: for those that it cannot reach, and for those that do not answer.
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
	if s.Resumed() {
		node.Log().Info("the recovery of this node's log, which had not ended when it was stopped, was ended")
	}
	l := &Ledger{node: node, store: s, dir: dir, kicks: make(chan peer.ID, 64), opened: time.Now(), first: first, parts: newParts(), serving: newCounter(), cosigning: newCosigning(), clients: newClients()}
	l.gate.dirty, l.gate.fresh = make(chan struct{}, 1), make(map[string]store.Tally)
	l.answered.of, l.answered.as = make(map[peer.ID]bool), make(map[peer.ID]bool)
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
	l.running.Go(l.confirming)
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
	l.showing.Lock()
	public := l.confirmed.Load()
	err := l.store.Append(ctx, e, text, public)
	l.showing.Unlock()
	if err != nil {
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

// asked says that a peer was asked for all that it has.
func (l *Ledger) asked(id peer.ID) {
	l.answered.Lock()
	l.answered.any = true
	for _, b := range l.node.Bootstrap() {
		if b.ID == id {
			l.answered.of[id] = true
		}
	}
	l.answered.Unlock()
	l.confirm()
}

// confirming asks the witnesses what they have signed of the own log, until that is confirmed.
func (l *Ledger) confirming() {
	for !l.confirmed.Load() {
		l.askWitnesses()
		l.confirm()
		if !l.pause(askAgain) {
			return
		}
	}
}

// pause reports whether the ledger is still open after some time.
func (l *Ledger) pause(d time.Duration) bool {
	select {
	case <-l.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// confirm says that the own log may be shown, once a peer was asked, and those who know the most
// of it: the bootstrap nodes and the witnesses.
func (l *Ledger) confirm() {
	if !l.confirmed.Load() && !l.waiting() {
		l.publishAll()
	}
}

// publishAll shows all of the own log to others.
func (l *Ledger) publishAll() {
	l.showing.Lock()
	fresh, err := l.store.Publish(l.ctx)
	if err == nil {
		l.confirmed.Store(true)
	}
	l.showing.Unlock()
	if err != nil {
		l.alarm(err)
		return
	}
	l.cosigning.sign()
	for _, e := range fresh {
		l.gossip.publish(e)
	}
}

// waiting reports whether the own log is not confirmed yet. As many witnesses as must sign a
// head must have answered: without them nobody would be shown one.
func (l *Ledger) waiting() bool {
	l.answered.Lock()
	defer l.answered.Unlock()
	for _, b := range l.node.Bootstrap() {
		if !l.answered.of[b.ID] && l.awaits(b.ID) {
			return true
		}
	}
	s, answers := l.settings(), 0
	for _, id := range s.Witnesses {
		switch {
		case l.answered.as[id]:
			answers++
		case l.awaits(id):
			return true
		}
	}
	return !l.answered.any || answers < s.Quorum
}

// alone reports whether there is nobody to ask, and nobody was.
func (l *Ledger) alone() bool {
	l.answered.Lock()
	defer l.answered.Unlock()
	return !l.answered.any && len(l.node.Bootstrap()) == 0 && len(l.settings().Witnesses) == 0
}

// awaits reports whether the answer of a bootstrap node or a witness may still come.
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
// minute. What ends soon by itself is not said.
func (l *Ledger) alarm(err error) {
	if err == nil || l.ctx.Err() != nil || errors.Is(err, store.ErrRecovering) || errors.Is(err, store.ErrVoiding) {
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
		l.node.Log().Error("this node signs no more: its log was continued by another process with its key, or a store was restored that is older than what was published; see `caddy agentfm reputation recover`", zap.Error(err))
	case errors.Is(err, store.ErrOther):
		l.node.Log().Error("this node signs no more before it is restarted", zap.Error(err))
	case errors.Is(err, store.ErrBehind):
		l.node.Log().Warn("this node does not sign before a peer has given back what its store has lost", zap.Error(err))
	default:
		l.node.Log().Error("the ledger fails", zap.Error(err))
	}
}

// Interface guard
var _ mesh.Attachment = (*Ledger)(nil)
