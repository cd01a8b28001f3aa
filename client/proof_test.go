// SPDX-License-Identifier: Apache-2.0

package client

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// signer is a peer that signs.
type signer struct {
	key ed25519.PrivateKey
	id  []byte
}

func newSigner(t *testing.T) signer {
	t.Helper()
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return signer{key, append(append([]byte{}, keyPrefix...), public...)}
}

// peerID returns the text of the peer id.
func (s signer) peerID() string {
	text := ""
	for n, digit := new(big.Int).SetBytes(s.id), new(big.Int); n.Sign() > 0; {
		n.DivMod(n, big.NewInt(58), digit)
		text = string(base58[digit.Int64()]) + text
	}
	return "1" + text // for the zero with which it begins
}

func (s signer) sign(b []byte) []byte {
	sum := sha256.Sum256(b)
	return ed25519.Sign(s.key, sum[:])
}

// entry returns what is signed of an entry, and the entry.
func (s signer) entry(about []byte, said string) (canonical, entry []byte) {
	field := func(b []byte, number byte, v []byte) []byte {
		return append(binary.AppendUvarint(append(b, number<<3|2), uint64(len(v))), v...)
	}
	canonical = field(field(field(nil, 1, s.id), 2, about), 3, []byte(said))
	return canonical, field(nil, 1, field(canonical, 8, s.sign(canonical)))
}

// head signs a head.
func (s signer) head(size int64, root tlog.Hash) LogHead {
	h := LogHead{TreeSize: size, RootHash: hex.EncodeToString(root[:]), PeerID: s.peerID(), TimestampUnixNS: 1}
	h.Signature = s.sign(h.canonical(s.id, root[:]))
	return h
}

// witnessed returns a head with the signature of a witness.
func (s signer) witnessed(h LogHead) LogHead {
	id, _, _ := peerKey(h.PeerID)
	root, _ := hashOf(h.RootHash)
	h.Witnesses = append(h.Witnesses[:len(h.Witnesses):len(h.Witnesses)], Witness{s.peerID(), s.sign(h.canonical(id, root[:]))})
	h.WitnessCount = len(h.Witnesses)
	return h
}

// log returns a proof for each entry of a log of n.
func (s signer) log(t *testing.T, about []byte, n int64) []Proof {
	t.Helper()
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (hashes []tlog.Hash, err error) {
		for _, i := range indexes {
			hashes = append(hashes, stored[i])
		}
		return hashes, nil
	})
	all := make([]Proof, n)
	for i := range n {
		canonical, entry := s.entry(about, fmt.Sprint("entry ", i))
		leaf := tlog.RecordHash(canonical)
		hashes, err := tlog.StoredHashesForRecordHash(i, leaf, reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hashes...)
		all[i] = Proof{EntryHash: hex.EncodeToString(leaf[:]), Position: i, SignedEntry: entry}
	}
	root, err := tlog.TreeHash(n, reader)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		path, err := tlog.ProveRecord(n, i, reader)
		if err != nil {
			t.Fatal(err)
		}
		all[i].Head = s.head(n, root)
		for _, h := range path {
			all[i].AuditPath = append(all[i].AuditPath, hex.EncodeToString(h[:]))
		}
	}
	return all
}

// A head that was signed by another implementation: ledger/wire with the key of 32 bytes
// 0x07.
const signedHead = `{"peer_id":"12D3KooWRawPbxPtP1eZaJpumGnyWX2DcUyd3RQnydr3eAto4Az7","root_hash":"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f","signature":"eTItwKimIJFngsnkjLRUjipKTWTYwj2WJQKzUOJVLMkEUXC/cfcVTj77XuFVojiqEY+WhPFQmvLwM4eYrV5wDw==","timestamp_unix_ns":1800000000123456789,"tree_size":300}`

// TestLogHead wants the signature of a head to be checked to the last bit.
func TestLogHead(t *testing.T) {
	var good LogHead
	if err := decode([]byte(signedHead), &good, ""); err != nil {
		t.Fatal(err)
	}
	if err := good.Verify(); err != nil || !good.Signed() {
		t.Error(err)
	}
	for name, change := range map[string]func(h *LogHead){
		"size":          func(h *LogHead) { h.TreeSize++ },
		"no size":       func(h *LogHead) { h.TreeSize = 0 },
		"root":          func(h *LogHead) { h.RootHash = strings.Repeat("0", 64) },
		"no root":       func(h *LogHead) { h.RootHash = "" },
		"time":          func(h *LogHead) { h.TimestampUnixNS++ },
		"signature":     func(h *LogHead) { h.Signature = append([]byte{h.Signature[0] ^ 1}, h.Signature[1:]...) },
		"no signature":  func(h *LogHead) { h.Signature = nil },
		"short":         func(h *LogHead) { h.Signature = h.Signature[:63] },
		"another peer":  func(h *LogHead) { h.PeerID = "12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL" },
		"RSA peer":      func(h *LogHead) { h.PeerID = "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N" },
		"no peer":       func(h *LogHead) { h.PeerID = "" },
		"odd peer":      func(h *LogHead) { h.PeerID = "0OIl" },
		"peer too long": func(h *LogHead) { h.PeerID = strings.Repeat("1", 1<<20) },
	} {
		bad := good
		change(&bad)
		if err := bad.Verify(); !errors.Is(err, ErrProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestProof wants each proof to hold, and none that was changed in anything.
func TestProof(t *testing.T) {
	a, other := newSigner(t), newSigner(t)
	about := newSigner(t)
	for _, n := range []int64{1, 2, 3, 7, 8, 13} {
		for i, p := range a.log(t, about.id, n) {
			p.Head = newSigner(t).witnessed(newSigner(t).witnessed(p.Head))
			if err := p.Verify(); err != nil {
				t.Errorf("%d of %d: %v", i, n, err)
			}
			root, _ := hashOf(p.Head.RootHash)
			for name, change := range map[string]func(p *Proof){
				"entry":    func(p *Proof) { p.EntryHash = hex.EncodeToString(make([]byte, 32)) },
				"root":     func(p *Proof) { p.Head.RootHash = hex.EncodeToString(make([]byte, 32)) },
				"position": func(p *Proof) { p.Position = p.Head.TreeSize },
				"negative": func(p *Proof) { p.Position = -1 },
				"size":     func(p *Proof) { p.Head.TreeSize = 0 },
				"short":    func(p *Proof) { p.EntryHash = p.EntryHash[2:] },
				"no hex":   func(p *Proof) { p.Head.RootHash = "x" + p.Head.RootHash[1:] },
				"longer":   func(p *Proof) { p.AuditPath = append(p.AuditPath[:len(p.AuditPath):len(p.AuditPath)], p.EntryHash) },
				"path":     func(p *Proof) { p.AuditPath = []string{"zz"} },

				"no signature":        func(p *Proof) { p.Head.Signature = nil },
				"the head of another": func(p *Proof) { p.Head = other.head(n, root) },
				"a witness who has signed another": func(p *Proof) {
					p.Head.Witnesses = []Witness{p.Head.Witnesses[0], other.witnessed(other.head(n, root)).Witnesses[0]}
				},
				"a witness twice":           func(p *Proof) { p.Head.Witnesses = []Witness{p.Head.Witnesses[0], p.Head.Witnesses[0]} },
				"the owner as witness":      func(p *Proof) { p.Head = a.witnessed(p.Head) },
				"more witnesses":            func(p *Proof) { p.Head.WitnessCount++ },
				"witnesses that are hidden": func(p *Proof) { p.Head.Witnesses = nil },

				"no entry":          func(p *Proof) { p.SignedEntry = nil },
				"junk for an entry": func(p *Proof) { p.SignedEntry = []byte("junk") },
				"another entry":     func(p *Proof) { _, p.SignedEntry = a.entry(about.id, "another") },
				"an entry that is not signed": func(p *Proof) {
					p.SignedEntry = append(p.SignedEntry[:len(p.SignedEntry)-1:len(p.SignedEntry)-1], p.SignedEntry[len(p.SignedEntry)-1]^1)
				},
			} {
				bad := p
				change(&bad)
				if err := bad.Verify(); !errors.Is(err, ErrProof) {
					t.Errorf("%d of %d, %s: %v", i, n, name, err)
				}
			}
		}
	}
}

// TestForgedProof has a gateway make a key, and prove by it what nobody, or another, has said.
func TestForgedProof(t *testing.T) {
	gateway, rater, about := newSigner(t), newSigner(t), newSigner(t)
	canonical, entry := rater.entry(about.id, "good")
	leaf := tlog.RecordHash(canonical)
	for name, p := range map[string]Proof{
		"what nobody has said": {EntryHash: hex.EncodeToString(leaf[:])},
		"what another has":     {EntryHash: hex.EncodeToString(leaf[:]), SignedEntry: entry},
	} {
		p.Head = gateway.head(1, leaf)
		if err := p.Verify(); !errors.Is(err, ErrProof) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPeersProof(t *testing.T) {
	a, about := newSigner(t), newSigner(t)
	good := a.log(t, about.id, 5)
	b, _ := json.Marshal(good[3])
	serve := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("entry") == "none" {
			problem(404, CodeEntryNotFound)(w, r)
			return
		}
		answer(200, string(b))(w, r)
	}
	stranger := newSigner(t).peerID()
	all := routes{}
	for _, id := range []string{a.peerID(), about.peerID(), stranger} {
		all["GET /v1/peers/"+id+"/proof"] = serve
	}
	c := fake(t, all)
	for _, id := range []string{a.peerID(), about.peerID()} {
		if p, err := c.Peers.Proof(t.Context(), id, strings.ToUpper(good[3].EntryHash)); err != nil || p.Position != 3 || len(p.AuditPath) == 0 {
			t.Error(p, err)
		}
	}
	if _, err := c.Peers.Proof(t.Context(), stranger, good[3].EntryHash); !errors.Is(err, ErrProof) {
		t.Errorf("of a peer that it is not about: %v", err)
	}
	for hash, is := range map[string]error{good[2].EntryHash: ErrProof, "none": CodeEntryNotFound} {
		if _, err := c.Peers.Proof(t.Context(), about.peerID(), hash); !errors.Is(err, is) {
			t.Errorf("%s: %v", hash, err)
		}
	}
}

func FuzzSplitEntry(f *testing.F) {
	f.Add([]byte("\x0a\x50\x0a\x01a\x12\x01b" + strings.Repeat("x", 8) + "\x42\x40" + strings.Repeat("s", 64)))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, ok := splitEntry(b); ok && (len(e.signature) != ed25519.SignatureSize || len(e.rater)+len(e.subject) > len(e.canonical)) {
			t.Errorf("%+v", e)
		}
	})
}
