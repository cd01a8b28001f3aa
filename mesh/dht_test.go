// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bufio"
	"slices"
	"testing"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	dhtpb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	mocknet "github.com/libp2p/go-libp2p/p2p/net/mock"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/encoding/protodelim"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// named are addresses that a stranger may name; those of the first kind anybody may dial.
var named = map[bool][]string{
	true:  {"/ip4/8.8.8.8/tcp/4001", "/ip6/2a00:1450::1/tcp/4001", "/ip4/8.8.8.8/tcp/4001/p2p/12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL/p2p-circuit"},
	false: {"/ip4/127.0.0.1/tcp/22", "/ip4/10.0.0.1/tcp/22", "/ip4/169.254.169.254/tcp/80", "/ip6/::1/tcp/22", "/ip6/::ffff:127.0.0.1/tcp/22", "/ip6/fd00::1/tcp/22", "/dns4/localhost/tcp/22", "/dns4/example.org/tcp/22"},
}

// TestDHTPrivate has a peer answer a search, and announce itself, with addresses of all
// kinds. What is not on the public internet is learned from a peer that is not there either.
func TestDHTPrivate(t *testing.T) {
	for name, c := range map[string]struct {
		at   string
		want []string
	}{
		"from the internet": {"/ip4/9.9.9.9/tcp/4001", named[true]},
		"from this machine": {"/ip4/127.0.0.1/tcp/4001", slices.Concat(named[true], named[false])},
		"from this network": {"/ip4/192.168.1.2/tcp/4001", slices.Concat(named[true], named[false])},
	} {
		t.Run(name, func(t *testing.T) {
			net := mocknet.New()
			t.Cleanup(func() { _ = net.Close() })
			ours, err := net.AddPeer(newKey(t), ma.StringCast("/ip4/9.9.9.1/tcp/4001"))
			if err != nil {
				t.Fatal(err)
			}
			theirs, err := net.AddPeer(newKey(t), ma.StringCast(c.at))
			if err != nil {
				t.Fatal(err)
			}
			third, err := peer.IDFromPrivateKey(newKey(t))
			if err != nil {
				t.Fatal(err)
			}
			var addrs [][]byte
			for _, a := range slices.Concat(named[true], named[false]) {
				addrs = append(addrs, ma.StringCast(a).Bytes())
			}
			theirs.SetStreamHandler("/ipfs/kad/1.0.0", func(s network.Stream) {
				var m dhtpb.Message
				for r := bufio.NewReader(s); protodelim.UnmarshalFrom(r, &m) == nil; {
					m.CloserPeers = []*dhtpb.Message_Peer{{Id: []byte(third), Addrs: addrs}}
					_, _ = protodelim.MarshalTo(s, &m)
				}
				_ = s.Close()
			})
			d, err := newDHT(ours, dht.ModeServer, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = d.Close() })
			if err := net.LinkAll(); err != nil {
				t.Fatal(err)
			}
			if _, err := net.ConnectPeers(ours.ID(), theirs.ID()); err != nil {
				t.Fatal(err)
			}
			await.Until(t, "the peer is in the table", func() bool { return d.RoutingTable().Find(theirs.ID()) != "" })

			_, _ = d.FindPeer(t.Context(), third) // whom nobody can dial
			wantLearned(t, "a search", ours.Peerstore().Addrs(third), c.want)

			m := &dhtpb.Message{Type: dhtpb.Message_ADD_PROVIDER, Key: []byte("key"), ProviderPeers: []*dhtpb.Message_Peer{{Id: []byte(theirs.ID()), Addrs: addrs}}}
			if err := (&dhtSender{theirs, []protocol.ID{"/ipfs/kad/1.0.0"}}).SendMessage(t.Context(), ours.ID(), m); err != nil {
				t.Fatal(err)
			}
			await.Until(t, "the announcement is taken", func() bool {
				return slices.ContainsFunc(ours.Peerstore().Addrs(theirs.ID()), ma.StringCast(named[true][0]).Equal)
			})
			wantLearned(t, "an announcement", ours.Peerstore().Addrs(theirs.ID()), append(c.want, c.at))
		})
	}
}

// wantLearned compares addresses, in any order.
func wantLearned(t *testing.T, where string, got []ma.Multiaddr, want []string) {
	t.Helper()
	var learned, wanted []string
	for _, a := range got {
		learned = append(learned, a.String())
	}
	for _, a := range want {
		wanted = append(wanted, ma.StringCast(a).String())
	}
	slices.Sort(learned)
	slices.Sort(wanted)
	if !slices.Equal(learned, wanted) {
		t.Errorf("learned from %s:\n%q, want\n%q", where, learned, wanted)
	}
}
