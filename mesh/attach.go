// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// Node is the gateway's node as its attachments see it.
type Node struct {
	// Context ends when the node closes.
	Context context.Context
	// Host is the node's host, PubSub what it subscribes and publishes with.
	Host   *Host
	PubSub *pubsub.PubSub
	// Key is the node's identity.
	Key crypto.PrivKey
	// Bootstrap returns the nodes to stay connected to, by the newest configuration.
	Bootstrap func() []peer.AddrInfo
	// Entry tells subscribers of events that an entry of the ledger speaks of a known worker.
	Entry func(subject peer.ID, kind string)
	// Trust says how far workers are trusted, from now on.
	Trust func(func(worker string) Trust)
	// Judge sets who hears how a worker's task ended, well or by its own fault. It must
	// not block.
	Judge func(func(worker string, well bool))
	// Log returns the logger of the newest configuration.
	Log func() *zap.Logger
}

// Trust is how far a worker is trusted.
type Trust int

// Whether a worker gets tasks.
const (
	// Trusted says that it gets them as others do.
	Trusted Trust = iota
	// OnProbation says that it gets a share, and what others have no room for.
	OnProbation
	// Barred says that it gets none.
	Barred
)

// Attachment is something that lives with the node, outlives configurations as it does,
// and is closed before it.
type Attachment interface{ Close() }

// Attach returns the node's attachment of a name, which is opened when there is none yet.
// A [Service] calls it when it is started.
func (a *App) Attach(name string, open func(Node) (Attachment, error)) (Attachment, error) {
	n := a.node.Load()
	if n == nil {
		return nil, ErrNotRunning
	}
	n.attaching.Lock()
	defer n.attaching.Unlock()
	if at, ok := n.attached[name]; ok {
		return at, nil
	}
	id := n.host.ID()
	at, err := open(Node{
		Context: n.ctx, Host: n.host, PubSub: n.pubsub, Key: n.host.Peerstore().PrivKey(id),
		Bootstrap: n.bootstrap, Entry: n.directory.entry, Trust: n.directory.trusts,
		Judge: func(judge func(string, bool)) { n.judge.Store(&judge) }, Log: n.log,
	})
	if err != nil {
		return nil, err
	}
	if n.attached == nil {
		n.attached = make(map[string]Attachment)
	}
	n.attached[name] = at
	return at, nil
}

// hasAttached reports whether the node has an attachment of a name.
func (n *node) hasAttached(name string) bool {
	n.attaching.Lock()
	defer n.attaching.Unlock()
	return n.attached[name] != nil
}

// detach closes the attachments.
func (n *node) detach() {
	n.attaching.Lock()
	defer n.attaching.Unlock()
	for _, at := range n.attached {
		at.Close()
	}
	n.attached = nil
}

// entry tells subscribers that an entry of the ledger speaks of a peer. Of peers that are no
// known workers it does not: any stranger can have as many entries stored as it likes, and
// they would crowd out other events.
func (d *directory) entry(subject peer.ID, kind string) {
	ev := Event{Name: EntryAppended, Peer: subject.String(), Kind: kind}
	d.mu.RLock()
	w := d.workers[ev.Peer]
	if w != nil {
		ev.Agent, ev.Model = w.AgentName, w.Model
	}
	d.mu.RUnlock()
	if w != nil {
		d.events.Publish(ev)
	}
}

// trusts takes workers out of the choice, or puts them on probation. Those that are barred
// no more come back with their next telemetry. What runs on a worker goes on.
func (d *directory) trusts(how func(string) Trust) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.trust = how
	for id, w := range d.workers {
		if !w.Online {
			continue
		}
		if t := how(id); t == Barred {
			d.router.Bar(id)
		} else {
			d.router.SetProbation(id, t == OnProbation)
		}
	}
}

// trusted is how far a worker is.
func (d *directory) trusted(worker string) Trust {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.trust(worker)
}

// judged tells whoever wants to know how a worker's task ended. Against a worker counts only
// what no honest one does: it sends what is no frame, or files that are not those that it
// announced. A client can bring about all else, by what it asks or how long it waits, or this
// gateway, or the way between; and nobody shall take a worker from others so.
func (n *node) judged(worker string, o router.Outcome, err error) {
	is := func(target error) bool { return errors.Is(err, target) }
	switch {
	case o == router.Succeeded:
		n.tellJudge(worker, true)
	case o == router.Failed && (is(wire.ErrBadFrame) || is(wire.ErrFrameTooLarge)) && !is(network.ErrReset):
		n.tellJudge(worker, false)
	}
}

// tellJudge tells whoever wants to know.
func (n *node) tellJudge(worker string, well bool) {
	if judge := n.judge.Load(); judge != nil {
		(*judge)(worker, well)
	}
}
