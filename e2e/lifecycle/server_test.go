// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// server is the Caddy of this process, in a folder of the test's own. At the end
// of the test it has no configuration.
type server struct {
	gateway
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{gateway{t: t, place: newPlace(t)}}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		await(t, "the node and the agents have closed", closed)
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(s.place.dir, "log"))
			t.Logf("log:\n%s", log)
		}
	})
	return s
}

// goroutines returns the stacks of all goroutines.
func goroutines() []string {
	stacks := make([]byte, 16<<20)
	return strings.Split(string(stacks[:runtime.Stack(stacks, true)]), "\n\n")
}

// closed reports whether no node and no agent is open in this process. Those
// that only wait for their last requests would be revived by the next test.
func closed() bool {
	return !slices.ContainsFunc(goroutines(), func(stack string) bool {
		return strings.Contains(stack, "caddy-agentfm/mesh.") || strings.Contains(stack, "caddy-agentfm/worker.")
	})
}

// load loads a configuration and waits until its site answers.
func (s *server) load(c config) {
	s.t.Helper()
	if err := s.try(c); err != nil {
		s.t.Fatalf("loading %s: %v", c.name, err)
	}
	s.awaitName(c.name)
}

// try loads a configuration.
func (s *server) try(c config) error {
	s.t.Helper()
	return caddy.Load(c.json(s.t, s.place), false)
}

// node returns the peer id and the addresses of the gateway's node.
func (s *server) node() peer.AddrInfo {
	s.t.Helper()
	info, open := mesh.LocalNode()
	if !open {
		s.t.Fatal("the gateway's node is not open")
	}
	return info
}

// witness is a peer that only looks whether its connections to others end.
type witness struct {
	host.Host
	drops atomic.Int32
}

func newWitness(t *testing.T) *witness {
	t.Helper()
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	w := &witness{Host: h}
	h.Network().Notify(&network.NotifyBundle{DisconnectedF: func(network.Network, network.Conn) { w.drops.Add(1) }})
	return w
}

// connect connects to a peer over the addresses that have a protocol.
func (w *witness) connect(t *testing.T, to peer.AddrInfo, protocol int) {
	t.Helper()
	var addrs []ma.Multiaddr
	for _, a := range to.Addrs {
		if _, err := a.ValueForProtocol(protocol); err == nil {
			addrs = append(addrs, a)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := w.Connect(ctx, peer.AddrInfo{ID: to.ID, Addrs: addrs}); err != nil {
		t.Fatalf("connecting to %v: %v", addrs, err)
	}
}
