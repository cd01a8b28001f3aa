// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"math"
	"net/netip"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Connections of one host: beyond high, the least useful are closed until low
// are left. Protected ones (bootstrap nodes) are never closed.
const (
	connectionsLow  = 2048
	connectionsHigh = 3072
	// connectionsPerIP are those with one address, or one IPv6 network, which may
	// be that of many nodes behind one router.
	connectionsPerIP = 256
	// connectionsRate is how many more of them a second there may be.
	connectionsRate = 10
)

// The networks that count as one address.
const (
	prefix4 = 32
	prefix6 = 56
)

// connections returns how many connections a host has, which with a relay are
// those of the nodes that it keeps reachable as well.
func connections(r *Relay) (low, high int) {
	if r == nil {
		return connectionsLow, connectionsHigh
	}
	return connectionsLow + r.MaxReservations, connectionsHigh + r.MaxReservations
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
	// peerCircuits is how many nodes a host may reach by one relay.
	peerCircuits = 4096
)

// resourceManager returns the limits of one host. The library's defaults count
// 75 concurrent streams for a peer and protocol on a machine of 24 GB, which a
// gateway in front of one large worker passes at once, and 8 connections for an
// IP address and a new one every 5 s, which a handful of workers behind one
// router passes.
func resourceManager(s Settings) (network.ResourceManager, error) {
	base := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&base)
	_, high := connections(s.Relay)
	perIP := connectionsPerIP
	limits := hostLimits(rcmgr.LimitVal(high))
	if s.Relay != nil {
		s.Relay.raise(&limits)
		perIP += s.Relay.MaxReservationsPerIP
	}
	prefixes4, prefixes6, rates := trusted(s.Bootstrap)
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits.Build(base.AutoScale())),
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithNetworkPrefixLimit(prefixes4, prefixes6),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: prefix4, ConnCount: perIP}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: prefix6, ConnCount: perIP}}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: rates,
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: prefix4, Limit: rate.Limit{RPS: connectionsRate, Burst: perIP}}},
				IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: prefix6, Limit: rate.Limit{RPS: connectionsRate, Burst: perIP}}},
			},
		}))
}

// hostLimits returns what differs from the library's defaults, without a relay's.
func hostLimits(high rcmgr.LimitVal) rcmgr.PartialLimitConfig {
	task := rcmgr.ResourceLimits{Streams: 32768, StreamsInbound: 16384, StreamsOutbound: 16384, Memory: 1 << 30}
	taskPeer := rcmgr.ResourceLimits{Streams: peerStreams, StreamsInbound: peerStreams, StreamsOutbound: peerStreams, Memory: 256 << 20}
	circuit := streams(2*peerCircuits, 64<<20)
	circuitPeer := streams(peerCircuits, 64<<20)
	return rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Streams: 65536, StreamsInbound: 32768, StreamsOutbound: 65536,
			Conns: 2 * high, ConnsInbound: high + 1024, ConnsOutbound: high + 1024,
			FD: 2 * high, Memory: 2 * peerStreams * windowSize,
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
			proto.ProtoIDv2Hop:    circuit,
			proto.ProtoIDv2Stop:   circuit,
		},
		ProtocolPeer: map[protocol.ID]rcmgr.ResourceLimits{
			wire.TaskProtocol:     taskPeer,
			wire.HTTPProtocol:     taskPeer,
			wire.ArtifactProtocol: {Streams: 512, StreamsInbound: 256, StreamsOutbound: 256},
			proto.ProtoIDv2Hop:    circuitPeer,
			proto.ProtoIDv2Stop:   circuitPeer,
		},
		Conn: rcmgr.ResourceLimits{Memory: 64 << 20},
		// A body may have 32 MiB, and what is reserved for one may take three fifths.
		Stream: rcmgr.ResourceLimits{Memory: 96 << 20},
	}
}

// streams returns limits of n streams, whoever opens them.
func streams(n int, memory rcmgr.LimitVal64) rcmgr.ResourceLimits {
	v := rcmgr.LimitVal(n)
	return rcmgr.ResourceLimits{Streams: v, StreamsInbound: v, StreamsOutbound: v, Memory: memory}
}

// raise adds to the limits of a host what its relay's settings promise.
func (r *Relay) raise(l *rcmgr.PartialLimitConfig) {
	circuits, requests := r.circuits(), r.MaxReservations
	all := 2*circuits + requests // a stream to each end
	// Half of it stays free: what is nearly full takes no more at a low priority.
	memory := rcmgr.LimitVal64(2 * (2*relayBuffer*circuits + relayMessage*all))
	each := r.MaxCircuits + peerRequests
	l.Service = map[string]rcmgr.ResourceLimits{relay.ServiceName: streams(all, memory)}
	l.ServicePeer = map[string]rcmgr.ResourceLimits{relay.ServiceName: streams(each, memory)}
	for _, id := range []protocol.ID{proto.ProtoIDv2Hop, proto.ProtoIDv2Stop} {
		l.Protocol[id] = streams(all+2*peerCircuits, memory+64<<20)
		l.ProtocolPeer[id] = streams(max(each, peerCircuits), memory)
	}
	// Each node that is kept reachable has a few streams of its own beside.
	all += 8 * r.MaxReservations
	l.System.Streams += rcmgr.LimitVal(all)
	l.System.StreamsInbound += rcmgr.LimitVal(all)
	l.System.StreamsOutbound += rcmgr.LimitVal(all)
	l.System.Memory += rcmgr.LimitVal64(all) * windowSize
}

// trusted returns limits of the networks that have none: the node's own machine, and the
// bootstrap nodes, since what is reached by a relay counts for the relay's address.
func trusted(bootstrap []peer.AddrInfo) (v4, v6 []rcmgr.NetworkPrefixLimit, rates []rate.PrefixLimit) {
	prefixes := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	for _, b := range bootstrap {
		for _, a := range b.Addrs {
			if ip, ok := addrIP(a); ok {
				prefixes = append(prefixes, netip.PrefixFrom(ip, ip.BitLen()))
			}
		}
	}
	for _, p := range prefixes {
		limit := rcmgr.NetworkPrefixLimit{Network: p, ConnCount: math.MaxInt}
		if p.Addr().Is4() {
			v4 = append(v4, limit)
		} else {
			v6 = append(v6, limit)
		}
		rates = append(rates, rate.PrefixLimit{Prefix: p})
	}
	return v4, v6, rates
}

// addrIP returns the address that a multiaddress begins with; false when it has none.
func addrIP(a ma.Multiaddr) (netip.Addr, bool) {
	ip, err := manet.ToIP(a)
	if err != nil {
		return netip.Addr{}, false
	}
	addr, ok := netip.AddrFromSlice(ip)
	return addr.Unmap(), ok
}
