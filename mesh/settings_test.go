// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"
	"github.com/ipfs/go-datastore"
	"github.com/libp2p/go-libp2p/core/crypto"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"go.uber.org/zap"
)

const swarmKey = "/key/swarm/psk/1.0.0/\n/base16/\n000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n"

func writeFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestSettingsDefaults(t *testing.T) {
	s, err := (*Config)(nil).resolve(zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Listen) != 2 || len(s.Bootstrap) != 1 || !s.MDNS || !s.DHT || s.SwarmKey != nil || s.Identity != "gateway" {
		t.Errorf("public mesh: %+v", s)
	}
	s, err = (&Config{SwarmKey: writeFile(t, swarmKey)}).resolve(zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Listen) != 1 || len(s.Bootstrap) != 0 || len(s.SwarmKey) != 32 || s.SwarmKey[31] != 0x1f {
		t.Errorf("private swarm: %+v", s)
	}
	s, err = (&Config{Bootstrap: []string{"off"}, Discovery: []string{"off"}}).resolve(zap.NewNop())
	if err != nil || s.MDNS || s.DHT || s.Bootstrap != nil {
		t.Errorf("off: %+v, %v", s, err)
	}
	t.Setenv("KEY", writeFile(t, strings.TrimSpace(swarmKey)))
	if s, err = (&Config{SwarmKey: "{env.KEY}"}).resolve(zap.NewNop()); err != nil || s.SwarmKey == nil {
		t.Errorf("placeholder, no last newline: %v", err)
	}
}

func TestSettingsRefuse(t *testing.T) {
	for name, c := range map[string]struct {
		config Config
		want   string
	}{
		"listen garbage":     {Config{Listen: []string{":4001"}}, "not a multiaddress"},
		"listen on a name":   {Config{Listen: []string{"/dns4/example.com/tcp/1"}}, "want /ip4 or /ip6"},
		"listen websocket":   {Config{Listen: []string{"/ip4/0.0.0.0/tcp/1/ws"}}, "want /ip4 or /ip6"},
		"QUIC with a key":    {Config{SwarmKey: "x", Listen: []string{"/ip4/0.0.0.0/udp/1/quic-v1"}}, "TCP only"},
		"bootstrap no id":    {Config{Bootstrap: []string{"/ip4/1.2.3.4/tcp/1"}}, "/p2p/<peer id>"},
		"bootstrap off, on":  {Config{Bootstrap: []string{"off", Lighthouse}}, "/p2p/<peer id>"},
		"discovery unknown":  {Config{Discovery: []string{"bonjour"}}, "bonjour"},
		"discovery doubled":  {Config{Discovery: []string{"mdns", "mdns"}}, "each once"},
		"discovery off, on":  {Config{Discovery: []string{"off", "dht"}}, "off alone"},
		"swarm key missing":  {Config{SwarmKey: "/nowhere"}, "no such file"},
		"swarm key garbage":  {Config{SwarmKey: writeFile(t, "secretsecret")}, "is not a swarm key"},
		"swarm key short":    {Config{SwarmKey: writeFile(t, swarmKey[:70])}, "is not a swarm key"},
		"identity undefined": {Config{Identity: "{env.NOBODY_SET_THIS}"}, "identity"},
	} {
		if c.config.SwarmKey == "x" {
			c.config.SwarmKey = writeFile(t, swarmKey)
		}
		_, err := c.config.resolve(zap.NewNop())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want …%s…", name, err, c.want)
		} else if strings.Contains(err.Error(), "secretsecret") {
			t.Errorf("%s: the error tells the secret: %v", name, err)
		}
	}
}

func TestIdentity(t *testing.T) {
	ctx := context.Background()
	storage := &certmagic.FileStorage{Path: t.TempDir()}
	load := func(name string) (crypto.PrivKey, error) { return LoadIdentity(ctx, storage, name, zap.NewNop()) }
	file := filepath.Join(t.TempDir(), "node.key")
	for _, name := range []string{"gateway", file} {
		a, err := load(name)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := load(name); err != nil || !a.Equals(b) {
			t.Errorf("%s: another key, %v", name, err)
		}
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the file: %v, %v", fi.Mode(), err)
	}
	if a, _ := load("other"); a == nil {
		t.Error("no second identity")
	} else if b, _ := load("gateway"); a.Equals(b) {
		t.Error("two names have one key")
	}
}

// TestInstanceID wants one id for all who ask at the same time on a first start.
func TestInstanceID(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	ids := make(chan string, 50)
	var asking sync.WaitGroup
	for range cap(ids) {
		asking.Go(func() {
			id, err := instanceID()
			if err != nil {
				t.Error(err)
			}
			ids <- id
		})
	}
	asking.Wait()
	first := <-ids
	for range cap(ids) - 1 {
		if id := <-ids; id != first {
			t.Fatalf("%s and %s", first, id)
		}
	}
	file := filepath.Join(caddy.AppDataDir(), "agentfm", "instance")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := instanceID(); err == nil {
		t.Errorf("damaged, and still %s", id)
	}
}

// TestIdentityDamaged wants an error and an untouched file for every kind of
// damage, and never a new identity.
func TestIdentityDamaged(t *testing.T) {
	ctx := context.Background()
	file := filepath.Join(t.TempDir(), "node.key")
	if _, err := LoadIdentity(ctx, nil, file, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	good, _ := os.ReadFile(file)
	rsa, _, _ := crypto.GenerateRSAKeyPair(2048, strings.NewReader(strings.Repeat("x", 1<<20)))
	other, _ := crypto.MarshalPrivateKey(rsa)
	for name, bad := range map[string][]byte{
		"empty": {}, "cut": good[:len(good)-1], "garbage": []byte("garbage"), "flipped": flip(good, 40), "RSA": other,
	} {
		_ = os.WriteFile(file, bad, 0o600)
		_, err := LoadIdentity(ctx, nil, file, zap.NewNop())
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		if after, _ := os.ReadFile(file); string(after) != string(bad) {
			t.Errorf("%s: the file was changed", name)
		}
	}
}

func flip(b []byte, i int) []byte {
	b = append([]byte(nil), b...)
	b[i] ^= 1
	return b
}

// TestPortTaken wants an error where libp2p by itself would share the port, or
// go without it.
func TestPortTaken(t *testing.T) {
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	taken, _ := manet.FromNetAddr(tcp.Addr())
	quic, _ := manet.FromNetAddr(udp.LocalAddr())
	quic = quic.Encapsulate(ma.StringCast("/quic-v1"))
	for _, listen := range [][]ma.Multiaddr{{taken}, {loopbackAddr, quic}} {
		h, err := NewHost(context.Background(), RoleGateway, newKey(t), listen, Settings{})
		if err == nil {
			_ = h.Close()
			t.Errorf("%v: no error", listen)
		}
	}
	// and two nodes of ours
	first, err := NewHost(context.Background(), RoleGateway, newKey(t), []ma.Multiaddr{loopbackAddr}, Settings{})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if h, err := NewHost(context.Background(), RoleGateway, newKey(t), first.Bound(), Settings{}); err == nil {
		_ = h.Close()
		t.Error("two nodes on one port")
	}
}

// TestIdentityInUse wants one host for an identity, and the next when it is closed.
func TestIdentityInUse(t *testing.T) {
	key := newKey(t)
	open := func() (*Host, error) {
		return NewHost(context.Background(), RoleGateway, key, []ma.Multiaddr{loopbackAddr}, Settings{})
	}
	first, err := open()
	if err != nil {
		t.Fatal(err)
	}
	if h, err := open(); err == nil || !strings.Contains(err.Error(), "is in use") {
		t.Errorf("a second host: %v, %v", h, err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	again, err := open()
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

// TestRecordsBounded wants what strangers store to have an end.
func TestRecordsBounded(t *testing.T) {
	ctx := context.Background()
	r := newRecords()
	stored := 0
	for i := range maxRecords + 100 {
		if r.Put(ctx, datastore.NewKey(strconv.Itoa(i)), []byte("x")) == nil {
			stored++
		}
	}
	if stored != maxRecords || r.Put(ctx, datastore.NewKey("0"), []byte("y")) != nil {
		t.Errorf("%d stored, or no update of what is stored", stored)
	}
	if err := r.Put(ctx, datastore.NewKey("0"), make([]byte, maxRecordBytes)); err == nil {
		t.Error("no bound on bytes")
	}
	if err := r.Delete(ctx, datastore.NewKey("1")); err != nil || r.Put(ctx, datastore.NewKey("new"), nil) != nil {
		t.Errorf("no room after a deletion: %v", err)
	}
	if batch, err := r.Batch(ctx); err != nil || batch.Put(ctx, datastore.NewKey("b"), nil) != nil || batch.Commit(ctx) == nil {
		t.Errorf("a batch goes around the bound: %v", err)
	}
}

func TestFits(t *testing.T) {
	base := Settings{Identity: "a", Listen: []ma.Multiaddr{loopbackAddr}}
	for want, s := range map[string]Settings{
		"identity":  {Identity: "b", Listen: base.Listen},
		"listen":    {Identity: "a"},
		"swarm_key": {Identity: "a", Listen: base.Listen, SwarmKey: make([]byte, 32)},
		"discovery": {Identity: "a", Listen: base.Listen, DHT: true},
	} {
		if err := s.Fits(base); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
	if err := base.Fits(base); err != nil {
		t.Error(err)
	}
}

// TestNodeEnds follows a node through the end of its last configuration with a
// request in flight, and back.
func TestNodeEnds(t *testing.T) {
	a := newTestApp(t, nil)
	n := a.node.Load()
	reopen := func() (*node, error) {
		return openNode(n.settings, func() (crypto.PrivKey, error) { return nil, errors.New("a new node") }, zap.NewNop())
	}
	request := lease(t, a)
	n.Leave(a)
	_ = n.Destruct()
	if _, err := a.Lease(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a lease of a node that ends: %v", err)
	}
	if again, err := reopen(); err != nil || again != n {
		t.Fatalf("with a request in flight: %v", err)
	}
	_ = n.Destruct()
	request.Release()
	request.Release()
	if live.Load() != nil {
		t.Error("open after its last request")
	}
	if _, err := reopen(); err == nil || !strings.Contains(err.Error(), "a new node") {
		t.Errorf("after its end: %v", err)
	}
}
