// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"errors"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/openai"
)

// maxRelayBody bounds the body of a test of an address, in bytes.
const maxRelayBody = 4 << 10

// relayAnswer is the answer of POST /api/relay/test.
type relayAnswer struct {
	OK     bool   `json:"ok"`
	PeerID string `json:"peer_id,omitzero"`
	Error  string `json:"error,omitzero"`
}

// testRelay serves POST /api/relay/test: whether a peer answers at an address. An
// address at which none does is an answer, not an error.
func (x *exchange) testRelay() error {
	body, err := x.bodyUpTo(maxRelayBody)
	if err != nil {
		return err
	}
	var req struct {
		Addr string `json:"multiaddr"`
	}
	if err := openai.Decode(body, &req); err != nil {
		return err
	}
	if req.Addr == "" {
		return badRequest("multiaddr", "multiaddr is required")
	}
	l, err := x.takeLease()
	if err != nil {
		return err
	}
	id, err := l.TestRelay(x.r.Context(), req.Addr)
	switch {
	case errors.Is(err, mesh.ErrRelayTests):
		return overloaded("too many addresses are being tested")
	case x.r.Context().Err() != nil:
		return err // the client is gone
	case err != nil:
		return x.answerJSON(relayAnswer{Error: err.Error()})
	}
	return x.answerJSON(relayAnswer{OK: true, PeerID: id})
}
