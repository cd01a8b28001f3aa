// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"

	"github.com/Agent-FM/caddy-agentfm/internal/option"
)

// Relay says how a node carries connections to nodes that nobody can dial, such as workers
// behind a router (Circuit Relay v2). The limits are there for tasks: a connection lasts as
// long as its two ends use it, and carries all their tasks and files.
type Relay struct {
	// The most nodes that are kept reachable, each for an hour, which it may prolong. Twice as
	// many connections are carried, or four times max_circuits if that is more. Default: 4096.
	MaxReservations int `json:"max_reservations,omitempty"`

	// The most of them from one IP address. Default: 256.
	MaxReservationsPerIP int `json:"max_reservations_per_ip,omitempty"`

	// The most connections that are carried for one node, to it and from it. Twice as many
	// may come from one IP address. Default: 256.
	MaxCircuits int `json:"max_circuits,omitempty"`

	// How long a connection is carried; tasks on it break off. Nodes of AgentFM 1.3 do not
	// use connections with a limit. Default: no limit.
	MaxDuration caddy.Duration `json:"max_duration,omitempty"`

	// How many bytes a connection may carry each way; tasks on it break off. Nodes of AgentFM
	// 1.3 do not use connections with a limit. Default: no limit.
	MaxData int64 `json:"max_data,omitempty"`
}

// Defaults of a relay.
const (
	relayReservations      = 4096
	relayReservationsPerIP = 256
	relayCircuits          = 256
	// relayBuffer is what is read at once, each way of each connection.
	relayBuffer = 16 << 10
	// relayMessage is the largest message of the relay's protocol.
	relayMessage = 4 << 10
	// peerRequests is how many requests one node may make at once, beside what is
	// carried for it.
	peerRequests = 64
	// What stands for the one limit of a connection when there is only the other.
	unlimitedDuration = 365 * 24 * time.Hour
	unlimitedData     = 1 << 60
)

// resolve checks the limits, and fills in the defaults.
func (r Relay) resolve() (*Relay, error) {
	if r.MaxReservations < 0 || r.MaxReservationsPerIP < 0 || r.MaxCircuits < 0 || r.MaxDuration < 0 || r.MaxData < 0 {
		return nil, fmt.Errorf("a limit is below 0")
	}
	for _, d := range []struct {
		v *int
		n int
	}{{&r.MaxReservations, relayReservations}, {&r.MaxReservationsPerIP, relayReservationsPerIP}, {&r.MaxCircuits, relayCircuits}} {
		if *d.v == 0 {
			*d.v = d.n
		}
	}
	return &r, nil
}

// circuits returns how many connections are carried at once.
func (r *Relay) circuits() int { return max(2*r.MaxReservations, 4*r.MaxCircuits) }

// circuitsPerIP returns how many of them may come from one IP address.
func (r *Relay) circuitsPerIP() int { return 2 * r.MaxCircuits }

// open makes a host a relay.
func (r *Relay) open(h host.Host) (*relay.Relay, error) {
	limits := relay.Resources{
		ReservationTTL:        time.Hour,
		MaxReservations:       r.MaxReservations,
		MaxReservationsPerIP:  r.MaxReservationsPerIP,
		MaxReservationsPerASN: r.MaxReservations, // a cloud's workers are of one network
		MaxCircuits:           r.MaxCircuits,
		BufferSize:            relayBuffer,
	}
	if r.MaxDuration > 0 || r.MaxData > 0 {
		limits.Limit = &relay.RelayLimit{Duration: unlimitedDuration, Data: unlimitedData}
		if r.MaxDuration > 0 {
			limits.Limit.Duration = time.Duration(r.MaxDuration)
		}
		if r.MaxData > 0 {
			limits.Limit.Data = r.MaxData
		}
	}
	c := newCarrier(h, r)
	return relay.New(c, relay.WithResources(limits), relay.WithACL(c))
}

// unmarshalRelay reads the relay option: nothing, or a block of limits.
func (c *Config) unmarshalRelay(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	c.Relay = new(Relay)
	return option.Set{
		"max_reservations":        option.PositiveInt(&c.Relay.MaxReservations),
		"max_reservations_per_ip": option.PositiveInt(&c.Relay.MaxReservationsPerIP),
		"max_circuits":            option.PositiveInt(&c.Relay.MaxCircuits),
		"max_duration":            option.Duration(&c.Relay.MaxDuration),
		"max_data":                option.Size(&c.Relay.MaxData),
	}.Block(d)
}
