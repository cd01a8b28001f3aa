// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// WitnessProtocol asks the server to sign the head of a log as its witness. AgentFM 1.3 has
// the name, and no frame for it. What is asked and answered means what it does in C2SP's
// tlog-witness.
const WitnessProtocol = "/agentfm/witness/1.0.0"

// MaxProof is how many hashes a proof of consistency has at most.
const MaxProof = 63

// Submission asks a witness to sign a head, or without one, which it has signed last of the log
// of who asks.
type Submission struct {
	// Old is the size of the head of that log that the witness has signed last, 0 for none, or
	// one that is void.
	Old uint64
	// Proof is that of consistency between the two; nothing when Old is 0.
	Proof []Hash
	// Head is the head; nil for none.
	Head *Head
}

// Statuses of an answer, which are those of HTTP.
const (
	// Signed comes with the signature.
	Signed = 200
	// Malformed says that it was no submission.
	Malformed = 400
	// Forbidden says that the owner has not signed the head, or has equivocated.
	Forbidden = 403
	// UnknownLog says that the witness does not take this log.
	UnknownLog = 404
	// Conflict comes with the head of that log that the witness has signed last. Either it has
	// another size than was said, or the same size and another root, or none was submitted.
	Conflict = 409
	// BadProof says that the proof does not show that the head continues the one before.
	BadProof = 422
)

// Verdict is the answer of a witness.
type Verdict struct {
	// Status is one of the above.
	Status int
	// Witness is the signature, with status [Signed].
	Witness Witness
	// Held is the head that the witness has signed last, with status [Conflict]; nil for none.
	Held *Head
}

// WriteSubmission writes a request.
func WriteSubmission(w io.Writer, s *Submission) error {
	if len(s.Proof) > MaxProof {
		return fmt.Errorf("%w: a proof has at most %d hashes", ErrBad, MaxProof)
	}
	b := append(binary.BigEndian.AppendUint64(nil, s.Old), byte(len(s.Proof)))
	for _, h := range s.Proof {
		b = append(b, h[:]...)
	}
	if _, err := w.Write(b); err != nil {
		return err
	}
	if s.Head == nil {
		return WriteBytes(w, nil)
	}
	return WriteBytes(w, s.Head.Marshal())
}

// ReadSubmission reads a request. It verifies nothing.
func ReadSubmission(r io.Reader) (*Submission, error) {
	var b [9]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return nil, err
	}
	s := &Submission{Old: binary.BigEndian.Uint64(b[:])}
	if b[8] > MaxProof {
		return nil, fmt.Errorf("%w: a proof has at most %d hashes", ErrBad, MaxProof)
	}
	s.Proof = make([]Hash, b[8])
	for i := range s.Proof {
		if _, err := io.ReadFull(r, s.Proof[i][:]); err != nil {
			return nil, err
		}
	}
	head, err := readBytes(r, MaxHead)
	switch {
	case err != nil:
		return nil, err
	case len(head) > 0:
		s.Head, err = ParseHead(head)
	case s.Old > 0 || len(s.Proof) > 0:
		err = fmt.Errorf("%w: a proof, and no head", ErrBad)
	}
	return s, err
}

// WriteVerdict writes an answer.
func WriteVerdict(w io.Writer, v Verdict) error {
	var body []byte
	switch {
	case v.Status == Signed:
		body = v.Witness.marshal()
	case v.Status == Conflict && v.Held != nil:
		body = v.Held.Bare().Marshal()
	}
	if _, err := w.Write(binary.BigEndian.AppendUint16(nil, uint16(v.Status))); err != nil {
		return err
	}
	return WriteBytes(w, body)
}

// ReadVerdict reads an answer. It verifies nothing.
func ReadVerdict(r io.Reader) (Verdict, error) {
	var b [2]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Verdict{}, err
	}
	v := Verdict{Status: int(binary.BigEndian.Uint16(b[:]))}
	body, err := readBytes(r, MaxHead)
	switch {
	case err != nil:
		return v, err
	case v.Status == Signed:
		v.Witness, err = readWitness(body)
	case v.Status == Conflict && len(body) > 0:
		v.Held, err = ParseHead(body)
	}
	return v, err
}

// readWitness reads a witness's signature in its one form.
func readWitness(b []byte) (Witness, error) {
	w, ok := parseWitness(b)
	if !ok {
		return w, fmt.Errorf("%w: not a witness's signature", ErrBad)
	}
	if err := checkPeer("witness_peer_id", w.Peer); err != nil {
		return w, err
	}
	return w, sole(b, w.marshal())
}

// Cosign signs the head as a witness, with its key.
func (h *Head) Cosign(key crypto.PrivKey) (w Witness, err error) {
	if w.Peer, err = peer.IDFromPrivateKey(key); err != nil {
		return w, err
	}
	w.Signature, err = sign(key, h.Canonical())
	return w, err
}

// VerifyWitness checks the signature of a witness.
func (h *Head) VerifyWitness(w Witness) error { return verify(w.Peer, h.Canonical(), w.Signature) }

// Checked returns the head with those of its witnesses, each once, whose signatures verify. Of
// the owner no signature as a witness counts.
func (h *Head) Checked() *Head {
	checked := *h
	checked.Witnesses = nil
	for _, w := range h.Witnesses {
		if w.Peer != h.Peer && !checked.WitnessedBy(w.Peer) && h.VerifyWitness(w) == nil {
			checked.Witnesses = append(checked.Witnesses, w)
		}
	}
	return &checked
}

// Joined returns the head with the witnesses of another of the same size and root too, as many
// as a head may have. It returns the other when that has other bytes signed, and more
// witnesses, and the head itself when there is nothing to add.
func (h *Head) Joined(other *Head) *Head {
	if string(h.Canonical()) != string(other.Canonical()) {
		if len(other.Witnesses) > len(h.Witnesses) {
			return other
		}
		return h
	}
	joined := *h
	joined.Witnesses = slices.Clone(h.Witnesses)
	for _, w := range other.Witnesses {
		if !joined.WitnessedBy(w.Peer) && len(joined.Witnesses) < maxWitnesses {
			joined.Witnesses = append(joined.Witnesses, w)
		}
	}
	if len(joined.Witnesses) == len(h.Witnesses) {
		return h
	}
	return &joined
}
