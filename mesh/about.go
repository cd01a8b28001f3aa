// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"runtime/debug"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// modulePath is the path of this Go module.
const modulePath = "github.com/Agent-FM/caddy-agentfm"

// began is when this process began.
var began = time.Now()

// About describes the node.
type About struct {
	// Peer is the node's peer id.
	Peer string
	// Relay is the first bootstrap node to which there is a connection, and
	// RelayAddr its first address. Both are empty while there is none.
	Relay, RelayAddr string
	// Version is that of this module; see [Version].
	Version string
	// Uptime is how long this process runs.
	Uptime time.Duration
}

// About describes the node as it is now.
func (l *Lease) About() About {
	a := About{Peer: l.node.host.ID().String(), Version: Version(), Uptime: time.Since(began)}
	for _, b := range l.node.bootstrap() {
		if l.node.host.Network().Connectedness(b.ID) != network.Connected {
			continue
		}
		a.Relay = b.ID.String()
		if addrs, err := peer.AddrInfoToP2pAddrs(&b); err == nil && len(addrs) > 0 {
			a.RelayAddr = addrs[0].String()
		}
		break
	}
	return a
}

// version is set by who builds without the repository's history; see xcaddy/Dockerfile.
var version string

// Version returns the version of this module as the build knows it, such as
// v1.2.3, whether it is a dependency (xcaddy) or has the main package; "(devel)"
// when the build does not know.
var Version = sync.OnceValue(func() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(devel)"
	}
	return versionIn(info)
})

func versionIn(info *debug.BuildInfo) string {
	for _, m := range append([]*debug.Module{&info.Main}, info.Deps...) {
		if m.Path != modulePath {
			continue
		}
		if m.Replace != nil && m.Replace.Version != "" {
			m = m.Replace
		}
		if m.Version != "" {
			return m.Version
		}
	}
	return "(devel)"
}
