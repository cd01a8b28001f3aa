// SPDX-License-Identifier: Apache-2.0

// Package wire reads, writes, signs and verifies the messages of the reputation
// ledger, which are those of AgentFM 1.3: ratings, comments, heads of logs and alerts
// of equivocation. A message has exactly one form. What is read and is not in that form
// is refused, so that nobody can add bytes to what another has signed.
package wire

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/transparency-dev/merkle/rfc6962"
	"google.golang.org/protobuf/encoding/protowire"
)

// Topics and protocols of the ledger.
const (
	// FeedbackTopic carries entries as their authors append them.
	FeedbackTopic = "agentfm-feedback-v1"
	// EquivocationTopic carries alerts.
	EquivocationTopic = "agentfm-equivocation-v1"
	// InconsistencyTopic carries alerts whose heads have different sizes, which AgentFM 1.3
	// does not know.
	InconsistencyTopic = "agentfm-inconsistency-v1"
	// HeadsTopic carries heads, without witnesses, as nodes first see them. AgentFM 1.3 does
	// not have it.
	HeadsTopic = "agentfm-heads-v1"
	// HeadProtocol answers with the head of the server's own log.
	HeadProtocol = "/agentfm/head-fetch/1.0.0"
	// LogProtocol answers with entries of the server's own log.
	LogProtocol = "/agentfm/ledger-fetch/1.0.0"
	// InboxProtocol answers with entries that the server holds of others.
	InboxProtocol = "/agentfm/inbox-fetch/1.0.0"
	// CommentProtocol answers with the text of a comment.
	CommentProtocol = "/agentfm/comment-fetch/1.0.0"
	// HeadsProtocol answers with the heads that the server holds of others, also of who
	// asks. Request and answer are those of [InboxProtocol], with heads in place of entries.
	// AgentFM 1.3 does not have it.
	HeadsProtocol = "/agentfm/heads-fetch/1.0.0"
	// AlertsProtocol answers with the evidence that the server holds against equivocators.
	// Request and answer are those of [InboxProtocol], with alerts in place of entries. AgentFM
	// 1.3 does not have it.
	AlertsProtocol = "/agentfm/alerts-fetch/1.0.0"
)

// Limits on messages, in bytes.
const (
	// MaxEntry is the largest entry.
	MaxEntry = 4 << 10
	// MaxHead is the largest head.
	MaxHead = 16 << 10
	// MaxAlert is the largest alert.
	MaxAlert = 2*MaxHead + 4<<10
	// MaxComment is the longest text of a comment.
	MaxComment = 10 << 10

	maxPeer      = 64
	maxDimension = 64
	maxLanguage  = 64
	maxWitnesses = 32
)

// ErrBad says that a message is not one, or not in its one form.
var ErrBad = errors.New("malformed message")

// ErrSignature says that a signature is not the author's.
var ErrSignature = errors.New("the signature does not verify")

// Hash is a SHA-256.
type Hash [sha256.Size]byte

// String returns the hash in hex.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ParseHash reads a hash in hex.
func ParseHash(s string) (h Hash, err error) {
	if len(s) != 2*len(h) {
		return h, fmt.Errorf("%w: a hash has %d hex digits", ErrBad, 2*len(h))
	}
	_, err = hex.Decode(h[:], []byte(s))
	return h, err
}

// leafHash returns the RFC 6962 hash of a leaf.
func leafHash(b []byte) Hash { return Hash(rfc6962.DefaultHasher.HashLeaf(b)) }

// sign signs canonical bytes.
func sign(key crypto.PrivKey, canonical []byte) ([]byte, error) {
	sum := sha256.Sum256(canonical)
	return key.Sign(sum[:])
}

// verify checks the signature of canonical bytes. The key is taken from the peer id,
// which has it only when it is an Ed25519 key.
func verify(id peer.ID, canonical, signature []byte) error {
	pub, err := id.ExtractPublicKey()
	if err != nil || pub.Type() != crypto.Ed25519 {
		return fmt.Errorf("%w: the author has no Ed25519 key", ErrSignature)
	}
	if !names(id, pub) {
		return fmt.Errorf("%w: the author's peer id is not that of its key", ErrSignature)
	}
	if len(signature) != ed25519.SignatureSize {
		return fmt.Errorf("%w: it has %d bytes", ErrSignature, len(signature))
	}
	sum := sha256.Sum256(canonical)
	if ok, err := pub.Verify(sum[:], signature); err != nil || !ok {
		return ErrSignature
	}
	return nil
}

// names reports whether a peer id is the one of the key in it: the bytes of a key can be written
// in more than one way.
func names(id peer.ID, key crypto.PubKey) bool {
	one, err := peer.IDFromPublicKey(key)
	return err == nil && one == id
}

// message is a message in the making. A field that is empty or 0 is left out, as
// proto3 has it.
type message []byte

func (m *message) bytes(n protowire.Number, v []byte) {
	if len(v) > 0 {
		*m = protowire.AppendBytes(protowire.AppendTag(*m, n, protowire.BytesType), v)
	}
}

func (m *message) text(n protowire.Number, v string) { m.bytes(n, []byte(v)) }

func (m *message) uint(n protowire.Number, v uint64) {
	if v != 0 {
		*m = protowire.AppendVarint(protowire.AppendTag(*m, n, protowire.VarintType), v)
	}
}

func (m *message) double(n protowire.Number, v float64) {
	if bits := math.Float64bits(v); bits != 0 {
		*m = protowire.AppendFixed64(protowire.AppendTag(*m, n, protowire.Fixed64Type), bits)
	}
}

// embed is bytes for a message within, which is there also when it is empty.
func (m *message) embed(n protowire.Number, v []byte) {
	*m = protowire.AppendBytes(protowire.AppendTag(*m, n, protowire.BytesType), v)
}

// field is a field of a message that is read.
type field struct {
	number protowire.Number
	kind   protowire.Type
	bytes  []byte
	number64
}

// number64 is the value of a field that is not bytes.
type number64 uint64

// read gives each field of a message to take, which reports whether there is such a
// field.
func read(b []byte, take func(field) bool) error {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return fmt.Errorf("%w: %w", ErrBad, protowire.ParseError(size))
		}
		b = b[size:]
		f := field{number: n, kind: kind}
		var x uint64
		switch kind {
		case protowire.BytesType:
			f.bytes, size = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			x, size = protowire.ConsumeVarint(b)
		case protowire.Fixed64Type:
			x, size = protowire.ConsumeFixed64(b)
		default:
			return fmt.Errorf("%w: unknown field %d", ErrBad, n)
		}
		if size < 0 {
			return fmt.Errorf("%w: %w", ErrBad, protowire.ParseError(size))
		}
		b = b[size:]
		f.number64 = number64(x)
		if !take(f) {
			return fmt.Errorf("%w: unknown field %d", ErrBad, n)
		}
	}
	return nil
}

// into stores a field in v, a pointer; false when the field is not of its type.
func (f field) into(v any) bool {
	want := protowire.BytesType
	switch v := v.(type) {
	case *[]byte:
		*v = bytes.Clone(f.bytes)
	case *string:
		*v = string(f.bytes)
	case *peer.ID:
		*v = peer.ID(f.bytes)
	case *uint64:
		want, *v = protowire.VarintType, uint64(f.number64)
	case *int64:
		want, *v = protowire.VarintType, int64(f.number64)
	case *float64:
		want, *v = protowire.Fixed64Type, math.Float64frombits(uint64(f.number64))
	}
	return f.kind == want
}

// sole refuses bytes that are not the one form of the message that was read of them.
func sole(given, form []byte) error {
	if !bytes.Equal(given, form) {
		return fmt.Errorf("%w: it is not in its canonical form", ErrBad)
	}
	return nil
}

// checkPeer refuses what is no peer id, or not the one of the key in it.
func checkPeer(what string, id peer.ID) error {
	if len(id) == 0 || len(id) > maxPeer {
		return fmt.Errorf("%w: %s is not a peer id", ErrBad, what)
	}
	if p, err := peer.IDFromBytes([]byte(id)); err != nil || p != id {
		return fmt.Errorf("%w: %s is not a peer id", ErrBad, what)
	}
	if key, err := id.ExtractPublicKey(); err == nil && !names(id, key) {
		return fmt.Errorf("%w: %s is not the peer id of its key", ErrBad, what)
	}
	return nil
}

// checkLabel refuses a label that is not a short printable text.
func checkLabel(what, s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("%w: %s has more than %d bytes", ErrBad, what, limit)
	}
	for _, r := range s {
		if r == utf8.RuneError || r < ' ' || r == 0x7f {
			return fmt.Errorf("%w: %s is not printable text", ErrBad, what)
		}
	}
	return nil
}
