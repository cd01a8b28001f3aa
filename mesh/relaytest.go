// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/Agent-FM/caddy-agentfm/internal/ipclass"
)

// Limits of the test of an address.
const (
	// relayTestTimeout bounds one test.
	relayTestTimeout = 5 * time.Second
	// maxRelayTests bounds the tests under way in the process.
	maxRelayTests = 4
	// maxLookups bounds the names that one test resolves.
	maxLookups = 8
	// maxRelayAddrs bounds the addresses that one test dials.
	maxRelayAddrs = 8
)

// ErrRelayTests says that enough addresses are being tested.
var ErrRelayTests = errors.New("too many addresses are being tested")

// relayTests holds a token for each test under way.
var relayTests = make(chan struct{}, maxRelayTests)

// resolver resolves the names in addresses. A variable for tests.
var resolver = madns.DefaultResolver

// TestRelay dials a multiaddress that ends in /p2p/<peer id>, and returns the peer
// id when that peer answers there within 5 s. It dials addresses of the public
// internet and of loopback only, whatever names resolve to, and does so as a peer
// of its own: the node's connections and what it knows of peers stay as they are.
// The error is [ErrRelayTests] while four others are under way; any other says
// in plain words what is wrong with the address.
func (l *Lease) TestRelay(ctx context.Context, addr string) (string, error) {
	select {
	case relayTests <- struct{}{}:
		defer func() { <-relayTests }()
	default:
		return "", ErrRelayTests
	}
	ctx, cancel := context.WithTimeout(ctx, relayTestTimeout)
	defer cancel()
	target, err := relayTarget(ctx, addr)
	if err != nil {
		return "", err
	}
	h, err := newProbe(l.node.settings.SwarmKey)
	if err != nil {
		return "", fmt.Errorf("making a host to dial with: %w", err)
	}
	defer h.Close()
	err = h.Connect(network.WithForceDirectDial(ctx, "test of an address"), target)
	switch _, mismatch := errors.AsType[sec.ErrPeerIDMismatch](err); {
	case err == nil:
		return target.ID.String(), nil
	case mismatch:
		return "", errors.New("another peer answers at this address")
	case ctx.Err() != nil:
		return "", fmt.Errorf("no answer within %s", relayTestTimeout)
	}
	return "", errors.New("the address cannot be reached, or no such peer answers there")
}

// relayTarget returns the peer of an address, and where to dial it.
func relayTarget(ctx context.Context, addr string) (peer.AddrInfo, error) {
	a, err := ma.NewMultiaddr(addr)
	if err != nil {
		return peer.AddrInfo{}, errors.New("this is not a multiaddress such as /ip4/1.2.3.4/tcp/4001/p2p/<peer id>")
	}
	if hasProtocol(a, ma.P_CIRCUIT) {
		return peer.AddrInfo{}, errors.New("this is an address by way of a relay; want the relay's own")
	}
	where, id := peer.SplitAddr(a)
	if id == "" {
		return peer.AddrInfo{}, errors.New("the address does not end in /p2p/<peer id>")
	}
	if where == nil {
		return peer.AddrInfo{}, errors.New("the address says who, and not where")
	}
	resolved, err := resolve(ctx, a)
	if err != nil {
		return peer.AddrInfo{}, err
	}
	target := peer.AddrInfo{ID: id}
	for _, r := range resolved {
		where, of := peer.SplitAddr(r)
		if of == id && where != nil && testable(where) && !slices.ContainsFunc(target.Addrs, where.Equal) {
			target.Addrs = append(target.Addrs, where)
		}
	}
	switch {
	case len(resolved) == 0:
		return peer.AddrInfo{}, errors.New("the name in the address has no addresses")
	case len(target.Addrs) == 0:
		return peer.AddrInfo{}, errors.New("only public and loopback addresses with /tcp/<port> or /udp/<port>/quic-v1 are dialled")
	}
	target.Addrs = target.Addrs[:min(len(target.Addrs), maxRelayAddrs)]
	return target, nil
}

// resolve returns the addresses that an address with a name stands for. A name
// may stand for other names, to some depth; what goes beyond is left out.
func resolve(ctx context.Context, a ma.Multiaddr) ([]ma.Multiaddr, error) {
	var out []ma.Multiaddr
	var failure error
	open := []ma.Multiaddr{a}
	for lookups := 0; len(open) > 0; open = open[1:] {
		if !madns.Matches(open[0]) {
			out = append(out, open[0])
			continue
		}
		if lookups++; lookups > maxLookups {
			break
		}
		more, err := resolver.Resolve(ctx, open[0])
		if err != nil {
			failure = errors.New("the name in the address cannot be resolved")
		}
		open = append(open, more...)
	}
	if len(out) > 0 {
		return out, nil
	}
	return nil, failure
}

// testable reports whether an address, without names and peer id, may be dialled
// on a client's word.
func testable(a ma.Multiaddr) bool {
	if !listenable(a) {
		return false
	}
	ip, err := manet.ToIP(a)
	if err != nil {
		return false
	}
	addr, ok := netip.AddrFromSlice(ip)
	if addr = addr.Unmap(); !ok {
		return false
	}
	return addr.IsLoopback() || ipclass.Public(addr)
}

// newProbe returns a host to dial with, that listens nowhere and nobody knows.
func newProbe(psk pnet.PSK) (host.Host, error) {
	bridgeLogs()
	opts := []libp2p.Option{
		libp2p.RandomIdentity,
		libp2p.NoListenAddrs,
		libp2p.UserAgent("caddy-agentfm"),
		libp2p.Transport(tcp.NewTCPTransport),
		libp2p.Security(libp2ptls.ID, libp2ptls.New),
		libp2p.Security(noise.ID, noise.New),
		libp2p.ConnectionGater(probeGate{}),
		libp2p.ResourceManager(&network.NullResourceManager{}), // one connection
		libp2p.DisableRelay(),
		libp2p.Ping(false),
		libp2p.DisableMetrics(),
	}
	if psk != nil {
		opts = append(opts, libp2p.PrivateNetwork(psk))
	} else {
		opts = append(opts, libp2p.Transport(quic.NewTransport))
	}
	return libp2p.New(opts...)
}

// probeGate lets out only what may be dialled: a peer that answers may name further
// addresses of its own.
type probeGate struct{}

// InterceptAddrDial implements connmgr.ConnectionGater.
func (probeGate) InterceptAddrDial(_ peer.ID, a ma.Multiaddr) bool { return testable(a) }

// InterceptPeerDial implements connmgr.ConnectionGater.
func (probeGate) InterceptPeerDial(peer.ID) bool { return true }

// InterceptAccept implements connmgr.ConnectionGater.
func (probeGate) InterceptAccept(network.ConnMultiaddrs) bool { return false }

// InterceptSecured implements connmgr.ConnectionGater.
func (probeGate) InterceptSecured(d network.Direction, _ peer.ID, _ network.ConnMultiaddrs) bool {
	return d == network.DirOutbound
}

// InterceptUpgraded implements connmgr.ConnectionGater.
func (probeGate) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }
