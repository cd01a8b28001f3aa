// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"
)

// circuitIdle is how long a connection is carried on which nothing goes. Live ones
// have something every 30 s: their ends look whether the other is still there. A
// variable for tests.
var circuitIdle = 5 * time.Minute

// carrier is the host as libp2p's relay has it. It bounds what libp2p does not: how many
// connections are carried in all and from one IP address, and those on which nothing goes.
// Strangers, who have as many peer ids as they like, would otherwise take all there is, for good.
type carrier struct {
	host.Host
	most, mostPerIP     int // connections that are carried
	requests, requestIP int // streams beyond these that ask for something else, or have not asked yet
	idle                time.Duration

	mu   sync.Mutex
	all  int
	byIP map[netip.Prefix]int
}

func newCarrier(h host.Host, r *Relay) *carrier {
	return &carrier{
		Host: h, idle: circuitIdle,
		most: r.circuits(), mostPerIP: r.circuitsPerIP(),
		requests: r.MaxReservations, requestIP: r.MaxReservationsPerIP,
		byIP: make(map[netip.Prefix]int),
	}
}

// SetStreamHandler implements host.Host, for the streams of those who ask the relay.
func (c *carrier) SetStreamHandler(id protocol.ID, handle network.StreamHandler) {
	c.Host.SetStreamHandler(id, func(s network.Stream) {
		from := subnet(s.Conn().RemoteMultiaddr())
		if !c.enter(from) {
			_ = s.Reset()
			return
		}
		handle(c.carry(s, func() { c.leave(from) }))
	})
}

// NewStream implements host.Host, for the streams to those who are asked for.
func (c *carrier) NewStream(ctx context.Context, id peer.ID, protocols ...protocol.ID) (network.Stream, error) {
	s, err := c.Host.NewStream(ctx, id, protocols...)
	if err != nil {
		return nil, err
	}
	return c.carry(s, func() {}), nil
}

// enter counts a stream from a network; false when there are too many.
func (c *carrier) enter(from netip.Prefix) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= c.most+c.requests || c.byIP[from] >= c.mostPerIP+c.requestIP {
		return false
	}
	c.all++
	c.byIP[from]++
	return true
}

func (c *carrier) leave(from netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.byIP[from]--; c.byIP[from] == 0 {
		delete(c.byIP, from)
	}
}

// AllowReserve implements relay.ACLFilter: the relay itself counts reservations.
func (*carrier) AllowReserve(peer.ID, ma.Multiaddr) bool { return true }

// AllowConnect implements relay.ACLFilter. The stream that asks is among those counted.
func (c *carrier) AllowConnect(_ peer.ID, from ma.Multiaddr, _ peer.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all <= c.most && c.byIP[subnet(from)] <= c.mostPerIP
}

// subnet returns the network that counts as one address; zero without an address.
func subnet(a ma.Multiaddr) netip.Prefix {
	ip, ok := addrIP(a)
	if !ok {
		return netip.Prefix{}
	}
	bits := prefix6
	if ip.Is4() {
		bits = prefix4
	}
	p, _ := ip.WithZone("").Prefix(bits)
	return p
}

// carry returns a stream that is reset when nothing has gone on it for too long.
// When it ends, it calls left once.
func (c *carrier) carry(s network.Stream, left func()) *carried {
	return &carried{Stream: s, idle: c.idle, timer: time.AfterFunc(c.idle, func() { _ = s.Reset() }), left: sync.OnceFunc(left)}
}

// carried is a stream of one end of a connection that is carried.
type carried struct {
	network.Stream
	idle  time.Duration
	timer *time.Timer
	left  func()
}

// Read implements io.Reader.
func (s *carried) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	return s.went(n), err
}

// Write implements io.Writer.
func (s *carried) Write(b []byte) (int, error) {
	n, err := s.Stream.Write(b)
	return s.went(n), err
}

// went notes that n bytes have gone, and returns n.
func (s *carried) went(n int) int {
	if n > 0 {
		s.timer.Reset(s.idle)
	}
	return n
}

// Close implements io.Closer.
func (s *carried) Close() error {
	s.end()
	return s.Stream.Close()
}

// Reset implements network.Stream.
func (s *carried) Reset() error {
	s.end()
	return s.Stream.Reset()
}

// ResetWithError implements network.Stream.
func (s *carried) ResetWithError(code network.StreamErrorCode) error {
	s.end()
	return s.Stream.ResetWithError(code)
}

func (s *carried) end() {
	s.timer.Stop()
	s.left()
}

// Interface guards
var (
	_ host.Host       = (*carrier)(nil)
	_ relay.ACLFilter = (*carrier)(nil)
)
