// SPDX-License-Identifier: Apache-2.0

package handler

import "time"

// aboutAnswer is the answer of GET /v1/about. Without a ledger nobody is below a floor, and
// what is stated of both is 0.
type aboutAnswer struct {
	Peer       string  `json:"boss_peer_id"`
	Relay      string  `json:"relay_peer_id"`
	RelayAddr  string  `json:"relay_multiaddr"`
	Floor      float64 `json:"reputation_floor"`
	LedgerSize uint64  `json:"ledger_tree_size"`
	Version    string  `json:"version"`
	Uptime     int64   `json:"uptime_seconds"`
}

// about serves GET /v1/about: who this gateway is.
func (x *exchange) about() error {
	l, err := x.takeLease()
	if err != nil {
		return err
	}
	a := l.About()
	answer := aboutAnswer{
		Peer: a.Peer, Relay: a.Relay, RelayAddr: a.RelayAddr,
		Version: a.Version, Uptime: int64(a.Uptime / time.Second),
	}
	if l, err := x.h.ledger.Ledger(); err == nil {
		answer.Floor, answer.LedgerSize = l.Floor(), l.Size()
	}
	return x.answerJSON(answer)
}
