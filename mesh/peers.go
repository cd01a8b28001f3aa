// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
)

// pingTimeout bounds one ping, with the dialling that it may need.
const pingTimeout = 10 * time.Second

// maxAgentVersion bounds what a peer says of its software, in bytes.
const maxAgentVersion = 128

// ErrBadPeer says that a text names no peer.
var ErrBadPeer = errors.New("want a peer id, or a multiaddress that ends in /p2p/<peer id>")

// PeerInfo is a peer to which the node is connected.
type PeerInfo struct {
	// ID is the peer id.
	ID string `json:"peer_id"`
	// Connections are those to the peer.
	Connections []ConnInfo `json:"connections"`
	// AgentVersion is what the peer says of its software; empty while it has
	// not said. It is cut at 128 bytes, and what is not printable is left out.
	AgentVersion string `json:"agent_version"`
	// LatencyMS is the usual time of a round trip in milliseconds; 0 when it is
	// not known.
	LatencyMS float64 `json:"latency_ms,omitzero"`
	// Bootstrap says that it is one of the bootstrap nodes.
	Bootstrap bool `json:"is_bootstrap"`
}

// ConnInfo is a connection to a peer.
type ConnInfo struct {
	// Address is the peer's end.
	Address string `json:"address"`
	// Direction is "inbound" or "outbound".
	Direction string `json:"direction"`
	// Limited says that it goes through a relay.
	Limited bool `json:"limited"`
	// Opened is when it was opened.
	Opened time.Time `json:"opened"`
}

// Peers returns the peers to which the node is connected, in the order of their
// ids.
func (l *Lease) Peers() []PeerInfo {
	h := l.node.host
	byID := make(map[peer.ID]*PeerInfo)
	for _, c := range h.Network().Conns() {
		id := c.RemotePeer()
		p, ok := byID[id]
		if !ok {
			p = &PeerInfo{ID: id.String(), Bootstrap: l.node.isBootstrap(id)}
			if v, err := h.Peerstore().Get(id, "AgentVersion"); err == nil {
				text, _ := v.(string)
				p.AgentVersion = printable(text[:min(len(text), maxAgentVersion)])
			}
			p.LatencyMS = milliseconds(h.Peerstore().LatencyEWMA(id))
			byID[id] = p
		}
		p.Connections = append(p.Connections, ConnInfo{
			Address:   c.RemoteMultiaddr().String(),
			Direction: strings.ToLower(c.Stat().Direction.String()),
			Limited:   c.Stat().Limited,
			Opened:    c.Stat().Opened.UTC(),
		})
	}
	out := make([]PeerInfo, 0, len(byID))
	for _, p := range byID {
		slices.SortFunc(p.Connections, func(a, b ConnInfo) int { return cmp.Compare(a.Address, b.Address) })
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b PeerInfo) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// printable returns what of a text can be shown.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
}

// milliseconds returns d in milliseconds.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Ping returns the time of one round trip to a peer, named by its id or by a
// multiaddress that ends in it. The node connects to it when it is not; that and
// the round trip take 10 s at most. The error wraps [ErrBadPeer] when the text
// names no peer.
func (l *Lease) Ping(ctx context.Context, target string) (time.Duration, error) {
	info, err := parsePeer(target)
	if err != nil {
		return 0, err
	}
	h := l.node.host
	if info.ID == h.ID() {
		return 0, errors.New("this is the node itself")
	}
	ctx, cancel := context.WithTimeout(network.WithAllowLimitedConn(ctx, "ping"), pingTimeout)
	defer cancel()
	if err := h.Connect(ctx, info); err != nil {
		return 0, fmt.Errorf("connecting: %w", err)
	}
	select {
	case r := <-ping.Ping(ctx, h, info.ID):
		return r.RTT, r.Error
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}

// parsePeer reads a peer id or a multiaddress that ends in one.
func parsePeer(s string) (peer.AddrInfo, error) {
	if id, err := peer.Decode(s); err == nil {
		return peer.AddrInfo{ID: id}, nil
	}
	info, err := peer.AddrInfoFromString(s)
	if err != nil {
		return peer.AddrInfo{}, ErrBadPeer
	}
	return *info, nil
}
