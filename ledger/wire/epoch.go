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
const MaxEpoch = 256

// epochContext is what the bytes of an epoch begin with that are signed. In its place all other
// messages have a peer id: none of them can be taken for an epoch, nor an epoch for one of them.
const epochContext = "agentfm-epoch-v1"

// Epoch is what the owner of a log declares that was continued twice by accident: that all is
// void which it has signed for the places after the first Size ones, up to Time. Behind these
// the log goes on with what is signed later. A log can have one epoch.
type Epoch struct {
	// Peer is the owner.
	Peer peer.ID
	// Size is the number of entries that stay.
	Size uint64
	// Time is when it was declared, in nanoseconds since 1970.
	Time int64
	// Signature is the owner's, over [Epoch.Canonical].
	Signature []byte
}

func (e *Epoch) message() message {
	var m message
	m.text(1, epochContext)
	m.bytes(2, []byte(e.Peer))
	m.uint(3, e.Size)
	m.uint(4, uint64(e.Time))
	return m
}

// Canonical returns the bytes that are signed.
func (e *Epoch) Canonical() []byte { return e.message() }

// Marshal returns the epoch as it travels.
func (e *Epoch) Marshal() []byte {
	m := e.message()
	m.bytes(5, e.Signature)
	return m
}

// Sign signs the epoch. The key must be the owner's.
func (e *Epoch) Sign(key crypto.PrivKey) (err error) {
	e.Signature, err = sign(key, e.Canonical())
	return err
}

// Verify checks the owner's signature.
func (e *Epoch) Verify() error { return verify(e.Peer, e.Canonical(), e.Signature) }

// Voids reports whether what was signed at a time for a place of the log, from 0, is void.
func (e *Epoch) Voids(place uint64, time int64) bool { return place >= e.Size && time <= e.Time }

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
			return f.into(&e.Size)
		case 4:
			return f.into(&e.Time)
		case 5:
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
	case e.Size > 1<<62:
		return nil, fmt.Errorf("%w: an epoch after %d entries", ErrBad, e.Size)
	case e.Time < firstTime:
		return nil, fmt.Errorf("%w: its time is before 2024", ErrBad)
	}
	return e, sole(b, e.Marshal())
}
