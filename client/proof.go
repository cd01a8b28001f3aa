// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/big"
	"net/url"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// maxComment bounds the text of a comment, in bytes.
const maxComment = 10 << 10

// cidPrefix begins the cid of a text: then comes its SHA-256.
const cidPrefix = "1220"

// hasCID reports whether a text has this cid.
func hasCID(text []byte, cid string) bool {
	sum := sha256.Sum256(text)
	return strings.EqualFold(cid, cidPrefix+hex.EncodeToString(sum[:]))
}

// Proof shows that an entry is in the log of its author, by RFC 6962.
type Proof struct {
	EntryHash string   `json:"entry_hash"`
	Position  int64    `json:"position"`   // from 0
	AuditPath []string `json:"audit_path"` // hashes, in hex
	// SignedEntry is the entry as its author has signed it, a SignedEntry of agentfm.ledger.v1.
	// A gateway of AgentFM does not send it.
	SignedEntry []byte  `json:"signed_entry,omitzero"`
	Head        LogHead `json:"head"`
}

// LogHead is the head of a log: its size and the root of its tree.
type LogHead struct {
	TreeSize int64     `json:"tree_size"`
	RootHash string    `json:"root_hash"`
	SignedAt time.Time `json:"signed_at,omitzero"`
	// Witnesses are who has signed the same, WitnessCount how many they are: so many say that
	// they know no other log of the peer.
	WitnessCount int       `json:"witness_count"`
	Witnesses    []Witness `json:"witness_sigs,omitzero"`
	// PeerID is whose log it is, and Signature that peer's. A gateway of AgentFM does not
	// say; then nobody vouches for the head but the gateway, and it proves nothing.
	PeerID          string `json:"peer_id,omitzero"`
	Signature       []byte `json:"signature,omitzero"`
	TimestampUnixNS int64  `json:"timestamp_unix_ns,omitzero"`
}

// Witness is a witness's signature of the head of a log.
type Witness struct {
	PeerID    string `json:"peer_id"`
	Signature []byte `json:"signature"`
}

// Signed reports whether the head has a signature.
func (h *LogHead) Signed() bool { return len(h.Signature) > 0 }

// Verify checks the signature of the head: that of its peer, over size, root and time; and those
// of its witnesses, each of which is another. An error is one of [ErrProof], as for a head without
// a signature. Whether the witnesses are such that the caller trusts is for the caller to see.
func (h *LogHead) Verify() error {
	if !h.Signed() {
		return errUnsigned
	}
	id, key, ok := peerKey(h.PeerID)
	if !ok {
		return proofError("the head names no peer whose id has an Ed25519 key")
	}
	root, ok := hashOf(h.RootHash)
	if !ok || h.TreeSize <= 0 {
		return proofError("the head has no root hash of 64 hex digits, or no size")
	}
	sum := sha256.Sum256(h.canonical(id, root[:]))
	if !ed25519.Verify(key, sum[:], h.Signature) {
		return proofError("the signature of the head is not its peer's")
	}
	if h.WitnessCount != len(h.Witnesses) {
		return proofError("witness_count is not the number of witness_sigs")
	}
	seen := map[string]bool{h.PeerID: true}
	for _, w := range h.Witnesses {
		_, key, ok := peerKey(w.PeerID)
		if !ok || seen[w.PeerID] || !ed25519.Verify(key, sum[:], w.Signature) {
			return proofError("a signature of the head is not that of a witness, or it is there twice")
		}
		seen[w.PeerID] = true
	}
	return nil
}

// canonical returns the bytes that are signed: a message of Protocol Buffers, in the order
// of its fields, and without those that are 0.
func (h *LogHead) canonical(id, root []byte) []byte {
	bytesField := func(b []byte, number byte, v []byte) []byte {
		return append(binary.AppendUvarint(append(b, number<<3|2), uint64(len(v))), v...)
	}
	numberField := func(b []byte, number byte, v uint64) []byte {
		if v == 0 {
			return b
		}
		return binary.AppendUvarint(append(b, number<<3), v)
	}
	b := bytesField(nil, 1, id)
	b = numberField(b, 2, uint64(h.TreeSize))
	b = bytesField(b, 3, root)
	return numberField(b, 4, uint64(h.TimestampUnixNS))
}

// Proof returns the proof that an entry of this hash, about or by a peer, is in the log of
// its author. It has been verified, see [Proof.Verify]; that the entry is the one that was
// asked for, too.
func (s *PeerService) Proof(ctx context.Context, peerID, entryHash string) (*Proof, error) {
	p, err := getPeer[Proof](ctx, s, peerID, "/proof", url.Values{"entry": {entryHash}})
	if err != nil {
		return nil, err
	}
	if !strings.EqualFold(p.EntryHash, entryHash) {
		return nil, proofError("the proof is of another entry")
	}
	if err := p.Verify(); err != nil {
		return nil, err
	}
	id, ok := decodeBase58(peerID)
	if e, _ := splitEntry(p.SignedEntry); ok && !bytes.Equal(id, e.rater) && !bytes.Equal(id, e.subject) {
		return nil, proofError("the entry is neither about the peer nor by it")
	}
	return p, nil
}

// Verify checks, without asking anybody, that the path leads from the entry to the root of
// the head; that the head is signed by the peer whose log it is, and by its witnesses; and that
// the entry is of this hash and signed by that same peer. An error is one of [ErrProof].
func (p *Proof) Verify() error {
	if !p.Head.Signed() {
		return errUnsigned
	}
	entry, ok := hashOf(p.EntryHash)
	root, ok2 := hashOf(p.Head.RootHash)
	if !ok || !ok2 {
		return proofError("a hash is not 64 hex digits")
	}
	if p.Position < 0 || p.Position >= p.Head.TreeSize {
		return proofError("the position is not in the tree")
	}
	path := make(tlog.RecordProof, len(p.AuditPath))
	for i, s := range p.AuditPath {
		if path[i], ok = hashOf(s); !ok {
			return proofError("a hash is not 64 hex digits")
		}
	}
	if err := tlog.CheckRecord(path, p.Head.TreeSize, root, p.Position, entry); err != nil {
		return proofError("the path does not lead from the entry to the root")
	}
	if err := p.Head.Verify(); err != nil {
		return err
	}
	return p.verifyEntry(entry)
}

// verifyEntry checks that the entry has a hash, and is signed by the peer whose head it is.
func (p *Proof) verifyEntry(hash tlog.Hash) error {
	if len(p.SignedEntry) == 0 {
		return proofError("it has no signed_entry: the proof is of a hash, and nobody can tell what was said")
	}
	e, ok := splitEntry(p.SignedEntry)
	if !ok {
		return proofError("signed_entry: it is no entry of a log")
	}
	if tlog.RecordHash(e.canonical) != hash {
		return proofError("signed_entry: it is another than the one that is proven")
	}
	id, key, ok := peerKey(p.Head.PeerID)
	if !ok || !bytes.Equal(id, e.rater) {
		return proofError("the log is not that of the rater")
	}
	if sum := sha256.Sum256(e.canonical); !ed25519.Verify(key, sum[:], e.signature) {
		return proofError("signed_entry: the signature is not the rater's")
	}
	return nil
}

// signedEntry is what an entry consists of.
type signedEntry struct {
	rater, subject       []byte // peer ids
	canonical, signature []byte // what is signed
}

// splitEntry takes an entry apart. It is a message of Protocol Buffers in the order of its fields:
// within field 1 or 2, the peer ids come first, and the signature last.
func splitEntry(b []byte) (e signedEntry, ok bool) {
	field := func(b []byte, number byte) (v, rest []byte, ok bool) {
		if len(b) == 0 || b[0] != number<<3|2 {
			return nil, nil, false
		}
		n, size := binary.Uvarint(b[1:])
		if size <= 0 || n > uint64(len(b)-1-size) {
			return nil, nil, false
		}
		b = b[1+size:]
		return b[:n], b[n:], true
	}
	kind := byte(1)
	if len(b) > 0 && b[0] == 2<<3|2 {
		kind = 2
	}
	inner, rest, ok := field(b, kind)
	at := len(inner) - 2 - ed25519.SignatureSize
	if !ok || len(rest) > 0 || at < 0 {
		return e, false
	}
	e.canonical = inner[:at]
	if e.signature, rest, ok = field(inner[at:], 8); !ok || len(rest) > 0 {
		return e, false
	}
	if e.rater, rest, ok = field(e.canonical, 1); !ok {
		return e, false
	}
	e.subject, _, ok = field(rest, 2)
	return e, ok
}

// keyPrefix begins the bytes of a peer id that has an Ed25519 key in it: a multihash that
// is its content, which is a public key of libp2p.
var keyPrefix = []byte{0x00, 0x24, 0x08, 0x01, 0x12, 0x20}

// peerKey returns the bytes of a peer id and the key in it.
func peerKey(peerID string) (id []byte, key ed25519.PublicKey, ok bool) {
	id, ok = decodeBase58(peerID)
	key, found := bytes.CutPrefix(id, keyPrefix)
	return id, ed25519.PublicKey(key), ok && found && len(key) == ed25519.PublicKeySize
}

// base58 is the alphabet of peer ids.
const base58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

// maxPeerID is longer than any peer id: the time to read one grows by its square.
const maxPeerID = 128

// decodeBase58 reads the text of a peer id.
func decodeBase58(s string) ([]byte, bool) {
	if s == "" || len(s) > maxPeerID {
		return nil, false
	}
	n := new(big.Int)
	for i := range len(s) {
		digit := strings.IndexByte(base58, s[i])
		if digit < 0 {
			return nil, false
		}
		n.Add(n.Mul(n, big.NewInt(58)), big.NewInt(int64(digit)))
	}
	zeros := len(s) - len(strings.TrimLeft(s, "1"))
	return append(make([]byte, zeros), n.Bytes()...), true
}

var errUnsigned = proofError("its head is not signed: nobody but the gateway has vouched for it")

// proofError is the error for a proof that proves nothing.
func proofError(message string) *Error { return &Error{Kind: ErrProof, Message: message} }

// hashOf reads a hash.
func hashOf(s string) (h tlog.Hash, ok bool) {
	b, err := hex.DecodeString(s)
	return tlog.Hash(append(b, make([]byte, tlog.HashSize)...)[:tlog.HashSize]), err == nil && len(b) == tlog.HashSize
}
