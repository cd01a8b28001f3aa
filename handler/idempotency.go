// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

const (
	headerKey      = "Idempotency-Key"
	headerReplayed = "Idempotent-Replayed"

	// maxKey is the longest key, in bytes.
	maxKey = 255
	// keyMargin is how much longer than its task a request may take.
	keyMargin = time.Minute
)

// keyedWork is what is known of a request with an Idempotency-Key.
type keyedWork struct {
	body  []byte // read already
	claim *tasks.KeyClaim
	// ran says that an agent may have begun something, or the ledger; tried, that a task was submitted,
	// and it is not known whether it was accepted.
	ran   atomic.Bool
	tried bool
	left  bool // the client was gone before the end of the answer
}

// once serves work that a client may name with a key, so that it is done once however
// often the client asks. Without a key it is served like any other request.
func (x *exchange) once(post func(*exchange) error) error {
	names := x.r.Header.Values(headerKey)
	if len(names) == 0 {
		return post(x)
	}
	if !validKey(names) {
		return &problem{status: http.StatusBadRequest, code: "idempotency_key_invalid",
			message: headerKey + ": want one header, of 1 to 255 visible characters of ASCII"}
	}
	body, err := x.readBody(x.h.bodyLimit)
	if err != nil {
		return err
	}
	x.work.body = body
	k := tasks.Key{
		Owner: x.identity.ID, Route: x.r.Method + " " + x.r.URL.Path, Name: names[0], Print: fingerprint(x.r, body),
		Limit: cmp.Or(time.Duration(x.h.TaskTimeout), mesh.TaskTimeout) + time.Duration(x.h.queue.Wait) + keyMargin,
	}
	if x.r.URL.Path == submitPath {
		var target struct {
			Worker string `json:"worker_id"`
			Model  string `json:"model"`
		}
		_ = json.Unmarshal(body, &target) // it is looked at later
		k.Task, k.Limit = tasks.NewID(x.identity.ID, tasks.Target{Worker: target.Worker, Model: target.Model}), keyMargin
	}
	claim, err := x.h.tasks.Begin(x.r.Context(), k, x.replay)
	switch {
	case err != nil:
		return keyProblem(err)
	case claim == nil: // it was answered
		return nil
	}
	return x.claimed(claim, post)
}

// validKey reports whether there is one key, of a form that is taken.
func validKey(names []string) bool {
	return len(names) == 1 && names[0] != "" && len(names[0]) <= maxKey &&
		!strings.ContainsFunc(names[0], func(r rune) bool { return r <= ' ' || r > '~' })
}

// printedHeaders are those that decide the answer beside the body.
var printedHeaders = []string{headerWorker, headerExclude, "Accept", "Openai-Beta"}

// fingerprint returns a hash of what decides the answer. The boundary of a form does not:
// clients make another one for each try.
func fingerprint(r *http.Request, body []byte) [sha256.Size]byte {
	h := sha256.New()
	add := func(b []byte) {
		_, _ = h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
		_, _ = h.Write(b)
	}
	add([]byte(r.URL.RawQuery))
	for _, name := range printedHeaders {
		add([]byte(strings.Join(r.Header.Values(name), "\n")))
	}
	contentType := r.Header.Get("Content-Type")
	mediaType, params, err := mime.ParseMediaType(contentType)
	if boundary := params["boundary"]; err == nil && boundary != "" && strings.HasPrefix(mediaType, "multipart/") {
		add([]byte(mediaType))
		for piece := range bytes.SplitSeq(body, []byte("--"+boundary)) {
			add(piece)
		}
	} else {
		add([]byte(contentType))
		add(body)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// keyProblem maps an error of a key to its answer.
func keyProblem(err error) error {
	lost, _ := errors.AsType[*tasks.LostError](err)
	switch {
	case errors.Is(err, tasks.ErrKeyReused):
		return &problem{status: http.StatusUnprocessableEntity, code: "idempotency_key_reused",
			message: "this " + headerKey + " was sent with another request; use a new one for each request"}
	case errors.Is(err, tasks.ErrKeyInUse):
		return &problem{status: http.StatusConflict, code: "idempotency_key_in_use", retryAfter: 1,
			message: "the request with this " + headerKey + " is being served; its answer can be had when it has ended"}
	case errors.Is(err, tasks.ErrManyKeys):
		return &problem{status: http.StatusTooManyRequests, code: codeRateLimit, retryAfter: 60,
			message: "so many " + headerKey + "s are kept that you get no more for now; each is kept for 24 hours"}
	case lost != nil:
		return &problem{status: http.StatusConflict, code: "idempotency_answer_not_kept", final: true,
			message: "the request with this " + headerKey + " was begun, and " + lostReasons[lost.Reason] +
				"; an agent may have run, so it is not run again: to do so, use a new key"}
	}
	return taskStoreProblem(err)
}

// lostReasons say why there is no answer.
var lostReasons = map[tasks.Lost]string{
	tasks.LostClient:  "was broken off when its client went away",
	tasks.LostWorker:  "its worker broke the answer off",
	tasks.LostGateway: "the gateway was stopped before it had answered",
	tasks.LostSize:    "its answer is too large to be kept",
	tasks.LostStore:   "its answer could not be kept",
	tasks.LostAge:     "its answer is not kept any more",
}

// ran notes how a dispatch went.
func (x *exchange) ran(err error) {
	if _, tried := errors.AsType[*mesh.AttemptError](err); err == nil || tried && mesh.MayHaveRun(err) {
		x.work.ran.Store(true)
	}
}

// submitOnce submits a task, under the id that its key has noted.
func (x *exchange) submitOnce(sub tasks.Submission) (*tasks.Record, error) {
	if x.work.claim == nil {
		return x.h.tasks.Submit(x.r.Context(), sub)
	}
	sub.ID = x.work.claim.Task
	r, err := x.h.tasks.Submit(x.r.Context(), sub)
	x.work.ran.Store(err == nil)
	x.work.tried = !errors.Is(err, tasks.ErrFull)
	return r, err
}

// claimed serves the request that has its key, and keeps the answer.
func (x *exchange) claimed(claim *tasks.KeyClaim, post func(*exchange) error) (err error) {
	rec := &recorder{ResponseWriter: x.w, x: x, claim: claim}
	x.w, x.work.claim = rec, claim
	whole := false
	defer func() { // also when a worker's answer makes us panic
		x.w = rec.ResponseWriter
		x.settle(rec, whole)
	}()
	if claim.Accepted {
		x.work.ran.Store(true)
		err = x.accepted(claim.Task)
	} else {
		err = post(x)
	}
	if err != nil && x.work.ran.Load() {
		x.fail(err)
		err = nil
	}
	whole = err == nil && !x.work.left
	return err
}

// settle stores what became of the request. Where nothing was begun, its key is free.
func (x *exchange) settle(rec *recorder, whole bool) {
	if rec.settled {
		return
	}
	rec.settled = true
	var err error
	switch claim := rec.claim; {
	case x.work.ran.Load() && (whole || rec.whole()):
		err = claim.Keep(rec.answer())
	case x.work.ran.Load() && (x.work.left || x.r.Context().Err() != nil):
		err = claim.Lose(tasks.LostClient)
	case x.work.ran.Load():
		err = claim.Lose(tasks.LostWorker)
	case x.work.tried:
		claim.Leave()
	default:
		err = claim.Free()
	}
	if err != nil {
		x.log().Warn("what became of a request with an idempotency key was not stored", zap.Error(err))
	}
}

// keptHeaders are the headers of an answer that are kept, beside those that say who served it.
var keptHeaders = append([]string{
	"Content-Type", "Content-Encoding", "Content-Disposition", "Content-Language", "Cache-Control", "X-Accel-Buffering",
	"Location", "Openai-Model", "Openai-Version", "X-Should-Retry",
}, servedHeaders[:]...)

// recorder passes an answer on, and has it kept.
type recorder struct {
	http.ResponseWriter
	x       *exchange
	claim   *tasks.KeyClaim
	settled bool
	head    tasks.Head
	size    int64
	want    string // the length that the head announces; empty for none
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.head.Status == 0 && status >= 200 {
		h := r.Header()
		r.head = tasks.Head{Status: status, Header: pick(h, keptHeaders)}
		r.want = h.Get("Content-Length")
	}
	r.ResponseWriter.WriteHeader(status)
}

// pick returns some of the headers.
func pick(h http.Header, names []string) http.Header {
	out := make(http.Header)
	for _, name := range names {
		if v := h[http.CanonicalHeaderKey(name)]; len(v) > 0 {
			out[http.CanonicalHeaderKey(name)] = v[:1:1]
		}
	}
	return out
}

// Write implements http.ResponseWriter. An answer whose length is known is stored before
// its end is sent: what a client has it can have again.
func (r *recorder) Write(p []byte) (int, error) {
	_, _ = r.claim.Write(p)
	if r.size += int64(len(p)); r.whole() && r.x.work.ran.Load() {
		r.x.settle(r, true)
	}
	return r.ResponseWriter.Write(p)
}

// whole reports whether all of the answer was there, whether or not the client took it.
func (r *recorder) whole() bool {
	return r.head.Status != 0 && r.want == strconv.FormatInt(r.size, 10)
}

// answer returns what is kept beside the body.
func (r *recorder) answer() tasks.Head {
	if trailer := r.Header().Get("Trailer"); trailer != "" {
		r.head.Trailer = pick(r.Header(), []string{trailer})
	}
	return r.head
}

// replay answers with what was kept.
func (x *exchange) replay(k *tasks.Kept) error {
	h := x.w.Header()
	for name, values := range k.Header {
		h[name] = values
	}
	h.Set(headerReplayed, "true")
	if k.Status >= http.StatusBadRequest {
		h.Set("X-Should-Retry", "false") // it will be the same
	}
	for name := range k.Trailer {
		h.Add("Trailer", name)
	}
	if len(k.Trailer) == 0 {
		h.Set("Content-Length", strconv.FormatInt(k.Size, 10))
	}
	if fields := x.logFields(); fields != nil {
		fields.Set(zap.Bool("idempotent_replayed", true))
	}
	x.writeHeader(k.Status)
	for {
		piece, err := k.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			x.log().Warn("an answer that was kept ended early", zap.Error(err))
			panic(http.ErrAbortHandler) // so that the client sees that it is not whole
		}
		if _, err := (sender{x}).Write(piece); err != nil {
			x.gone(err)
			return nil
		}
	}
	for name, values := range k.Trailer {
		h[name] = values
	}
	return nil
}

// Interface guard
var _ interface{ Unwrap() http.ResponseWriter } = (*recorder)(nil)
