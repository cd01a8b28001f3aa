// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"crypto/rand"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	pb "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/util"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// TestRelayCarries has a gateway reach a worker that listens nowhere by way of a relay, and
// send it more than libp2p's own limits let through.
func TestRelayCarries(t *testing.T) {
	for name, c := range map[string]struct {
		limits  Relay
		limited bool
	}{
		"no limit of a connection": {Relay{}, false},
		"a limit of time":          {Relay{MaxDuration: caddy.Duration(time.Hour)}, true},
		"a limit of bytes":         {Relay{MaxData: 64 << 20}, true},
	} {
		t.Run(name, func(t *testing.T) {
			relay, at := openRelay(t, c.limits)
			worker := newRelayHost(t, RoleWorker, Settings{Relay: &c.limits}) // which makes no relay of a worker
			gateway := newRelayHost(t, RoleGateway, Settings{}, loopbackAddr)
			if err := worker.Connect(t.Context(), at); err != nil {
				t.Fatal(err)
			}
			reserve(t, worker, at)
			worker.SetStreamHandler("/echo", func(s network.Stream) {
				_, _ = io.Copy(s, s)
				_ = s.Close()
			})
			by := ma.StringCast(relay.Addrs()[0].String() + "/p2p/" + relay.ID().String() + "/p2p-circuit")
			if err := gateway.Connect(t.Context(), peer.AddrInfo{ID: worker.ID(), Addrs: []ma.Multiaddr{by}}); err != nil {
				t.Fatal(err)
			}
			if got := gateway.Network().ConnsToPeer(worker.ID())[0].Stat().Limited; got != c.limited {
				t.Errorf("limited: %t", got)
			}
			s, err := gateway.NewStream(network.WithAllowLimitedConn(t.Context(), "test"), worker.ID(), "/echo")
			if err != nil {
				t.Fatal(err)
			}
			_ = s.SetDeadline(time.Now().Add(time.Minute))
			sent := make([]byte, 1<<20)
			rand.Read(sent)
			go func() {
				_, _ = s.Write(sent)
				_ = s.CloseWrite()
			}()
			if got, err := io.ReadAll(s); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
		})
	}
}

// newRelayHost returns a host on loopback; without addresses, it listens nowhere.
func newRelayHost(t *testing.T, role Role, s Settings, listen ...ma.Multiaddr) *Host {
	t.Helper()
	h, err := NewHost(t.Context(), role, newKey(t), listen, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// TestRelayAskedAgain has a node that nobody can dial ask a relay that has no room. It asks
// again soon.
func TestRelayAskedAgain(t *testing.T) {
	old := reserveInterval
	reserveInterval = 100 * time.Millisecond
	t.Cleanup(func() { reserveInterval = old })
	full := newRelayHost(t, RoleGateway, Settings{}, loopbackAddr)
	var asked atomic.Int64
	full.SetStreamHandler(proto.ProtoIDv2Hop, func(s network.Stream) {
		asked.Add(1)
		_ = util.NewDelimitedWriter(s).WriteMsg(&pb.HopMessage{Type: pb.HopMessage_STATUS.Enum(), Status: pb.Status_RESERVATION_REFUSED.Enum()})
		_ = s.Close()
	})
	worker := newRelayHost(t, RoleWorker, Settings{Bootstrap: []peer.AddrInfo{{ID: full.ID(), Addrs: full.Addrs()}}})
	tell, err := worker.EventBus().Emitter(new(event.EvtLocalReachabilityChanged))
	if err != nil {
		t.Fatal(err)
	}
	defer tell.Close()
	if err := tell.Emit(event.EvtLocalReachabilityChanged{Reachability: network.ReachabilityPrivate}); err != nil {
		t.Fatal(err)
	}
	await.Until(t, "the relay is asked three times", func() bool { return asked.Load() >= 3 })
}

func TestRelaySettings(t *testing.T) {
	s, err := (&Config{Bootstrap: []string{off}, Relay: new(Relay)}).resolve(nil)
	if err != nil || *s.Relay != (Relay{MaxReservations: 4096, MaxReservationsPerIP: 256, MaxCircuits: 256}) {
		t.Errorf("%+v, %v", s.Relay, err)
	}
	if _, err := (Relay{MaxData: -1}).resolve(); err == nil {
		t.Error("a limit below 0")
	}
	other := s
	other.Relay = nil
	if s.Fits(s) != nil || s.Fits(other) == nil || other.Fits(s) == nil {
		t.Error("a relay can change in a reload")
	}
}
