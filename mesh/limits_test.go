// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	ma "github.com/multiformats/go-multiaddr"
)

// TestRelayConnections wants a relay to have room for the connections of all nodes that
// its settings say it keeps reachable, also when many are behind one router.
func TestRelayConnections(t *testing.T) {
	for _, r := range []Relay{{}, {MaxReservations: 10_000, MaxReservationsPerIP: 2000}} {
		relay, _ := openRelay(t, r)
		limits, _ := r.resolve()
		info := relay.ConnManager().(*connmgr.BasicConnMgr).GetInfo()
		if info.LowWater < limits.MaxReservations {
			t.Errorf("%d reservations, but connections are closed until %d are left", limits.MaxReservations, info.LowWater)
		}
		for i := range limits.MaxReservations {
			house := i / limits.MaxReservationsPerIP
			openConnection(t, relay, i, network.DirInbound, fmt.Sprintf("/ip4/1.1.%d.%d/tcp/%d", house>>8, house&255, 1024+i))
		}
	}
}

// TestCircuitsByRelay wants a host to reach more nodes by a relay that it knows than there
// may be connections with one address: they count for the relay's.
func TestCircuitsByRelay(t *testing.T) {
	id := "/p2p/12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL"
	for _, relay := range []string{"/ip4/9.9.9.9/tcp/4001", "/ip6/2a00:1450::1/tcp/4001"} {
		info, err := peer.AddrInfoFromString(relay + id)
		if err != nil {
			t.Fatal(err)
		}
		h := newRelayHost(t, RoleGateway, Settings{Bootstrap: []peer.AddrInfo{*info}}, loopbackAddr)
		for i := range 2 * connectionsPerIP {
			openConnection(t, h, i, network.DirOutbound, relay+id+"/p2p-circuit")
		}
	}
}

// openConnection takes the place of a connection with the i-th peer in a host's limits.
func openConnection(t *testing.T, h *Host, i int, dir network.Direction, addr string) {
	t.Helper()
	scope, err := h.Network().ResourceManager().OpenConnection(dir, true, ma.StringCast(addr))
	if err != nil {
		t.Fatalf("%d, %s: %v", i, addr, err)
	}
	t.Cleanup(scope.Done)
	if err := scope.SetPeer(peer.ID(fmt.Sprint(i))); err != nil {
		t.Fatalf("%d, %s: %v", i, addr, err)
	}
}
