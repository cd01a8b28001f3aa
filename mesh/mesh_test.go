// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "agentfm")
	if err != nil {
		panic(err)
	}
	os.Setenv("XDG_DATA_HOME", dir) // where Caddy keeps the id of this instance
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(
			// a storage lock that was given back is kept fresh for 5 s more
			goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"),
		); err != nil {
			println(err.Error())
			code = 1
		}
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// Where test hosts listen.
var (
	loopbackAddr = ma.StringCast("/ip4/127.0.0.1/tcp/0")
	loopbackQUIC = ma.StringCast("/ip4/127.0.0.1/udp/0/quic-v1")
)

func newKey(t testing.TB) crypto.PrivKey {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newTestApp returns an app whose node is open, on loopback and alone.
func newTestApp(t testing.TB, psk pnet.PSK) *App {
	t.Helper()
	return newTestAppOn(t, loopbackAddr, psk)
}

func newTestAppOn(t testing.TB, listen ma.Multiaddr, psk pnet.PSK) *App {
	t.Helper()
	a := &App{logger: zap.NewNop(), artifacts: newFolder(t, t.TempDir(), nil)}
	a.settings = Settings{Identity: "test", Listen: []ma.Multiaddr{listen}, SwarmKey: psk}
	key := newKey(t)
	n, err := openNode(a.settings, func() (crypto.PrivKey, error) { return key, nil }, a.logger)
	if err != nil {
		t.Fatal(err)
	}
	n.directory.open()
	a.node.Store(n)
	n.Join(a)
	t.Cleanup(n.Close)
	return a
}

// peerHost is another node of the mesh, which a test scripts.
type peerHost struct {
	*Host
	topic *pubsub.Topic
	wire.Telemetry
}

// newPeer returns a host that is connected to the app's node and can publish.
func newPeer(t testing.TB, a *App) *peerHost {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	h, err := NewHost(ctx, RoleWorker, newKey(t), a.settings.Listen, Settings{SwarmKey: a.settings.SwarmKey})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); _ = h.Close() })
	ps, err := NewPubSub(ctx, h, func(peer.ID) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	topic, err := ps.Join(wire.TelemetryTopic)
	if err != nil {
		t.Fatal(err)
	}
	node := a.node.Load().host
	if err := h.Connect(ctx, peer.AddrInfo{ID: node.ID(), Addrs: node.Addrs()}); err != nil {
		t.Fatal(err)
	}
	await.Until(t, "the node subscribes", func() bool { return len(topic.ListPeers()) > 0 })
	return &peerHost{Host: h, topic: topic, Telemetry: wire.Telemetry{
		PeerID: h.ID().String(), CPUCores: 1, Status: wire.StatusAvailable, MaxTasks: 4, Model: "m", AgentName: "a",
	}}
}

// publish publishes the peer's telemetry.
func (p *peerHost) publish(t testing.TB) {
	t.Helper()
	b, _ := json.Marshal(p.Telemetry)
	p.publishRaw(t, b)
}

func (p *peerHost) publishRaw(t testing.TB, b []byte) {
	t.Helper()
	if err := p.topic.Publish(context.Background(), b); err != nil {
		t.Fatal(err)
	}
}

// newWorker returns a worker that is in the directory and answers tasks with
// serve. Like AgentFM 1.3 it reads the frame to the end of the stream.
func newWorker(t testing.TB, a *App, serve func(network.Stream, wire.TaskRequest)) *peerHost {
	t.Helper()
	w := newPeer(t, a)
	w.SetStreamHandler(wire.TaskProtocol, func(s network.Stream) {
		frame, err := io.ReadAll(s)
		if err != nil {
			_ = s.Reset()
			return
		}
		req, err := wire.ReadTask(bytes.NewReader(frame))
		if err != nil {
			t.Errorf("worker got %q: %v", frame, err)
		}
		serve(s, req)
	})
	w.publish(t)
	await.Until(t, "the worker is online", func() bool {
		lease, err := a.Lease()
		if err != nil {
			return false
		}
		defer lease.Release()
		for _, i := range lease.Workers(false) {
			if i.PeerID == w.PeerID {
				return true
			}
		}
		return false
	})
	return w
}

// lease returns a lease that ends with the test.
func lease(t testing.TB, a *App) *Lease {
	t.Helper()
	l, err := a.Lease()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Release)
	return l
}

// gate is a condition that a test opens once.
type gate struct {
	once sync.Once
	c    chan struct{}
}

func newGate() *gate       { return &gate{c: make(chan struct{})} }
func (g *gate) open()      { g.once.Do(func() { close(g.c) }) }
func (g *gate) wait() bool { <-g.c; return true }

// shortenFilesGrace makes a test of a missing delivery quick.
func shortenFilesGrace(t *testing.T) {
	old := filesGrace
	filesGrace = 50 * time.Millisecond
	t.Cleanup(func() { filesGrace = old })
}
