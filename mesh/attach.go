// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

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
	// Entry tells subscribers of events that an entry of the ledger speaks of a peer.
	Entry func(subject peer.ID, kind string)
	// Bar takes those workers out of the choice for whom it is true, from now on.
	Bar func(func(worker string) bool)
	// Judge sets who hears how a worker's task ended, well or by its own fault. It must
	// not block.
	Judge func(func(worker string, well bool))
	// Log returns the logger of the newest configuration.
	Log func() *zap.Logger
}

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
		Bootstrap: n.bootstrap, Entry: n.directory.entry, Bar: n.directory.bar,
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

// detach closes the attachments.
func (n *node) detach() {
	n.attaching.Lock()
	defer n.attaching.Unlock()
	for _, at := range n.attached {
		at.Close()
	}
	n.attached = nil
}

// entry tells subscribers that an entry of the ledger speaks of a peer.
func (d *directory) entry(subject peer.ID, kind string) {
	ev := Event{Name: EntryAppended, Peer: subject.String(), Kind: kind}
	d.mu.RLock()
	if w := d.workers[ev.Peer]; w != nil {
		ev.Agent, ev.Model = w.AgentName, w.Model
	}
	d.mu.RUnlock()
	d.events.Publish(ev)
}

// bar takes workers out of the choice, and those back in that are barred no more, with
// their next telemetry. What runs on them goes on.
func (d *directory) bar(barred func(string) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.barred = barred
	for id, w := range d.workers {
		if w.Online && barred(id) {
			d.router.Bar(id)
		}
	}
}

// judgePause is how long after a failure a worker's connection must be there, for the
// failure to be the worker's.
const judgePause = 2 * time.Second

// judged tells whoever wants to know how a worker's task ended. A client that went away
// and a worker that was full say nothing of it. An agent that failed says nothing either: what
// it was asked may have brought that about, and nobody shall take a worker from others by
// asking so. Nor does a connection that broke: it may have been ours, and who is killed has
// not lied.
func (n *node) judged(worker string, o router.Outcome) {
	switch o {
	case router.Succeeded:
		n.tellJudge(worker, true)
	case router.Failed:
		id, err := n.directory.id(worker)
		if err != nil {
			return
		}
		failed := time.Now()
		time.AfterFunc(judgePause, func() {
			for _, c := range n.host.Network().ConnsToPeer(id) {
				if c.Stat().Opened.Before(failed) {
					n.tellJudge(worker, false)
					return
				}
			}
		})
	}
}

// tellJudge tells whoever wants to know.
func (n *node) tellJudge(worker string, well bool) {
	if judge := n.judge.Load(); judge != nil {
		(*judge)(worker, well)
	}
}
