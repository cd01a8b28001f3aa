// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/Agent-FM/caddy-agentfm/ledger"
	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	ledgerwire "github.com/Agent-FM/caddy-agentfm/ledger/wire"
	"github.com/Agent-FM/caddy-agentfm/openai"
)

// maxCommentBody bounds the body of a request with a comment: every character of the text
// may be escaped.
const maxCommentBody = 6*ledgerwire.MaxComment + 4<<10

// commentRequest is the body of POST /v1/peers/{id}/comments and …/comments/self.
type commentRequest struct {
	Text     string   `json:"text"`
	Language string   `json:"language"`
	Attached string   `json:"attached_rating_hash"`
	Rating   *float64 `json:"rating"`

	Rater     string `json:"rater_peer_id"`
	Time      int64  `json:"timestamp_unix_ns"`
	Signature []byte `json:"signature"`
}

// decodeComment reads and checks what both routes have in common.
func (x *exchange) decodeComment() (req commentRequest, attached []byte, err error) {
	body, err := x.bodyUpTo(maxCommentBody)
	if err != nil {
		return req, nil, err
	}
	if err := openai.Decode(body, &req); err != nil {
		return req, nil, err
	}
	switch {
	case strings.TrimSpace(req.Text) == "":
		return req, nil, &problem{status: http.StatusBadRequest, code: "missing_field", param: "text", message: "text is missing or empty"}
	case len(req.Text) > ledgerwire.MaxComment:
		return req, nil, &problem{status: http.StatusBadRequest, code: "body_too_large", param: "text", message: fmt.Sprintf("text has more than %d bytes", ledgerwire.MaxComment)}
	case req.Rating != nil && !(*req.Rating >= -1 && *req.Rating <= 1):
		return req, nil, &problem{status: http.StatusBadRequest, code: "bad_rating", param: "rating", message: "rating: want a number between -1 and 1"}
	}
	if req.Attached != "" {
		h, err := ledgerwire.ParseHash(req.Attached)
		if err != nil {
			return req, nil, badRequest("attached_rating_hash", "attached_rating_hash: want 64 hex digits")
		}
		attached = h[:]
	}
	return req, attached, nil
}

// comment serves POST /v1/peers/{id}/comments/self: the gateway signs what a client says.
func (x *exchange) comment() error {
	s, err := x.subject()
	if err != nil {
		return err
	}
	req, attached, err := x.decodeComment()
	if err != nil {
		return err
	}
	return x.say(s, req, attached)
}

// say signs and answers.
func (x *exchange) say(s *subject, req commentRequest, attached []byte) error {
	l, err := x.ledger()
	if err != nil {
		return err
	}
	x.work.ran.Store(true) // nobody can take back what is signed
	e, err := l.Say(x.r.Context(), ledger.Opinion{
		Client: x.client(), Subject: s.id, Score: req.Rating, Context: "comment", Text: req.Text, Language: req.Language, Attached: attached,
	})
	if err != nil {
		x.work.ran.Store(e != nil || !unsaid(err))
		return ledgerProblem(err)
	}
	body, err := encode(struct {
		CID  string `json:"cid"`
		Hash string `json:"ledger_hash"`
	}{hex.EncodeToString(e.TextCID), e.Hash().String()})
	if err != nil {
		return err
	}
	x.answer(http.StatusCreated, body)
	return nil
}

// unsaid reports whether an error of the ledger comes before anything is signed.
func unsaid(err error) bool {
	return errors.Is(err, ledger.ErrTooOften) || errors.Is(err, ledgerwire.ErrBad) || errors.Is(err, context.Canceled) || store.Unsigned(err)
}

// submitComment serves POST /v1/peers/{id}/comments: a comment that who holds this node's
// key has signed. The place in the log is the gateway's to give, so that the signature is
// over a comment without the hash of the one before it, and shows whose the comment is.
func (x *exchange) submitComment() error {
	s, err := x.subject()
	if err != nil {
		return err
	}
	req, attached, err := x.decodeComment()
	if err != nil {
		return err
	}
	l, err := x.ledger()
	if err != nil {
		return err
	}
	rater, err := decodePeer(req.Rater)
	if err != nil {
		return &problem{status: http.StatusBadRequest, code: "missing_field", param: "rater_peer_id", message: "rater_peer_id: want a peer id"}
	}
	if rater != l.Self() {
		return &problem{status: http.StatusForbidden, code: "non_self_submitter", param: "rater_peer_id",
			message: "this gateway adds to its own log alone, and the rater is another"}
	}
	e := ledgerwire.Entry{Kind: ledgerwire.Comment, Rater: rater, Subject: s.id, Time: req.Time, Language: req.Language,
		TextCID: ledgerwire.CID([]byte(req.Text)), AttachedRating: attached, Signature: req.Signature}
	if err := e.Verify(); err != nil {
		return &problem{status: http.StatusUnauthorized, code: "bad_signature", param: "signature",
			message: "the signature is not the rater's, over the SHA-256 of the comment in its canonical form with a prev_hash of 32 zero bytes"}
	}
	req.Rating = nil
	return x.say(s, req, attached)
}

// commentText serves GET /v1/peers/{id}/comments/{cid} and ….json.
func (x *exchange) commentText() error {
	s, err := x.subject()
	if err != nil {
		return err
	}
	name, asJSON := strings.CutSuffix(strings.TrimPrefix(s.rest, "comments/"), ".json")
	cid, err := ledgerwire.ParseCID(name)
	if err != nil {
		return &problem{status: http.StatusBadRequest, code: "bad_cid", message: "the path has no cid after comments/"}
	}
	l, err := x.ledger()
	if err != nil {
		return err
	}
	language, err := l.Store().Language(x.r.Context(), s.id, cid)
	var text []byte
	if err == nil {
		text, err = l.Store().Comment(x.r.Context(), cid)
	}
	if errors.Is(err, store.ErrNotFound) {
		return &problem{status: http.StatusNotFound, code: "comment_not_found", message: "there is no such comment about this peer, or its text has not come yet"}
	}
	if err != nil {
		return ledgerProblem(err)
	}
	if asJSON {
		return x.answerJSON(struct {
			CID      string `json:"cid"`
			Body     string `json:"body"`
			Language string `json:"language"`
		}{name, string(text), language})
	}
	x.w.Header().Set("Content-Security-Policy", "default-src 'none'; sandbox")
	_, _ = x.begin("text/plain; charset=utf-8").Write(text)
	return nil
}

// feedback adds what the client said with a task to the ledger, once the worker has done
// it.
func (x *exchange) feedback(req executeRequest) error {
	if !req.hasFeedback() {
		return nil
	}
	l, err := x.ledger()
	if err != nil {
		return err
	}
	id, err := decodePeer(req.WorkerID)
	if err != nil {
		return err
	}
	_, err = l.Say(x.r.Context(), ledger.Opinion{Client: x.client(), Subject: id, Score: req.FeedbackRating, Context: "feedback", Text: req.Feedback})
	return err
}
