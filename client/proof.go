// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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

// Proof shows that an entry is in the log of a peer, by RFC 6962.
type Proof struct {
	EntryHash string   `json:"entry_hash"`
	Position  int64    `json:"position"` // from 0
	AuditPath []string `json:"audit_path"`
	Head      LogHead  `json:"head"`
}

// LogHead is the head of a log: its size and the root of its tree.
type LogHead struct {
	TreeSize     int64     `json:"tree_size"`
	RootHash     string    `json:"root_hash"`
	WitnessCount int       `json:"witness_count"`
	SignedAt     time.Time `json:"signed_at,omitzero"`
}

// Proof returns the proof that an entry of this hash is in the log of a peer. It has been
// verified, see [Proof.Verify]; that the entry is the one that was asked for, too.
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
	return p, nil
}

// Verify checks that the path leads from the entry to the root of the head, without asking
// anybody. An error is one of [ErrProof]. Whether the head is that of the peer is not part
// of it: compare it with a head from elsewhere.
func (p *Proof) Verify() error {
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
	return nil
}

// proofError is the error for a proof that proves nothing.
func proofError(message string) *Error { return &Error{Kind: ErrProof, Message: message} }

// hashOf reads a hash.
func hashOf(s string) (h tlog.Hash, ok bool) {
	b, err := hex.DecodeString(s)
	return tlog.Hash(append(b, make([]byte, tlog.HashSize)...)[:tlog.HashSize]), err == nil && len(b) == tlog.HashSize
}
