// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"fmt"
	"os"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/pnet"
	ma "github.com/multiformats/go-multiaddr"
	"go.uber.org/zap"
)

// off switches a list setting off.
const off = "off"

// Lighthouse is the public node of the AgentFM mesh. It is the default
// bootstrap address of a node without a swarm key.
const Lighthouse = "/ip4/78.47.21.107/tcp/4001/p2p/12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL"

// Methods of discovery.
const (
	discoveryMDNS = "mdns"
	discoveryDHT  = "dht"
)

// Config says how this process takes part in a mesh. Its agents take part the
// same way, each with an identity and addresses of its own.
type Config struct {
	// Identity of the gateway's node: a name, under which an Ed25519 key is
	// kept in Caddy's storage for this instance of Caddy, or a path (with a
	// slash in it) to a key file as libp2p marshals it. A key that does not
	// exist is made; a damaged one is an error. Default: "gateway".
	Identity string `json:"identity,omitempty"`

	// Listen is the list of multiaddresses on which the gateway's node accepts
	// connections. Default: /ip4/0.0.0.0/tcp/4001, and without a swarm key
	// /ip4/0.0.0.0/udp/4001/quic-v1 too.
	Listen []string `json:"listen,omitempty"`

	// Bootstrap is the list of nodes to stay connected to, as multiaddresses
	// that end in /p2p/<peer id>, or "off". Default: the public lighthouse of
	// AgentFM; with a swarm key, none.
	Bootstrap []string `json:"bootstrap,omitempty"`

	// SwarmKey is the file of a private swarm's key (libp2p PSK v1). Nodes
	// without the key cannot connect. A private swarm uses TCP only. Default: none.
	SwarmKey string `json:"swarm_key,omitempty"`

	// Discovery lists how other nodes are found beside the bootstrap nodes:
	// "mdns" on the local network, "dht" through the Kademlia DHT; or "off".
	// Default: both.
	Discovery []string `json:"discovery,omitempty"`

	// Relay makes the node carry connections to nodes that nobody can dial, and keep the
	// ledger of the mesh for others, also when no site uses it. Default: none.
	Relay *Relay `json:"relay,omitempty"`
}

// Settings are a Config with its defaults, placeholders and files resolved.
type Settings struct {
	// Identity is the name or path of the node's key.
	Identity string
	// Listen are the addresses to listen on.
	Listen []ma.Multiaddr
	// Bootstrap are the nodes to stay connected to.
	Bootstrap []peer.AddrInfo
	// SwarmKey is the key of the private swarm, or nil.
	SwarmKey pnet.PSK
	// MDNS and DHT say which discovery is on.
	MDNS, DHT bool
	// Relay are the limits of a relay, or nil.
	Relay *Relay
}

// resolve fills in defaults, replaces placeholders and reads the swarm key. It
// opens nothing but that file.
func (c *Config) resolve(logger *zap.Logger) (Settings, error) {
	if c == nil {
		c = new(Config)
	}
	repl := caddy.NewReplacer()
	var s Settings
	var err error

	s.Identity = "gateway"
	if c.Identity != "" {
		if s.Identity, err = repl.ReplaceOrErr(c.Identity, true, true); err != nil {
			return s, fmt.Errorf("identity: %w", err)
		}
	}
	if c.SwarmKey != "" {
		if s.SwarmKey, err = readSwarmKey(repl, c.SwarmKey, logger); err != nil {
			return s, fmt.Errorf("swarm_key: %w", err)
		}
	}
	if s.Listen, err = ParseListen(c.Listen, s.SwarmKey != nil, defaultListen); err != nil {
		return s, fmt.Errorf("listen: %w", err)
	}
	if s.Bootstrap, err = c.bootstrap(repl); err != nil {
		return s, fmt.Errorf("bootstrap: %w", err)
	}
	if s.MDNS, s.DHT, err = parseDiscovery(c.Discovery); err != nil {
		return s, fmt.Errorf("discovery: %w", err)
	}
	if c.Relay != nil {
		if s.Relay, err = c.Relay.resolve(); err != nil {
			return s, fmt.Errorf("relay: %w", err)
		}
	}
	return s, nil
}

// defaultListen is where a node listens unless told otherwise.
var defaultListen = []string{"/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1"}

// ParseListen parses listen addresses, or takes the given defaults when there
// are none. In a private swarm only TCP is possible: of the defaults QUIC is
// left out, and asking for it is an error.
func ParseListen(addrs []string, private bool, defaults []string) ([]ma.Multiaddr, error) {
	asked := len(addrs) > 0
	if !asked {
		addrs = defaults
	}
	var out []ma.Multiaddr
	for _, s := range addrs {
		s, err := caddy.NewReplacer().ReplaceOrErr(s, true, true)
		if err != nil {
			return nil, err
		}
		a, err := ma.NewMultiaddr(s)
		if err != nil {
			return nil, fmt.Errorf("%q is not a multiaddress such as /ip4/0.0.0.0/tcp/4001: %w", s, err)
		}
		if !listenable(a) {
			return nil, fmt.Errorf("%q: want /ip4 or /ip6, then /tcp/<port> or /udp/<port>/quic-v1", s)
		}
		if private && hasProtocol(a, ma.P_QUIC_V1) {
			if asked {
				return nil, fmt.Errorf("%q: a swarm_key allows TCP only; remove the QUIC address", s)
			}
			continue
		}
		out = append(out, a)
	}
	return out, nil
}

// listenable reports whether a is a TCP or QUIC address that a node can bind.
func listenable(a ma.Multiaddr) bool {
	var codes []int
	for _, p := range a.Protocols() {
		codes = append(codes, p.Code)
	}
	for _, ip := range []int{ma.P_IP4, ma.P_IP6} {
		if slices.Equal(codes, []int{ip, ma.P_TCP}) || slices.Equal(codes, []int{ip, ma.P_UDP, ma.P_QUIC_V1}) {
			return true
		}
	}
	return false
}

// hasProtocol reports whether the address contains a protocol.
func hasProtocol(a ma.Multiaddr, code int) bool {
	_, err := a.ValueForProtocol(code)
	return err == nil
}

// bootstrap returns the nodes to stay connected to.
func (c *Config) bootstrap(repl *caddy.Replacer) ([]peer.AddrInfo, error) {
	list := c.Bootstrap
	switch {
	case slices.Equal(list, []string{off}):
		return nil, nil
	case len(list) == 0 && c.SwarmKey != "":
		return nil, nil
	case len(list) == 0:
		list = []string{Lighthouse}
	}
	var addrs []ma.Multiaddr
	for _, s := range list {
		s, err := repl.ReplaceOrErr(s, true, true)
		if err != nil {
			return nil, err
		}
		a, err := ma.NewMultiaddr(s)
		if err != nil || !hasProtocol(a, ma.P_P2P) {
			return nil, fmt.Errorf("%q is not a multiaddress that ends in /p2p/<peer id>, nor %q alone", s, off)
		}
		addrs = append(addrs, a)
	}
	return peer.AddrInfosFromP2pAddrs(addrs...)
}

// parseDiscovery reads the list of discovery methods.
func parseDiscovery(list []string) (mdns, dht bool, err error) {
	if len(list) == 0 {
		return true, true, nil
	}
	if slices.Equal(list, []string{off}) {
		return false, false, nil
	}
	for _, m := range list {
		switch {
		case m == discoveryMDNS && !mdns:
			mdns = true
		case m == discoveryDHT && !dht:
			dht = true
		default:
			return false, false, fmt.Errorf("%q: want mdns and dht, each once at most, or off alone", m)
		}
	}
	return mdns, dht, nil
}

// readSwarmKey reads and checks a key file. Its content never gets into an error.
func readSwarmKey(repl *caddy.Replacer, file string, logger *zap.Logger) (pnet.PSK, error) {
	file, err := repl.ReplaceOrErr(file, true, true)
	if err != nil {
		return nil, err
	}
	warnOpen(file, logger)
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	psk, err := pnet.DecodeV1PSK(bytes.NewReader(append(bytes.TrimSpace(b), '\n')))
	if err != nil || len(psk) != 32 {
		return nil, fmt.Errorf("%s is not a swarm key: want the lines /key/swarm/psk/1.0.0/, /base16/ and 64 hex digits", file)
	}
	return psk, nil
}

// Fits returns an error that names the first setting which a host that is open
// with the settings t cannot change to s.
func (s Settings) Fits(t Settings) error {
	changed := func(what string) error {
		return fmt.Errorf("changing %s needs a restart of Caddy; what is open keeps what it has", what)
	}
	switch {
	case s.Identity != t.Identity:
		return changed("identity")
	case !slices.EqualFunc(s.Listen, t.Listen, ma.Multiaddr.Equal):
		return changed("listen")
	case !bytes.Equal(s.SwarmKey, t.SwarmKey):
		return changed("swarm_key")
	case s.MDNS != t.MDNS || s.DHT != t.DHT:
		return changed("discovery")
	case (s.Relay == nil) != (t.Relay == nil) || s.Relay != nil && *s.Relay != *t.Relay:
		return changed("relay")
	}
	return nil
}
