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
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
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

// bodyRate is how many bytes a second a large body has at least.
const bodyRate = 64 << 10

// BodyTimeout is how long a body of n bytes may take on its way to a worker.
func BodyTimeout(n int64) time.Duration {
	return FrameTimeout + time.Duration(n/bodyRate)*time.Second
}

// Connections of one host: beyond high, the least useful are closed until low
// are left. Protected ones (bootstrap nodes) are never closed.
const (
	connectionsLow  = 2048
	connectionsHigh = 3072
)

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
	limits, err := resourceManager()
	if err != nil {
		return nil, err
	}
	conns, err := connmgr.NewConnManager(connectionsLow, connectionsHigh, connmgr.WithGracePeriod(time.Minute))
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
	if s.Relay != nil && role == RoleGateway {
		opts = append(opts, s.Relay.options()...)
	} else if len(s.Bootstrap) > 0 {
		opts = append(opts, libp2p.EnableAutoRelayWithStaticRelays(s.Bootstrap))
	}
	if s.DHT {
		opts = append(opts, libp2p.Routing(func(inner host.Host) (routing.PeerRouting, error) {
			mode := dht.ModeServer
			if role == RoleWorker {
				mode = dht.ModeClient
			}
			var err error
			h.dht, err = dht.New(inner, dht.Mode(mode), dht.BootstrapPeers(s.Bootstrap...), dht.Datastore(newRecords()))
			return h.dht, err
		}))
	}
	if h.Host, err = libp2p.New(opts...); err != nil {
		return nil, errors.Join(err, conns.Close(), limits.Close())
	}
	return h, nil
}

// Close closes the host and its DHT.
func (h *Host) Close() error {
	var err error
	if h.dht != nil {
		err = h.dht.Close()
	}
	return errors.Join(err, h.Host.Close(), h.lock.Unlock())
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

// Streams of one host.
const (
	// peerStreams is how many streams there may be between two peers of the mesh:
	// those of 10,000 requests at once, and more.
	peerStreams = 12_288
	// newStreams is how many streams may be without a protocol yet: those that a gateway
	// opens at once, and a busy worker comes to later.
	newStreams = 4096
	// windowSize is the memory that a stream may take for what was not read yet. It
	// is reserved when the stream opens, and used when somebody sends.
	windowSize = 256 << 10
)

// resourceManager returns the limits of one host. The library's defaults count
// 75 concurrent streams for a peer and protocol on a machine of 24 GB, which a
// gateway in front of one large worker passes at once, and 8 connections for an
// IP address, which a handful of workers behind one router does.
func resourceManager() (network.ResourceManager, error) {
	base := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&base)
	task := rcmgr.ResourceLimits{Streams: 32768, StreamsInbound: 16384, StreamsOutbound: 16384, Memory: 1 << 30}
	taskPeer := rcmgr.ResourceLimits{Streams: peerStreams, StreamsInbound: peerStreams, StreamsOutbound: peerStreams, Memory: 256 << 20}
	limits := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Streams: 65536, StreamsInbound: 32768, StreamsOutbound: 65536,
			Conns: 2 * connectionsHigh, ConnsInbound: connectionsHigh + 1024, ConnsOutbound: connectionsHigh + 1024,
			FD: 2 * connectionsHigh, Memory: 2 * peerStreams * windowSize,
		},
		Transient: rcmgr.ResourceLimits{
			Streams: 2 * newStreams, StreamsInbound: newStreams, StreamsOutbound: newStreams,
			Conns: 512, ConnsInbound: 256, ConnsOutbound: 512, FD: 512, Memory: newStreams * windowSize,
		},
		PeerDefault: rcmgr.ResourceLimits{
			Streams: 16384, StreamsInbound: 16384, StreamsOutbound: 16384, Conns: 16, Memory: peerStreams*windowSize + 256<<20,
		},
		Protocol: map[protocol.ID]rcmgr.ResourceLimits{
			wire.TaskProtocol:     task,
			wire.HTTPProtocol:     task,
			wire.ArtifactProtocol: {Streams: 2048, StreamsInbound: 1024, StreamsOutbound: 1024},
		},
		ProtocolPeer: map[protocol.ID]rcmgr.ResourceLimits{
			wire.TaskProtocol:     taskPeer,
			wire.HTTPProtocol:     taskPeer,
			wire.ArtifactProtocol: {Streams: 512, StreamsInbound: 256, StreamsOutbound: 256},
		},
		Conn: rcmgr.ResourceLimits{Memory: 64 << 20},
		// A body may have 32 MiB, and what is reserved for one may take three fifths.
		Stream: rcmgr.ResourceLimits{Memory: 96 << 20},
	}.Build(base.AutoScale())
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits),
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: 256}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: 256}}))
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
