// SPDX-License-Identifier: Apache-2.0

package client

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
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
