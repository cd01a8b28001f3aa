// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	pb "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/util"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// openRelay opens a relay with limits.
func openRelay(t *testing.T, limits Relay) (*Host, peer.AddrInfo) {
	t.Helper()
	r, err := limits.resolve()
	if err != nil {
		t.Fatal(err)
	}
	h := newRelayHost(t, RoleGateway, Settings{Relay: r}, loopbackAddr)
	return h, peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}
}

// newStranger returns a host without limits that is connected to a relay. It takes every
// connection that is carried to it, and sends back what comes.
func newStranger(t *testing.T, relay peer.AddrInfo) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.ResourceManager(&network.NullResourceManager{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	h.SetStreamHandler(proto.ProtoIDv2Stop, func(s network.Stream) {
		var m pb.StopMessage
		if util.NewDelimitedReader(s, relayMessage).ReadMsg(&m) != nil {
			_ = s.Reset()
			return
		}
		_ = util.NewDelimitedWriter(s).WriteMsg(&pb.StopMessage{Type: pb.StopMessage_STATUS.Enum(), Status: pb.Status_OK.Enum()})
		_, _ = io.Copy(s, s)
		_ = s.Close()
	})
	if err := h.Connect(t.Context(), relay); err != nil {
		t.Fatal(err)
	}
	return h
}

// reserve has a relay keep a host reachable.
func reserve(t *testing.T, h host.Host, relay peer.AddrInfo) {
	t.Helper()
	await.Until(t, "the relay takes a reservation", func() bool {
		_, err := client.Reserve(t.Context(), h, relay)
		return err == nil
	})
}

// circuit has a relay carry a bare stream from one host to another.
func circuit(t *testing.T, from host.Host, relay, to peer.ID) (network.Stream, error) {
	t.Helper()
	s, err := from.NewStream(t.Context(), relay, proto.ProtoIDv2Hop)
	if err != nil {
		return nil, err
	}
	_ = s.SetDeadline(time.Now().Add(time.Minute))
	m := pb.HopMessage{Type: pb.HopMessage_CONNECT.Enum(), Peer: util.PeerInfoToPeerV2(peer.AddrInfo{ID: to})}
	if err := util.NewDelimitedWriter(s).WriteMsg(&m); err != nil {
		return nil, err
	}
	m.Reset()
	if err := util.NewDelimitedReader(s, relayMessage).ReadMsg(&m); err != nil {
		return nil, err
	}
	if m.GetStatus() != pb.Status_OK {
		_ = s.Reset()
		return nil, fmt.Errorf("%s", m.GetStatus())
	}
	return s, nil
}

// TestRelayCircuits wants as many connections for one node as the settings say, whatever
// libp2p has by default.
func TestRelayCircuits(t *testing.T) {
	relay, at := openRelay(t, Relay{})
	from, to := newStranger(t, at), newStranger(t, at)
	reserve(t, to, at)
	for i := range relayCircuits {
		if _, err := circuit(t, from, relay.ID(), to.ID()); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
	}
	if _, err := circuit(t, from, relay.ID(), to.ID()); err == nil {
		t.Error("one more than the limit")
	}
}

// TestRelayStrangers has strangers at one IP address, with as many peer ids as they like,
// hold what they can get from a relay. It is not all there is, and keeps nobody from a
// reservation; when they go, all of it is free again.
func TestRelayStrangers(t *testing.T) {
	limits := Relay{MaxReservations: 100, MaxCircuits: 4}
	relay, at := openRelay(t, limits)
	var strangers []host.Host
	got := 0
	for range 4 {
		from, to := newStranger(t, at), newStranger(t, at)
		strangers = append(strangers, from, to)
		reserve(t, to, at)
		for range limits.MaxCircuits {
			if _, err := circuit(t, from, relay.ID(), to.ID()); err == nil {
				got++
			}
		}
	}
	if want := limits.circuitsPerIP(); got != want || want >= limits.circuits() {
		t.Errorf("%d of %d connections from one address, want %d", got, limits.circuits(), want)
	}
	worker := newRelayHost(t, RoleWorker, Settings{})
	if err := worker.Connect(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	reserve(t, worker, at)
	for _, h := range strangers {
		_ = h.Close()
	}
	gateway := newRelayHost(t, RoleGateway, Settings{}, loopbackAddr)
	by := ma.StringCast(at.Addrs[0].String() + "/p2p/" + relay.ID().String() + "/p2p-circuit")
	await.Until(t, "the relay carries again", func() bool {
		return gateway.Connect(t.Context(), peer.AddrInfo{ID: worker.ID(), Addrs: []ma.Multiaddr{by}}) == nil
	})
}

// TestRelayIdle wants a connection on which nothing goes to end, and one in use to stay.
func TestRelayIdle(t *testing.T) {
	old := circuitIdle
	circuitIdle = 2 * time.Second
	t.Cleanup(func() { circuitIdle = old })
	relay, at := openRelay(t, Relay{})
	from, to := newStranger(t, at), newStranger(t, at)
	reserve(t, to, at)
	used, err := circuit(t, from, relay.ID(), to.ID())
	if err != nil {
		t.Fatal(err)
	}
	silent, err := circuit(t, from, relay.ID(), to.ID())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := silent.Read(make([]byte, 1))
		ended <- err
	}()
	echo := func() {
		if _, err := used.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(used, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("a silent connection carried something")
			}
			echo()
			return
		case <-tick.C:
			echo()
		}
	}
}

// TestCarrier counts streams by the network that they come from.
func TestCarrier(t *testing.T) {
	limits := &Relay{MaxReservations: 6, MaxReservationsPerIP: 1, MaxCircuits: 2}
	c := newCarrier(nil, limits) // 12 connections, 4 from one address
	open := func(from string) (entered, connects bool) {
		a := ma.StringCast(from)
		return c.enter(subnet(a)), c.AllowConnect("", a, "")
	}
	for i, s := range []struct {
		from              string
		entered, connects bool
	}{
		{"/ip4/1.1.1.1/tcp/1", true, true},
		{"/ip4/1.1.1.1/tcp/2", true, true},
		{"/ip4/1.1.1.1/tcp/3", true, true},
		{"/ip4/1.1.1.1/udp/3/quic-v1", true, true},
		{"/ip4/1.1.1.1/tcp/4", true, false}, // for a reservation
		{"/ip4/1.1.1.1/tcp/4", false, false},
		{"/ip4/1.1.1.2/tcp/4", true, true},
		{"/ip6/2a00:1450::1/tcp/4", true, true},
		{"/ip6/2a00:1450::2/tcp/4", true, true},
		{"/ip6/2a00:1450:0:1::/tcp/4", true, true},
		{"/ip6/2a00:1450:0:2::/tcp/4", true, true},
		{"/ip6/2a00:1450:0:3::/tcp/4", true, false},
		{"/ip6/2a00:1450:0:4::/tcp/4", false, false},
		{"/ip6/2a00:1450:0:100::/tcp/4", true, true},
		{"/ip4/1.1.1.3/tcp/4", true, false}, // the thirteenth
	} {
		entered, connects := open(s.from)
		if entered != s.entered || connects != s.connects {
			t.Errorf("%d, %s: entered %t, connects %t", i, s.from, entered, connects)
		}
	}
	for range 5 {
		c.leave(subnet(ma.StringCast("/ip4/1.1.1.1/tcp/1")))
	}
	if c.all != 8 || len(c.byIP) != 4 {
		t.Errorf("%d streams, %v", c.all, c.byIP)
	}
}
