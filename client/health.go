// SPDX-License-Identifier: Apache-2.0

package client

import "context"

// Health is how a gateway is.
type Health struct {
	Status        string `json:"status"` // "ok"
	OnlineWorkers int    `json:"online_workers"`
}

// Health returns how the gateway is. One that cannot take requests is an error. It needs
// no key.
func (c *Client) Health(ctx context.Context) (*Health, error) {
	var h Health
	if err := c.get(ctx, "/health", nil, &h); err != nil {
		return nil, err
	}
	return &h, nil
}

// About is what a gateway says of itself.
type About struct {
	PeerID string `json:"boss_peer_id"` // its own
	// RelayPeerID and RelayAddress are those of the relay that it is connected to; empty
	// where it is to none.
	RelayPeerID  string `json:"relay_peer_id"`
	RelayAddress string `json:"relay_multiaddr"`
	// ReputationFloor is the honesty below which a worker is given no tasks.
	ReputationFloor float64 `json:"reputation_floor"`
	// LedgerTreeSize is how many entries its ledger has.
	LedgerTreeSize int64   `json:"ledger_tree_size"`
	Version        string  `json:"version"`
	UptimeSeconds  float64 `json:"uptime_seconds"`
}

// About returns what the gateway says of itself.
func (c *Client) About(ctx context.Context) (*About, error) {
	var a About
	if err := c.get(ctx, "/v1/about", nil, &a); err != nil {
		return nil, err
	}
	return &a, nil
}
