// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/routing"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Time limits of the mesh.
const (
	// DialTimeout bounds the opening of a connection or stream to a peer.
	DialTimeout = 20 * time.Second
	// FrameTimeout bounds the writing and reading of a task frame.
	FrameTimeout = 30 * time.Second
	// ArtifactTimeout bounds the transfer of one artifact.
	ArtifactTimeout = 30 * time.Minute
	// TaskTimeout bounds a task from its dispatch to its last byte, unless its
	// call says otherwise.
	TaskTimeout = 10 * time.Minute
	// MaxTaskTimeout is the longest time that a call may say.
	MaxTaskTimeout = 24 * time.Hour
)

// reserveInterval is how soon a node that nobody can dial asks its relays again to
// keep it reachable: libp2p waits for an hour after a relay that had no room, or was
// about to end. It waits as long at first for bootstrap nodes that are no relays. A
// variable for tests.
var reserveInterval = 15 * time.Second

// bodyRate is how many bytes a second a large body has at least.
const bodyRate = 64 << 10

// BodyTimeout is how long a body of n bytes may take on its way to a worker.
func BodyTimeout(n int64) time.Duration {
	return FrameTimeout + time.Duration(n/bodyRate)*time.Second
}

// Role says what a host is for, which decides its part in the DHT.
type Role int

// Roles of a host.
const (
	// RoleGateway answers queries of the DHT.
	RoleGateway Role = iota
	// RoleWorker only asks.
	RoleWorker
)

// Host is a libp2p host of this mesh, with its DHT where that is on.
type Host struct {
	host.Host
	dht     *dht.IpfsDHT
	relay   *relay.Relay
	lock    *flock.Flock
	opening chan struct{} // holds a token for each stream that is being opened
}

// maxOpening is how many streams may be being opened at one time: until its
// protocol is agreed upon, a stream counts against a small limit of all peers.
const maxOpening = 256

// NewStream opens a stream to a peer, which it dials when there is no connection.
// A burst of streams waits for its turn.
func (h *Host) NewStream(ctx context.Context, id peer.ID, protocols ...protocol.ID) (network.Stream, error) {
	if c := h.Network().Connectedness(id); c != network.Connected && c != network.Limited {
		if err := h.Connect(ctx, peer.AddrInfo{ID: id}); err != nil {
			return nil, err
		}
	}
	select {
	case h.opening <- struct{}{}:
		defer func() { <-h.opening }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return h.Host.NewStream(ctx, id, protocols...)
}

// NewHost opens a host. It is bound to every address that was asked for, or it
// is an error: libp2p by itself is content with one of them. Its identity is
// key; s.Identity and s.Listen are not used.
func NewHost(ctx context.Context, role Role, key crypto.PrivKey, listen []ma.Multiaddr, s Settings) (*Host, error) {
	bridgeLogs()
	if err := portsFree(listen); err != nil {
		return nil, err
	}
	lock, err := lockIdentity(key)
	if err != nil {
		return nil, err
	}
	h, err := newHost(ctx, role, key, listen, s)
	if err != nil {
		return nil, errors.Join(err, lock.Unlock())
	}
	h.lock = lock
	if missing := unbound(listen, h.Bound()); len(missing) > 0 {
		return nil, errors.Join(fmt.Errorf("cannot listen on %s: is the port in use?", strings.Join(missing, ", ")), h.Close())
	}
	return h, nil
}

// newHost is NewHost without its checks.
func newHost(ctx context.Context, role Role, key crypto.PrivKey, listen []ma.Multiaddr, s Settings) (*Host, error) {
	if role != RoleGateway {
		s.Relay = nil
	}
	limits, err := resourceManager(s)
	if err != nil {
		return nil, err
	}
	low, high := connections(s.Relay)
	conns, err := connmgr.NewConnManager(low, high, connmgr.WithGracePeriod(time.Minute))
	if err != nil {
		return nil, errors.Join(err, limits.Close())
	}
	h := &Host{opening: make(chan struct{}, maxOpening)}
	opts := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.ListenAddrs(listen...),
		libp2p.UserAgent("caddy-agentfm"),
		libp2p.ResourceManager(limits),
		libp2p.ConnectionManager(conns),
		libp2p.Transport(tcp.NewTCPTransport),
		// TLS first: it is half as expensive as Noise, which AgentFM 1.3 speaks
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Security(noise.ID, noise.New),
		libp2p.Muxer(yamux.ID, muxer{yamux.DefaultTransport}),
		libp2p.EnableRelay(),
		libp2p.EnableHolePunching(),
		libp2p.EnableNATService(),
		libp2p.EnableAutoNATv2(),
		libp2p.DisableMetrics(), // would register with a global registry that nobody serves
	}
	if s.SwarmKey != nil {
		opts = append(opts, libp2p.PrivateNetwork(s.SwarmKey))
	} else {
		opts = append(opts, libp2p.Transport(quic.NewTransport))
	}
	if s.Relay != nil {
		opts = append(opts, libp2p.ForceReachabilityPublic()) // everybody can dial it
	} else if len(s.Bootstrap) > 0 {
		opts = append(opts, libp2p.EnableAutoRelayWithStaticRelays(s.Bootstrap,
			autorelay.WithBackoff(reserveInterval), autorelay.WithMinInterval(reserveInterval), autorelay.WithBootDelay(reserveInterval)))
	}
	if s.DHT {
		opts = append(opts, libp2p.Routing(func(inner host.Host) (routing.PeerRouting, error) {
			mode := dht.ModeServer
			if role == RoleWorker {
				mode = dht.ModeClient
			}
			var err error
			h.dht, err = newDHT(inner, mode, s.Bootstrap)
			return h.dht, err
		}))
	}
	if h.Host, err = libp2p.New(opts...); err != nil {
		return nil, errors.Join(err, conns.Close(), limits.Close())
	}
	if s.Relay != nil {
		if h.relay, err = s.Relay.open(h.Host); err != nil {
			return nil, errors.Join(err, h.closeHost())
		}
	}
	return h, nil
}

// Close closes the host, its DHT and its relay.
func (h *Host) Close() error { return errors.Join(h.closeHost(), h.lock.Unlock()) }

// closeHost is Close without the lock of the identity.
func (h *Host) closeHost() error {
	var errs []error
	if h.dht != nil {
		errs = append(errs, h.dht.Close())
	}
	if h.relay != nil {
		errs = append(errs, h.relay.Close())
	}
	return errors.Join(append(errs, h.Host.Close())...)
}

// Bound returns the addresses on which the host listens, without those of relays.
func (h *Host) Bound() []ma.Multiaddr {
	return slices.DeleteFunc(h.Network().ListenAddresses(), func(a ma.Multiaddr) bool { return hasProtocol(a, ma.P_CIRCUIT) })
}

// portsFree returns an error when a TCP port is taken. libp2p listens with
// SO_REUSEPORT: without this look, two nodes on one port would each get half of
// the connections and neither would know.
func portsFree(listen []ma.Multiaddr) error {
	for _, a := range listen {
		network, addr, err := manet.DialArgs(a)
		if err != nil || !strings.HasPrefix(network, "tcp") {
			continue
		}
		l, err := net.Listen(network, addr)
		if err != nil {
			return fmt.Errorf("listening on %s: %w", a, err)
		}
		_ = l.Close()
	}
	return nil
}

// unbound returns the addresses that were asked for and are not among the bound.
func unbound(asked, bound []ma.Multiaddr) []string {
	var missing []string
	for _, a := range asked {
		if !slices.ContainsFunc(bound, func(b ma.Multiaddr) bool { return satisfies(a, b) }) {
			missing = append(missing, a.String())
		}
	}
	return missing
}

// satisfies reports whether a listener at bound is what was asked for: the same
// address, where port 0 stands for any.
func satisfies(asked, bound ma.Multiaddr) bool {
	if len(asked) != len(bound) {
		return false
	}
	for i := range asked {
		port := asked[i].Protocol().Code == ma.P_TCP || asked[i].Protocol().Code == ma.P_UDP
		if asked[i].Protocol().Code != bound[i].Protocol().Code ||
			(asked[i].Value() != bound[i].Value() && (!port || asked[i].Value() != "0")) {
			return false
		}
	}
	return true
}

// LocalNode returns the addresses of the gateway's node in this process, for
// its agents to connect to; false when there is none.
func LocalNode() (peer.AddrInfo, bool) {
	n := live.Load()
	if n == nil {
		return peer.AddrInfo{}, false
	}
	h := n.host
	addrs, err := h.Network().InterfaceListenAddresses()
	return peer.AddrInfo{ID: h.ID(), Addrs: addrs}, err == nil && len(addrs) > 0
}
