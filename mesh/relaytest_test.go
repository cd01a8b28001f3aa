// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

const somePeer = "/p2p/12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL"

// fakeNames makes the names of a test resolve.
func fakeNames(t *testing.T, ips map[string][]string, txt map[string][]string) {
	t.Helper()
	mock := &madns.MockResolver{IP: map[string][]net.IPAddr{}, TXT: txt}
	for name, list := range ips {
		for _, ip := range list {
			mock.IP[name] = append(mock.IP[name], net.IPAddr{IP: net.ParseIP(ip)})
		}
	}
	r, err := madns.NewResolver(madns.WithDefaultResolver(mock))
	if err != nil {
		t.Fatal(err)
	}
	old := resolver
	resolver = r
	t.Cleanup(func() { resolver = old })
}

// TestRelayTarget is about what would be dialled, and dials nothing.
func TestRelayTarget(t *testing.T) {
	fakeNames(t, map[string][]string{
		"public.example":   {"8.8.8.8", "2606:4700::1111"},
		"private.example":  {"10.0.0.1"},
		"metadata.example": {"169.254.169.254"},
		"mapped.example":   {"::ffff:192.168.0.1"},
		"nat64.example":    {"64:ff9b::a9fe:a9fe"},
		"mixed.example":    {"192.168.0.1", "8.8.8.8", "fe80::1", "::1"},
		"localhost":        {"127.0.0.1", "::1"},
		"none.example":     {},
	}, map[string][]string{
		"_dnsaddr.good.example":    {"dnsaddr=/ip4/8.8.4.4/tcp/4001" + somePeer, "other text"},
		"_dnsaddr.bad.example":     {"dnsaddr=/ip4/10.0.0.1/tcp/4001" + somePeer},
		"_dnsaddr.circuit.example": {"dnsaddr=/ip4/8.8.4.4/tcp/4001/p2p/12D3KooWGRUVh7Vu2jzqTP5rzXnEjgEGTrZ9bnhrJLTBDJcPJpEo/p2p-circuit" + somePeer},
		"_dnsaddr.another.example": {"dnsaddr=/ip4/8.8.4.4/tcp/4001/p2p/12D3KooWGRUVh7Vu2jzqTP5rzXnEjgEGTrZ9bnhrJLTBDJcPJpEo"},
		"_dnsaddr.twice.example":   {"dnsaddr=/dnsaddr/good.example" + somePeer},
		"_dnsaddr.name.example":    {"dnsaddr=/dns4/private.example/tcp/1" + somePeer},
		"_dnsaddr.loop.example":    {"dnsaddr=/dnsaddr/loop.example" + somePeer, "dnsaddr=/dnsaddr/loop.example" + somePeer},
		"_dnsaddr.many.example": slices.Collect(func(yield func(string) bool) {
			for i := range 200 {
				if !yield(fmt.Sprintf("dnsaddr=/ip4/8.8.8.%d/tcp/4001%s", i, somePeer)) {
					return
				}
			}
		}),
	})
	for addr, want := range map[string]string{
		// dialled
		"/ip4/8.8.8.8/tcp/4001":               "/ip4/8.8.8.8/tcp/4001",
		"/ip4/8.8.8.8/udp/4001/quic-v1":       "/ip4/8.8.8.8/udp/4001/quic-v1",
		"/ip4/127.0.0.1/tcp/4001":             "/ip4/127.0.0.1/tcp/4001",
		"/ip4/127.255.0.1/tcp/4001":           "/ip4/127.255.0.1/tcp/4001",
		"/ip6/::1/tcp/4001":                   "/ip6/::1/tcp/4001",
		"/ip6/2606:4700::1111/tcp/4001":       "/ip6/2606:4700::1111/tcp/4001",
		"/ip6/::ffff:8.8.8.8/tcp/4001":        "/ip6/::ffff:8.8.8.8/tcp/4001",
		"/dns4/public.example/tcp/4001":       "/ip4/8.8.8.8/tcp/4001",
		"/dns6/public.example/tcp/4001":       "/ip6/2606:4700::1111/tcp/4001",
		"/dns/public.example/tcp/4001":        "/ip4/8.8.8.8/tcp/4001 /ip6/2606:4700::1111/tcp/4001",
		"/dns/mixed.example/udp/4001/quic-v1": "/ip4/8.8.8.8/udp/4001/quic-v1 /ip6/::1/udp/4001/quic-v1",
		"/dns/localhost/tcp/4001":             "/ip4/127.0.0.1/tcp/4001 /ip6/::1/tcp/4001",
		"/dnsaddr/good.example":               "/ip4/8.8.4.4/tcp/4001",
		"/dnsaddr/twice.example":              "/ip4/8.8.4.4/tcp/4001",
		// not
		"/ip4/0.0.0.0/tcp/4001":                         "",
		"/ip4/0.1.2.3/tcp/4001":                         "",
		"/ip4/10.0.0.1/tcp/4001":                        "",
		"/ip4/10.0.0.1/udp/4001/quic-v1":                "",
		"/ip4/100.64.0.1/tcp/4001":                      "",
		"/ip4/100.100.100.200/tcp/80":                   "",
		"/ip4/169.254.169.254/tcp/80":                   "",
		"/ip4/172.16.0.1/tcp/4001":                      "",
		"/ip4/172.31.255.255/tcp/4001":                  "",
		"/ip4/192.0.0.1/tcp/4001":                       "",
		"/ip4/192.0.2.1/tcp/4001":                       "",
		"/ip4/192.88.99.1/tcp/4001":                     "",
		"/ip4/192.168.1.1/tcp/4001":                     "",
		"/ip4/198.18.0.1/tcp/4001":                      "",
		"/ip4/203.0.113.1/tcp/4001":                     "",
		"/ip4/224.0.0.1/udp/4001/quic-v1":               "",
		"/ip4/239.1.2.3/tcp/4001":                       "",
		"/ip4/240.0.0.1/tcp/4001":                       "",
		"/ip4/255.255.255.255/tcp/4001":                 "",
		"/ip6/::/tcp/4001":                              "",
		"/ip6/::ffff:10.0.0.1/tcp/4001":                 "",
		"/ip6/::ffff:169.254.169.254/tcp/80":            "",
		"/ip6/::127.0.0.1/tcp/4001":                     "",
		"/ip6/::ffff:0:127.0.0.1/tcp/4001":              "",
		"/ip6/64:ff9b::a9fe:a9fe/tcp/80":                "",
		"/ip6/64:ff9b::808:808/tcp/80":                  "",
		"/ip6/64:ff9b:1::1/tcp/80":                      "",
		"/ip6/2002:7f00:1::/tcp/80":                     "",
		"/ip6/2002:a9fe:a9fe::/tcp/80":                  "",
		"/ip6/2001:0:1::1/tcp/80":                       "",
		"/ip6/2001:db8::1/tcp/80":                       "",
		"/ip6/fc00::1/tcp/80":                           "",
		"/ip6/fd00:ec2::254/tcp/80":                     "",
		"/ip6/fe80::1/tcp/80":                           "",
		"/ip6/fec0::1/tcp/80":                           "",
		"/ip6/ff02::1/udp/4001/quic-v1":                 "",
		"/ip6zone/eth0/ip6/fe80::1/tcp/80":              "",
		"/ip6zone/lo/ip6/::1/tcp/80":                    "",
		"/ip6/5f00::1/tcp/80":                           "",
		"/dns4/private.example/tcp/80":                  "",
		"/dns4/metadata.example/tcp/80":                 "",
		"/dns4/mapped.example/tcp/80":                   "",
		"/dns6/mapped.example/tcp/80":                   "",
		"/dns6/nat64.example/tcp/80":                    "",
		"/dns/none.example/tcp/80":                      "",
		"/dns/unknown.example/tcp/80":                   "",
		"/dnsaddr/bad.example":                          "",
		"/dnsaddr/circuit.example":                      "",
		"/dnsaddr/another.example":                      "",
		"/dnsaddr/name.example":                         "",
		"/dnsaddr/loop.example":                         "",
		"/ip4/8.8.8.8/tcp/443/ws":                       "",
		"/ip4/8.8.8.8/tcp/443/tls/ws":                   "",
		"/ip4/8.8.8.8/udp/4001":                         "",
		"/ip4/8.8.8.8/udp/4001/quic-v1/webtransport":    "",
		"/ip4/8.8.8.8":                                  "",
		"/ip4/8.8.8.8/tcp/1/ip4/10.0.0.1/tcp/1":         "",
		"/ip4/10.0.0.1/tcp/1/dns4/public.example/tcp/1": "",
		"/unix/tmp%2fsocket":                            "",
		"/tcp/4001":                                     "",
	} {
		got, err := relayTarget(t.Context(), addr+somePeer)
		if text := strings.Trim(fmt.Sprint(got.Addrs), "[]"); text != want || (want == "") != (err != nil) {
			t.Errorf("%s: got %q, %v, want %q", addr, text, err, want)
		}
	}
	many, err := relayTarget(t.Context(), "/dnsaddr/many.example"+somePeer)
	if err != nil || len(many.Addrs) != maxRelayAddrs {
		t.Errorf("of 200 addresses %d are dialled, %v", len(many.Addrs), err)
	}
	for addr, want := range map[string]string{
		"":                            "not a multiaddress",
		"8.8.8.8:4001":                "not a multiaddress",
		"https://8.8.8.8/":            "not a multiaddress",
		"/ip4/8.8.8.8/tcp/4001":       "does not end in /p2p",
		"/ip4/8.8.8.8/tcp/4001/p2p/x": "not a multiaddress",
		somePeer:                      "not where",
		"/ip4/8.8.8.8/tcp/1/p2p/12D3KooWGRUVh7Vu2jzqTP5rzXnEjgEGTrZ9bnhrJLTBDJcPJpEo/p2p-circuit" + somePeer: "own",
		"/p2p-circuit" + somePeer:                "own",
		"/dns4/unknown.example/tcp/1" + somePeer: "no addresses",
		"/ip4/10.0.0.1/tcp/1" + somePeer:         "only public and loopback",
	} {
		if _, err := relayTarget(t.Context(), addr); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want …%s…", addr, err, want)
		}
	}
}

// FuzzRelayTarget wants nothing to be dialled that may not be.
func FuzzRelayTarget(f *testing.F) {
	for _, seed := range []string{
		"/ip4/8.8.8.8/tcp/4001", "/ip4/10.0.0.1/tcp/4001", "/ip6/::ffff:10.0.0.1/tcp/1", "/dns4/private.example/tcp/1",
		"/dnsaddr/private.example", "/ip4/8.8.8.8/udp/1/quic-v1/p2p-circuit", "/ip6zone/lo/ip6/::1/tcp/1",
	} {
		f.Add(seed + somePeer)
	}
	mock := &madns.MockResolver{IP: map[string][]net.IPAddr{"private.example": {{IP: net.IPv4(10, 0, 0, 1)}, {IP: net.IPv4(8, 8, 8, 8)}}}}
	r, err := madns.NewResolver(madns.WithDefaultResolver(mock))
	if err != nil {
		f.Fatal(err)
	}
	old := resolver
	resolver = r
	f.Cleanup(func() { resolver = old })
	f.Fuzz(func(t *testing.T, addr string) {
		target, err := relayTarget(t.Context(), addr)
		if (err == nil) != (len(target.Addrs) > 0) {
			t.Errorf("%q: %v, %v", addr, target, err)
		}
		for _, a := range target.Addrs {
			ip, err := manet.ToIP(a)
			if err != nil || !ip.IsLoopback() && (ip.IsPrivate() || !ip.IsGlobalUnicast()) {
				t.Errorf("%q: would dial %s", addr, a)
			}
		}
	})
}

// TestTestRelay dials real nodes, and wants the gateway's own not to notice.
func TestTestRelay(t *testing.T) {
	for name, psk := range map[string][]byte{"public": nil, "private": make([]byte, 32)} {
		t.Run(name, func(t *testing.T) {
			a := newTestApp(t, psk)
			listen := []ma.Multiaddr{loopbackAddr}
			if psk == nil {
				listen = append(listen, loopbackQUIC)
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			relay, err := NewHost(ctx, RoleGateway, newKey(t), listen, Settings{SwarmKey: psk})
			if err != nil {
				t.Fatal(err)
			}
			defer relay.Close()
			node := a.node.Load().host
			known := len(node.Peerstore().Peers())
			l := lease(t, a)
			for _, addr := range relay.Bound() {
				id, err := l.TestRelay(ctx, addr.String()+"/p2p/"+relay.ID().String())
				if err != nil || id != relay.ID().String() {
					t.Errorf("%s: got %q, %v", addr, id, err)
				}
				if id, err := l.TestRelay(ctx, addr.String()+somePeer); err == nil || !strings.Contains(err.Error(), "another peer") {
					t.Errorf("as another peer: got %q, %v", id, err)
				}
			}
			if n := len(node.Peerstore().Peers()); n != known || node.Network().Connectedness(relay.ID()) != network.NotConnected {
				t.Errorf("the node knows %d peers, before %d", n, known)
			}
			if id, err := l.TestRelay(ctx, node.Bound()[0].String()+"/p2p/"+node.ID().String()); err != nil || id != node.ID().String() {
				t.Errorf("the node itself: got %q, %v", id, err)
			}
			await.Until(t, "the relay is alone", func() bool { return len(relay.Network().Conns()) == 0 })
		})
	}
}

func TestTestRelayFails(t *testing.T) {
	l := lease(t, newTestApp(t, nil))
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := closed.Addr().(*net.TCPAddr).Port
	_ = closed.Close()
	if _, err := l.TestRelay(t.Context(), fmt.Sprintf("/ip4/127.0.0.1/tcp/%d%s", port, somePeer)); err == nil || !strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("nobody listens: %v", err)
	}

	// A listener that says nothing takes the whole time. Meanwhile no fifth test begins.
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	addr := fmt.Sprintf("/ip4/127.0.0.1/tcp/%d%s", mute.Addr().(*net.TCPAddr).Port, somePeer)
	ctx, cancel := context.WithCancel(t.Context())
	results := make(chan error)
	for range maxRelayTests {
		go func() { _, err := l.TestRelay(ctx, addr); results <- err }()
	}
	await.Until(t, "four are under way", func() bool { return len(relayTests) == maxRelayTests })
	if _, err := l.TestRelay(ctx, addr); !errors.Is(err, ErrRelayTests) {
		t.Errorf("a fifth: %v", err)
	}
	cancel()
	for range maxRelayTests {
		if err := <-results; err == nil {
			t.Error("a mute listener is a relay")
		}
	}
	if _, err := l.TestRelay(t.Context(), addr); err == nil || !strings.Contains(err.Error(), "no answer within") {
		t.Errorf("nobody answers: %v", err)
	}
}

func TestAbout(t *testing.T) {
	a := newTestApp(t, nil)
	relay := newPeer(t, a)
	l := lease(t, a)
	if got := l.About(); got.Peer != a.node.Load().host.ID().String() || got.Relay != "" || got.RelayAddr != "" || got.Version == "" || got.Uptime <= 0 {
		t.Errorf("got %+v", got)
	}
	addr := ma.StringCast("/ip4/127.0.0.1/tcp/4001")
	next := &App{logger: a.logger, settings: a.settings} // of a reload
	next.settings.Bootstrap = []peer.AddrInfo{{ID: testPeer(t), Addrs: []ma.Multiaddr{addr}}, {ID: relay.ID(), Addrs: []ma.Multiaddr{addr}}}
	a.node.Load().Join(next)
	if got := l.About(); got.Relay != relay.PeerID || got.RelayAddr != "/ip4/127.0.0.1/tcp/4001/p2p/"+relay.PeerID {
		t.Errorf("got %+v", got)
	}
}

func TestVersion(t *testing.T) {
	module := func(path, version string) debug.Module { return debug.Module{Path: path, Version: version} }
	ours, other := module(modulePath, "v1.2.3"), module("example.com/caddy", "v9.9.9")
	replaced := module(modulePath, "v0.0.0")
	replaced.Replace = &debug.Module{Path: "example.com/fork", Version: "v1.2.4"}
	local := module(modulePath, "v0.0.0")
	local.Replace = &debug.Module{Path: "../clone"}
	for want, info := range map[string]debug.BuildInfo{
		"v1.2.3":  {Main: other, Deps: []*debug.Module{&other, &ours}},
		"v1.2.4":  {Main: other, Deps: []*debug.Module{&replaced}},
		"v0.0.0":  {Main: other, Deps: []*debug.Module{&local}},
		"(devel)": {Main: other},
	} {
		if got := versionIn(&info); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got := versionIn(&debug.BuildInfo{Main: ours}); got != "v1.2.3" {
		t.Errorf("as the main module: got %s", got)
	}
}
