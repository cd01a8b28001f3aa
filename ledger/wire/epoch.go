// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Topic and protocol of epochs, neither of which AgentFM 1.3 has.
const (
	// EpochsTopic carries epochs as their owners declare them.
	EpochsTopic = "agentfm-epochs-v1"
	// EpochsProtocol answers with the epochs that the server knows. Request and answer are those
	// of [InboxProtocol], with epochs in place of entries.
	EpochsProtocol = "/agentfm/epochs-fetch/1.0.0"
)

// MaxEpoch is the largest epoch, in bytes.
const MaxEpoch = 192

// epochContext is what the bytes of an epoch begin with that are signed. In its place all other
// messages have a peer id: none of them can be taken for an epoch, nor an epoch for one of them.
const epochContext = "agentfm-epoch-v1"

// Epoch is what the owner declares of a log that was continued twice: that all is void which it
// has signed for its log up to Time. What it signs later is a new log, from the first entry on.
// Nothing of the old one stays, so that nobody can have another beginning of the new one. Anybody
// may take back what it has said that way, once: a log can have one epoch.
type Epoch struct {
	// Peer is the owner.
	Peer peer.ID
	// Time is up to when all is void, in nanoseconds since 1970.
	Time int64
	// Signature is the owner's, over [Epoch.Canonical].
	Signature []byte
}

func (e *Epoch) message() message {
	var m message
	m.text(1, epochContext)
	m.bytes(2, []byte(e.Peer))
	m.uint(3, uint64(e.Time))
	return m
}

// Canonical returns the bytes that are signed.
func (e *Epoch) Canonical() []byte { return e.message() }

// Marshal returns the epoch as it travels.
func (e *Epoch) Marshal() []byte {
	m := e.message()
	m.bytes(4, e.Signature)
	return m
}

// Sign signs the epoch. The key must be the owner's.
func (e *Epoch) Sign(key crypto.PrivKey) (err error) {
	e.Signature, err = sign(key, e.Canonical())
	return err
}

// Verify checks the owner's signature.
func (e *Epoch) Verify() error { return verify(e.Peer, e.Canonical(), e.Signature) }

// Voids reports whether what was signed for the log at a time is void.
func (e *Epoch) Voids(time int64) bool { return time <= e.Time }

// ParseEpoch reads an epoch in its one form. It does not verify the signature.
func ParseEpoch(b []byte) (*Epoch, error) {
	if len(b) > MaxEpoch {
		return nil, fmt.Errorf("%w: an epoch has at most %d bytes", ErrBad, MaxEpoch)
	}
	e := new(Epoch)
	var context string
	err := read(b, func(f field) bool {
		switch f.number {
		case 1:
			return f.into(&context)
		case 2:
			return f.into(&e.Peer)
		case 3:
			return f.into(&e.Time)
		case 4:
			return f.into(&e.Signature)
		}
		return false
	})
	if err != nil {
		return nil, err
	}
	if err := checkPeer("peer_id", e.Peer); err != nil {
		return nil, err
	}
	switch {
	case context != epochContext:
		return nil, fmt.Errorf("%w: it is no epoch", ErrBad)
	case e.Time < firstTime:
		return nil, fmt.Errorf("%w: its time is before 2024", ErrBad)
	}
	return e, sole(b, e.Marshal())
}
