// SPDX-License-Identifier: Apache-2.0

package client

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

func TestPeers(t *testing.T) {
	text := "Fast, and it was right. ü"
	sum := sha256.Sum256([]byte(text))
	cid := cidPrefix + hex.EncodeToString(sum[:])
	var body string
	c := fake(t, routes{
		"GET /v1/peers/12D3":            answer(200, `{"peer_id":"12D3","agent_name":"HR","online":true,"last_seen":"2026-01-02T03:04:05Z","honesty_score":0.25,"dispatch_allowed":true,"entries_count":2,"rater_summary":{"verified_raters_count":1,"unverified_raters_count":3}}`),
		"GET /v1/peers/12D3/reputation": answer(200, `{"peer_id":"12D3","scores":{"honesty":-1},"rating_count":4,"is_equivocator":true}`),
		"POST /v1/peers/12D3/comments/self": func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			body = string(b)
			answer(201, map[string]string{"cid": cid, "ledger_hash": "ab"})(w, r)
		},
		"GET /v1/peers/12D3/comments/" + cid: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) },
		"GET /v1/peers/12D3/comments/1220ab": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) },
		"GET /v1/peers/12D3/comments/large": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Repeat("x", maxComment+1))
		},
		"GET /v1/peers/12D3/comments/unknown": problem(404, CodeCommentNotFound),
		"GET /v1/peers/bad":                   problem(400, CodeBadPeerID),
		"GET /v1/peers/none":                  problem(503, CodeLedgerUnavailable),
	}, WithRetries(0))
	p, err := c.Peers.Get(t.Context(), "12D3")
	if err != nil || p.Agent != "HR" || p.HonestyScore != 0.25 || !p.DispatchAllowed || p.Raters.Verified != 1 || p.LastSeen.IsZero() {
		t.Errorf("%+v, %v", p, err)
	}
	r, err := c.Peers.Reputation(t.Context(), "12D3")
	if err != nil || r.Scores["honesty"] != -1 || r.RatingCount != 4 || !r.IsEquivocator {
		t.Errorf("%+v, %v", r, err)
	}
	rating := -0.5
	receipt, err := c.Peers.Comment(t.Context(), "12D3", CommentRequest{Text: text, Rating: &rating})
	if err != nil || receipt.CID != cid || receipt.LedgerHash != "ab" || body != `{"text":"`+text+`","rating":-0.5}` {
		t.Error(receipt, err, body)
	}
	if got, err := c.Peers.CommentBody(t.Context(), "12D3", cid); err != nil || got != text {
		t.Error(got, err)
	}
	for cid, is := range map[string]error{"1220ab": ErrProof, "large": ErrProtocol, "unknown": CodeCommentNotFound, "": ErrInvalidRequest} {
		if _, err := c.Peers.CommentBody(t.Context(), "12D3", cid); !errors.Is(err, is) {
			t.Errorf("%s: %v", cid, err)
		}
	}
	for id, is := range map[string]error{"bad": CodeBadPeerID, "none": CodeLedgerUnavailable, "": ErrInvalidRequest, "..": ErrInvalidRequest} {
		if _, err := c.Peers.Get(t.Context(), id); !errors.Is(err, is) {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestPeersLog(t *testing.T) {
	const entries = 120
	c := fake(t, routes{"GET /v1/peers/12D3/log": func(w http.ResponseWriter, r *http.Request) {
		limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
		offset, _ := strconv.Atoi(r.URL.Query().Get("offset"))
		page := LogPage{Subject: "12D3", Limit: limit, Offset: offset, Entries: []LogEntry{}}
		for i := offset; i < min(offset+limit, entries); i++ {
			page.Entries = append(page.Entries, LogEntry{Kind: "Rating", Hash: strconv.Itoa(i), Score: 0.5, Dimension: "honesty"})
		}
		page.Returned = len(page.Entries)
		b, _ := json.Marshal(page)
		answer(200, string(b))(w, r)
	}, "GET /v1/peers/bad/log": problem(400, CodeBadPeerID)})
	n := 0
	for e, err := range c.Peers.Log(t.Context(), "12D3") {
		if err != nil || e.Hash != strconv.Itoa(n) || e.Score != 0.5 {
			t.Fatal(e, err)
		}
		n++
	}
	if n != entries {
		t.Error(n)
	}
	for range c.Peers.Log(t.Context(), "12D3") {
		break
	}
	if page, err := c.Peers.LogPage(t.Context(), "12D3", 20, 110); err != nil || page.Returned != 10 || page.Entries[0].Hash != "110" {
		t.Error(page, err)
	}
	for _, err := range c.Peers.Log(t.Context(), "bad") {
		if !errors.Is(err, CodeBadPeerID) {
			t.Error(err)
		}
	}
}

// proofs returns a proof for each entry of a log of n.
func proofs(t *testing.T, n int64) []Proof {
	t.Helper()
	var stored []tlog.Hash
	reader := tlog.HashReaderFunc(func(indexes []int64) (hashes []tlog.Hash, err error) {
		for _, i := range indexes {
			hashes = append(hashes, stored[i])
		}
		return hashes, nil
	})
	for i := range n {
		hashes, err := tlog.StoredHashes(i, fmt.Append(nil, "entry ", i), reader)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, hashes...)
	}
	root, err := tlog.TreeHash(n, reader)
	if err != nil {
		t.Fatal(err)
	}
	all := make([]Proof, n)
	for i := range n {
		path, err := tlog.ProveRecord(n, i, reader)
		if err != nil {
			t.Fatal(err)
		}
		leaf := tlog.RecordHash(fmt.Append(nil, "entry ", i))
		all[i] = Proof{EntryHash: hex.EncodeToString(leaf[:]), Position: i, Head: LogHead{TreeSize: n, RootHash: hex.EncodeToString(root[:])}}
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
	p := proofs(t, 3)[1]
	p.Head.PeerID, p.Head.Signature = good.PeerID, good.Signature
	if err := p.Verify(); !errors.Is(err, ErrProof) {
		t.Error(err)
	}
}

// TestProof wants each proof to hold, and none that was changed in anything.
func TestProof(t *testing.T) {
	for _, n := range []int64{1, 2, 3, 7, 8, 13} {
		for i, p := range proofs(t, n) {
			if err := p.Verify(); err != nil {
				t.Errorf("%d of %d: %v", i, n, err)
			}
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
			} {
				bad := p
				change(&bad)
				if err := bad.Verify(); !errors.Is(err, ErrProof) {
					t.Errorf("%d of %d, %s: %v", i, n, name, err)
				}
			}
		}
	}
	good := proofs(t, 5)
	b, _ := json.Marshal(good[3])
	c := fake(t, routes{"GET /v1/peers/12D3/proof": func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("entry") == "none" {
			problem(404, CodeEntryNotFound)(w, r)
			return
		}
		answer(200, string(b))(w, r)
	}})
	if p, err := c.Peers.Proof(t.Context(), "12D3", strings.ToUpper(good[3].EntryHash)); err != nil || p.Position != 3 || len(p.AuditPath) == 0 {
		t.Error(p, err)
	}
	for hash, is := range map[string]error{good[2].EntryHash: ErrProof, "none": CodeEntryNotFound} {
		if _, err := c.Peers.Proof(t.Context(), "12D3", hash); !errors.Is(err, is) {
			t.Errorf("%s: %v", hash, err)
		}
	}
}
