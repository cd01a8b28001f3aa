// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/lifetime"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// nodes holds the one node of the process. It must outlive configurations: two
// hosts with one identity or one port would each get half of the connections,
// and closing it on each reload would drop every request and peer.
var nodes = caddy.NewUsagePool()

// nodeKey is the key of the node in the pool.
const nodeKey = "node"

// live is the node that is open, also while it only waits for its last requests
// and is out of the pool: whoever opens another needs its ports and its identity.
var live atomic.Pointer[node]

// opening serialises the opening of nodes.
var opening sync.Mutex

// node is the gateway's side of the mesh. Its handlers are registered once and
// look at the newest configuration when they need one.
type node struct {
	*lifetime.Lifetime[*App]
	settings  Settings
	host      *Host
	directory *directory
	tasks     *taskTable
	streams   *streamPool
	profiles  *profiles
	responses *responses

	emitter  atomic.Pointer[App] // whose subscribers hear of events
	emit     chan struct{}       // closed once there has been one
	emitting sync.Once
	emitted  chan struct{} // closed when no more are emitted

	pubsub    *pubsub.PubSub
	attaching sync.Mutex
	attached  map[string]Attachment
	judge     atomic.Pointer[func(worker string, well bool)]

	ctx     context.Context // ends when the node closes
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// openNode opens the node, or takes back the one that is waiting for its last
// requests when it is the same.
func openNode(s Settings, loadKey func() (crypto.PrivKey, error), log *zap.Logger) (*node, error) {
	opening.Lock()
	defer opening.Unlock()
	if n := live.Load(); n != nil {
		if s.Fits(n.settings) == nil && n.Revive() {
			return n, nil
		}
		n.Close()
	}
	key, err := loadKey()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	h, err := NewHost(ctx, RoleGateway, key, s.Listen, s)
	if err != nil {
		cancel()
		return nil, err
	}
	n := &node{settings: s, host: h, tasks: newTaskTable(), streams: newStreamPool(h), responses: newResponses(), emit: make(chan struct{}), emitted: make(chan struct{}), ctx: ctx, cancel: cancel}
	n.Lifetime = lifetime.New[*App](n.shut)
	n.directory = newDirectory(n.log)
	n.directory.opening.Store(true)
	n.profiles = newProfiles(ctx, n.streams, n.directory.tookProfile)
	n.directory.ask = n.profiles.ask
	if err := n.start(ctx); err != nil {
		n.Close()
		return nil, err
	}
	live.Store(n)
	log.Info("mesh node is open",
		zap.Stringer("peer", h.ID()),
		zap.Stringers("listen", h.Bound()),
		zap.Bool("private", s.SwarmKey != nil))
	return n, nil
}

// start begins the node's work on the mesh.
func (n *node) start(ctx context.Context) error {
	go n.emitEvents(ctx)
	ps, err := NewPubSub(ctx, n.host, n.isBootstrap)
	if err != nil {
		return fmt.Errorf("starting pubsub: %w", err)
	}
	n.pubsub = ps
	wait, err := subscribe(ctx, ps, n.directory)
	if err != nil {
		return fmt.Errorf("subscribing to telemetry: %w", err)
	}
	n.host.SetStreamHandler(wire.ArtifactProtocol, n.receiveArtifact)
	n.host.Network().Notify(&network.NotifyBundle{
		DisconnectedF: func(_ network.Network, c network.Conn) {
			if n.host.Network().Connectedness(c.RemotePeer()) == network.NotConnected {
				n.directory.offline(c.RemotePeer().String())
			}
		},
	})
	n.running.Go(wait)
	n.running.Go(func() { n.streams.sweep(ctx) })
	n.running.Go(func() { n.directory.sweep(ctx) })
	n.running.Go(func() { n.probe(ctx) })
	n.running.Go(func() { n.sweepArtifacts(ctx) })
	n.running.Go(func() { n.host.KeepConnected(ctx, n.bootstrap, n.log) })
	n.running.Go(func() { n.host.Discover(ctx, RoleGateway, n.settings, n.log) })
	return nil
}

// shut closes the node. It runs once, through the node's Lifetime.
func (n *node) shut() {
	n.cancel()
	n.detach()
	_ = n.host.Close()
	n.running.Wait()
	n.streams.close()
	n.profiles.wait()
	n.awaitEmitter()
	n.directory.close()
	live.CompareAndSwap(n, nil)
}

// Destruct implements caddy.Destructor. Requests that are under way finish: each
// has a time limit of its own. A reload does not wait for them. Streams of events
// would not finish by themselves.
func (n *node) Destruct() error {
	n.directory.events.Cut()
	n.Drain(MaxTaskTimeout + time.Minute)
	return nil
}

// log returns the logger of the newest configuration.
func (n *node) log() *zap.Logger {
	if a, ok := n.Newest(); ok {
		return a.logger
	}
	return caddy.Log().Named("agentfm")
}

// bootstrap returns the bootstrap nodes of the newest configuration.
func (n *node) bootstrap() []peer.AddrInfo {
	if a, ok := n.Newest(); ok {
		return a.settings.Bootstrap
	}
	return nil
}

// isBootstrap reports whether p is a bootstrap node.
func (n *node) isBootstrap(p peer.ID) bool {
	for _, b := range n.bootstrap() {
		if b.ID == p {
			return true
		}
	}
	return false
}

// Interface guard
var _ caddy.Destructor = (*node)(nil)
