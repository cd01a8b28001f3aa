// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"google.golang.org/protobuf/encoding/protowire"
)

// Head is what the owner of a log says of it: how many entries it has, and the root of
// their Merkle tree.
type Head struct {
	// Peer is the owner.
	Peer peer.ID
	// Size is the number of entries.
	Size uint64
	// Root is the root of the tree.
	Root Hash
	// Time is when it was signed, in nanoseconds since 1970.
	Time int64
	// Signature is the owner's, over [Head.Canonical].
	Signature []byte
	// Witnesses are those who say that they saw no other head of that size.
	Witnesses []Witness
	// Anchor is where else the head is kept; not used.
	Anchor string
}

// Witness is a witness's signature of a head. It is over the same bytes as the owner's.
type Witness struct {
	// Peer is the witness.
	Peer peer.ID
	// Signature is its signature.
	Signature []byte
}

func (w Witness) marshal() []byte {
	var m message
	m.bytes(1, []byte(w.Peer))
	m.bytes(2, w.Signature)
	return m
}

func (h *Head) message() message {
	var m message
	m.bytes(1, []byte(h.Peer))
	m.uint(2, h.Size)
	m.bytes(3, h.Root[:])
	m.uint(4, uint64(h.Time))
	return m
}

// Canonical returns the bytes that are signed.
func (h *Head) Canonical() []byte { return h.message() }

// Marshal returns the head as it travels.
func (h *Head) Marshal() []byte {
	m := h.message()
	m.bytes(5, h.Signature)
	for _, w := range h.Witnesses {
		m.embed(6, w.marshal())
	}
	m.text(7, h.Anchor)
	return m
}

// Sign signs the head. The key must be the owner's.
func (h *Head) Sign(key crypto.PrivKey) (err error) {
	h.Signature, err = sign(key, h.Canonical())
	return err
}

// Verify checks the owner's signature.
func (h *Head) Verify() error { return verify(h.Peer, h.Canonical(), h.Signature) }

// Bare returns the head with the owner's signature alone.
func (h *Head) Bare() *Head {
	bare := *h
	bare.Witnesses, bare.Anchor = nil, ""
	return &bare
}

// WitnessedBy reports whether the head has a signature of a witness, which it does not verify.
func (h *Head) WitnessedBy(id peer.ID) bool {
	return slices.ContainsFunc(h.Witnesses, func(w Witness) bool { return w.Peer == id })
}

// ParseHead reads a head in its one form. It does not verify the signature.
func ParseHead(b []byte) (*Head, error) {
	if len(b) > MaxHead {
		return nil, fmt.Errorf("%w: a head has at most %d bytes", ErrBad, MaxHead)
	}
	h := new(Head)
	var root []byte
	err := read(b, func(f field) bool {
		switch f.number {
		case 1:
			return f.into(&h.Peer)
		case 2:
			return f.into(&h.Size)
		case 3:
			return f.into(&root)
		case 4:
			return f.into(&h.Time)
		case 5:
			return f.into(&h.Signature)
		case 6:
			w, ok := parseWitness(f.bytes)
			h.Witnesses = append(h.Witnesses, w)
			return f.kind == protowire.BytesType && ok && len(h.Witnesses) <= maxWitnesses
		case 7:
			return f.into(&h.Anchor)
		}
		return false
	})
	if err != nil {
		return nil, err
	}
	if err := checkPeer("peer_id", h.Peer); err != nil {
		return nil, err
	}
	switch {
	case len(root) != len(h.Root):
		return nil, fmt.Errorf("%w: root_hash has %d bytes", ErrBad, len(root))
	case h.Size == 0 || h.Size > 1<<62:
		return nil, fmt.Errorf("%w: tree_size %d", ErrBad, h.Size)
	case h.Time <= 0:
		return nil, fmt.Errorf("%w: a head without a time", ErrBad)
	}
	h.Root = Hash(root)
	if err := checkLabel("rekor_anchor", h.Anchor, 1<<10); err != nil {
		return nil, err
	}
	return h, sole(b, h.Marshal())
}

// parseWitness reads a witness's signature.
func parseWitness(b []byte) (w Witness, ok bool) {
	err := read(b, func(f field) bool {
		switch f.number {
		case 1:
			return f.into(&w.Peer)
		case 2:
			return f.into(&w.Signature)
		}
		return false
	})
	return w, err == nil
}

// Alert accuses a peer of having signed two heads that are not of one log. The heads are the
// evidence: who verifies them need not trust the witness. Either they have one size and
// different roots, or A is the smaller, and Path shows that the log of B has another root at that
// size. AgentFM 1.3 knows only the first.
type Alert struct {
	// Peer is the accused.
	Peer peer.ID
	// A and B are the heads.
	A, B *Head
	// Path has, where the sizes differ, the root of B's log at the size of A, and the proof of
	// consistency between that and B.
	Path []Hash
	// Witness is who tells of it.
	Witness peer.ID
	// Signature is the witness's, over [Alert.Canonical].
	Signature []byte
	// Time is when it was signed, in nanoseconds since 1970.
	Time int64
}

func (a *Alert) message(signature []byte) []byte {
	var m message
	m.bytes(1, []byte(a.Peer))
	m.embed(2, a.A.Marshal())
	m.embed(3, a.B.Marshal())
	m.bytes(4, []byte(a.Witness))
	m.bytes(5, signature)
	m.uint(6, uint64(a.Time))
	for _, h := range a.Path {
		m.bytes(7, h[:])
	}
	return m
}

// Canonical returns the bytes that the witness signs.
func (a *Alert) Canonical() []byte { return a.message(nil) }

// Marshal returns the alert as it travels.
func (a *Alert) Marshal() []byte { return a.message(a.Signature) }

// Sign signs the alert. The key must be the witness's.
func (a *Alert) Sign(key crypto.PrivKey) (err error) {
	a.Signature, err = sign(key, a.Canonical())
	return err
}

// Verify checks all of the alert: after that, the accused has equivocated.
func (a *Alert) Verify() error {
	switch {
	case a.A.Peer != a.Peer || a.B.Peer != a.Peer:
		return fmt.Errorf("%w: a head is not of the accused", ErrBad)
	case a.A.Size != a.B.Size:
		if err := a.verifyPath(); err != nil {
			return err
		}
	case a.A.Root == a.B.Root:
		return fmt.Errorf("%w: the heads have the same root", ErrBad)
	case len(a.Path) > 0:
		return fmt.Errorf("%w: a proof between heads of one size", ErrBad)
	}
	if err := a.A.Verify(); err != nil {
		return fmt.Errorf("head_a: %w", err)
	}
	if err := a.B.Verify(); err != nil {
		return fmt.Errorf("head_b: %w", err)
	}
	if err := verify(a.Witness, a.Canonical(), a.Signature); err != nil {
		return fmt.Errorf("witness: %w", err)
	}
	return nil
}

// verifyPath checks that the log of B has another root at the size of A.
func (a *Alert) verifyPath() error {
	switch {
	case a.A.Size > a.B.Size || len(a.Path) == 0:
		return fmt.Errorf("%w: the heads have different sizes, and there is no proof", ErrBad)
	case a.Path[0] == a.A.Root:
		return fmt.Errorf("%w: the heads are of one log", ErrBad)
	}
	if err := VerifyConsistency(a.A.Size, a.B.Size, a.Path[1:], a.Path[0], a.B.Root); err != nil {
		return fmt.Errorf("%w: %w", ErrBad, err)
	}
	return nil
}

// VerifyConsistency checks that the tree of the smaller size is the beginning of that of the
// larger, by a path between their roots.
func VerifyConsistency(smaller, larger uint64, path []Hash, from, to Hash) error {
	hashes := make([][]byte, len(path))
	for i := range path {
		hashes[i] = path[i][:]
	}
	return proof.VerifyConsistency(rfc6962.DefaultHasher, smaller, larger, hashes, from[:], to[:])
}

// ParseAlert reads an alert in its one form. It verifies nothing.
func ParseAlert(b []byte) (*Alert, error) {
	if len(b) > MaxAlert {
		return nil, fmt.Errorf("%w: an alert has at most %d bytes", ErrBad, MaxAlert)
	}
	a := new(Alert)
	var first, second []byte
	err := read(b, func(f field) bool {
		switch f.number {
		case 1:
			return f.into(&a.Peer)
		case 2:
			return f.into(&first)
		case 3:
			return f.into(&second)
		case 4:
			return f.into(&a.Witness)
		case 5:
			return f.into(&a.Signature)
		case 6:
			return f.into(&a.Time)
		case 7:
			var h []byte
			if !f.into(&h) || len(h) != len(Hash{}) || len(a.Path) > MaxProof {
				return false
			}
			a.Path = append(a.Path, Hash(h))
			return true
		}
		return false
	})
	if err != nil {
		return nil, err
	}
	if err := checkPeer("peer_id", a.Peer); err != nil {
		return nil, err
	}
	if err := checkPeer("witness_peer_id", a.Witness); err != nil {
		return nil, err
	}
	if a.A, err = ParseHead(first); err != nil {
		return nil, fmt.Errorf("head_a: %w", err)
	}
	if a.B, err = ParseHead(second); err != nil {
		return nil, fmt.Errorf("head_b: %w", err)
	}
	return a, sole(b, a.Marshal())
}
