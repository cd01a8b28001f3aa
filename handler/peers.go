// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger"
	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	ledgerwire "github.com/Agent-FM/caddy-agentfm/ledger/wire"
	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// Bounds of pages of a peer's log.
const (
	defaultLog = 50
	maxLog     = 500
	maxOffset  = 1_000_000
)

// findPeers returns the route of a path below /v1/peers/.
func findPeers(rest string) (rt route, ok bool) {
	id, what, _ := strings.Cut(rest, "/")
	_, name, below := strings.Cut(what, "/")
	switch {
	case id == "":
		return route{}, false
	case id == rest:
		rt.get = (*exchange).peer
	case what == "reputation":
		rt.get = (*exchange).peerReputation
	case what == "log":
		rt.get = (*exchange).peerLog
	case what == "proof":
		rt.get = (*exchange).peerProof
	case what == "comments":
		rt.post, rt.work = (*exchange).submitComment, true
	case what == "comments/self":
		rt.post, rt.work = (*exchange).comment, true
	case strings.HasPrefix(what, "comments/") && below && name != "" && !strings.Contains(name, "/"):
		rt.get = (*exchange).commentText
	default:
		return route{}, false
	}
	return rt, true
}

// subject is the peer of the path, with what is known of it as a worker.
type subject struct {
	id       peer.ID
	worker   *mesh.WorkerInfo // empty for none
	rest     string           // of the path
	standing ledger.Standing
}

// subject reads the peer of the path. A client that may not use all workers learns of
// those alone that it may.
func (x *exchange) subject() (*subject, error) {
	text, rest, _ := strings.Cut(x.param, "/")
	id, err := decodePeer(text)
	if err != nil {
		return nil, &problem{status: http.StatusBadRequest, code: "bad_peer_id", message: "the path has no peer id after /v1/peers/"}
	}
	l, err := x.takeLease()
	if err != nil {
		return nil, err
	}
	s := &subject{id: id, rest: rest, worker: x.workerFor(l.Worker(id.String())), standing: x.h.ledger.Standing(id)}
	if s.worker != nil {
		return s, nil
	}
	if x.identity.Restricted() {
		return nil, &problem{status: http.StatusNotFound, code: "worker_not_found", message: "there is no worker of this peer id"}
	}
	s.worker = new(mesh.WorkerInfo)
	return s, nil
}

// ledger returns the ledger, when there is one.
func (x *exchange) ledger() (*ledger.Ledger, error) {
	l, err := x.h.ledger.Ledger()
	if err != nil {
		return nil, &problem{status: http.StatusServiceUnavailable, code: "ledger_unavailable", message: err.Error()}
	}
	return l, nil
}

// ledgerProblem is the answer to an error of the ledger.
func ledgerProblem(err error) error {
	is := func(target error) bool { return errors.Is(err, target) }
	switch {
	case is(ledger.ErrTooOften):
		return &problem{status: http.StatusTooManyRequests, code: codeRateLimit, retryAfter: maxRetryAfter,
			message: "this client has had the gateway sign as much as it may for now"}
	case is(ledgerwire.ErrBad):
		return badRequest("", "%s", err)
	case store.Unsigned(err), is(store.ErrDamaged):
		return &problem{status: http.StatusServiceUnavailable, code: "ledger_unavailable", message: err.Error(), cause: err}
	}
	return err
}

// peerAnswer is what is known of a peer.
type peerAnswer struct {
	Peer        string     `json:"peer_id"`
	Agent       string     `json:"agent_name,omitzero"`
	Author      string     `json:"author,omitzero"`
	Online      bool       `json:"online"`
	LastSeen    string     `json:"last_seen,omitzero"`
	Honesty     float64    `json:"honesty_score"`
	Equivocator bool       `json:"is_equivocator"`
	Allowed     bool       `json:"dispatch_allowed"`
	Refused     string     `json:"dispatch_refuse_reason,omitzero"`
	Probation   bool       `json:"on_probation"`
	Entries     int        `json:"entries_count"`
	Last        string     `json:"last_entry_at,omitzero"`
	ImageRef    string     `json:"advertised_image_ref"`
	ImageDigest string     `json:"advertised_image_digest"`
	Capability  string     `json:"advertised_capability"`
	Raters      raterCount `json:"rater_summary"`
}

// raterCount counts who speaks of a peer.
type raterCount struct {
	Verified   int `json:"verified_raters_count"`
	Unverified int `json:"unverified_raters_count"`
}

// peer serves GET /v1/peers/{id}.
func (x *exchange) peer() error {
	s, err := x.subject()
	if err != nil {
		return err
	}
	a, err := x.describe(s)
	if err != nil {
		return err
	}
	return x.answerJSON(a)
}

// describe returns what is known of a peer.
func (x *exchange) describe(s *subject) (peerAnswer, error) {
	a := peerAnswer{
		Peer: s.id.String(), Agent: s.worker.AgentName, Author: s.worker.Author, Online: s.worker.Online, LastSeen: timeText(s.worker.LastSeen),
		Honesty: s.standing.Score, Equivocator: s.standing.Equivocator, Allowed: s.standing.Refused == "", Refused: s.standing.Refused, Probation: s.standing.Probation,
		ImageRef: s.worker.ImageRef, ImageDigest: s.worker.ImageDigest, Capability: s.worker.Capability,
	}
	l, err := x.h.ledger.Ledger()
	if err != nil {
		return a, nil // there is none
	}
	sum, err := l.Store().Summary(x.r.Context(), s.id)
	if err != nil {
		return a, ledgerProblem(err)
	}
	a.Entries, a.Last = sum.Entries, timeText(sum.Last)
	a.Raters.Verified = s.standing.Heeded
	if sum.Own { // what this gateway says itself, it believes
		a.Raters.Verified++
	}
	a.Raters.Verified = min(a.Raters.Verified, sum.Raters)
	a.Raters.Unverified = sum.Raters - a.Raters.Verified
	return a, nil
}

// verified reports whether a rater was found honest: proven, whatever its score, which others
// can raise. What this gateway says itself, it believes.
func verified(l *ledger.Ledger, rater peer.ID) bool {
	return rater == l.Self() || l.Standing(rater).Proven
}

// peerReputation serves GET /v1/peers/{id}/reputation.
func (x *exchange) peerReputation() error {
	s, err := x.subject()
	if err != nil {
		return err
	}
	l, err := x.ledger()
	if err != nil {
		return err
	}
	sum, err := l.Store().Summary(x.r.Context(), s.id)
	if err != nil {
		return ledgerProblem(err)
	}
	return x.answerJSON(struct {
		Peer        string             `json:"peer_id"`
		Scores      map[string]float64 `json:"scores"`
		Ratings     int                `json:"rating_count"`
		Updated     string             `json:"last_updated,omitzero"`
		Equivocator bool               `json:"is_equivocator"`
		ImageRef    string             `json:"agent_image_ref,omitzero"`
		ImageDigest string             `json:"agent_image_digest,omitzero"`
		Capability  string             `json:"agent_capability,omitzero"`
	}{
		s.id.String(), map[string]float64{ledgerwire.Honesty: s.standing.Score}, sum.Ratings, timeText(sum.Last),
		s.standing.Equivocator, s.worker.ImageRef, s.worker.ImageDigest, s.worker.Capability,
	})
}

// logLine is an entry of a peer's log as clients see it.
type logLine struct {
	Received  string   `json:"received_at"`
	Kind      string   `json:"kind"`
	Hash      string   `json:"entry_hash"`
	Rater     string   `json:"rater_peer_id"`
	Dimension string   `json:"dimension,omitzero"`
	Score     *float64 `json:"score,omitzero"`
	Context   *string  `json:"context,omitzero"`
	Language  *string  `json:"language,omitzero"`
	CID       string   `json:"text_cid,omitzero"`
	Status    string   `json:"rater_status"`
	Honesty   float64  `json:"rater_honesty_score"`
}

// peerLog serves GET /v1/peers/{id}/log: what is said of a peer, newest first.
func (x *exchange) peerLog() error {
	limit, err := x.number("limit", defaultLog, 1, maxLog)
	if err != nil {
		return err
	}
	offset, err := x.number("offset", 0, 0, maxOffset)
	if err != nil {
		return err
	}
	s, err := x.subject()
	if err != nil {
		return err
	}
	l, err := x.ledger()
	if err != nil {
		return err
	}
	lines, err := l.Store().About(x.r.Context(), s.id, limit, offset)
	if err != nil {
		return ledgerProblem(err)
	}
	entries := make([]logLine, len(lines))
	for i, line := range lines {
		entries[i] = newLogLine(l, line)
	}
	return x.answerJSON(struct {
		Subject  string    `json:"subject"`
		Limit    int       `json:"limit"`
		Offset   int       `json:"offset"`
		Returned int       `json:"returned"`
		Entries  []logLine `json:"entries"`
	}{s.id.String(), limit, offset, len(entries), entries})
}

// newLogLine returns an entry as clients see it.
func newLogLine(l *ledger.Ledger, line store.Line) logLine {
	out := logLine{
		Received: line.Received.Format(time.RFC3339Nano), Kind: line.Kind.String(), Hash: line.Hash().String(), Rater: line.Rater.String(),
		Status: "unverified", Honesty: l.Standing(line.Rater).Score,
	}
	if verified(l, line.Rater) {
		out.Status = "verified"
	}
	if line.Kind == ledgerwire.Rating {
		out.Dimension, out.Score, out.Context = line.Dimension, &line.Score, &line.Context
	} else {
		out.Language, out.CID = &line.Language, fmt.Sprintf("%x", line.TextCID)
	}
	return out
}

// number reads a parameter of the query that is a whole number within bounds.
func (x *exchange) number(name string, otherwise, least, most int) (int, error) {
	text := x.r.URL.Query().Get(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, badRequest(name, "%s: want a whole number from %d to %d", name, least, most)
	}
	return n, nil
}

// peerProof serves GET /v1/peers/{id}/proof: that an entry is in the log of its author.
func (x *exchange) peerProof() error {
	s, err := x.subject()
	if err != nil {
		return err
	}
	hash, err := ledgerwire.ParseHash(x.r.URL.Query().Get("entry"))
	if err != nil {
		return &problem{status: http.StatusBadRequest, code: "bad_request", param: "entry", message: "entry: want the hash of an entry, 64 hex digits"}
	}
	l, err := x.ledger()
	if err != nil {
		return err
	}
	p, err := l.Prove(x.r.Context(), s.id, hash)
	if errors.Is(err, store.ErrNotFound) {
		return &problem{status: http.StatusNotFound, code: "entry_not_found", message: "there is no such entry about or by this peer, or no signed head that covers it"}
	}
	if err != nil {
		return ledgerProblem(err)
	}
	return x.answerJSON(newProof(p))
}

// proof is what proves an entry, as clients see it.
type proof struct {
	Hash     string    `json:"entry_hash"`
	Position uint64    `json:"position"`
	Path     []string  `json:"audit_path"`
	Entry    []byte    `json:"signed_entry"`
	Head     proofHead `json:"head"`
}

// proofHead is the head of a log as clients see it.
type proofHead struct {
	Size      uint64         `json:"tree_size"`
	Root      string         `json:"root_hash"`
	Witnesses int            `json:"witness_count"`
	Sigs      []proofWitness `json:"witness_sigs"`
	Signed    string         `json:"signed_at"`
	Peer      string         `json:"peer_id"`
	Signature []byte         `json:"signature"`
	Time      int64          `json:"timestamp_unix_ns"`
}

// proofWitness is a witness's signature of a head.
type proofWitness struct {
	Peer      string `json:"peer_id"`
	Signature []byte `json:"signature"`
}

// newProof returns a proof as clients see it.
func newProof(p *store.Proof) proof {
	out := proof{Hash: p.Entry.Hash().String(), Position: p.Position, Path: make([]string, len(p.Path)), Entry: p.Entry.Marshal()}
	for i, h := range p.Path {
		out.Path[i] = h.String()
	}
	h := p.Head
	out.Head = proofHead{
		Size: h.Size, Root: h.Root.String(), Witnesses: len(h.Witnesses), Sigs: make([]proofWitness, len(h.Witnesses)),
		Signed: time.Unix(0, h.Time).UTC().Format(time.RFC3339Nano), Peer: h.Peer.String(), Signature: h.Signature, Time: h.Time,
	}
	for i, w := range h.Witnesses {
		out.Head.Sigs[i] = proofWitness{w.Peer.String(), w.Signature}
	}
	return out
}
