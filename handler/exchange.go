// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/Agent-FM/caddy-agentfm/handler/auth"
	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// writeTimeout is how long one write of an answer may take: who does not read
// must not hold a worker. The server's own limit, which is Caddy's write, makes
// it shorter.
const writeTimeout = 30 * time.Second

// exchange is one request and its answer.
type exchange struct {
	h      *Handler
	w      http.ResponseWriter
	r      *http.Request
	rc     *http.ResponseController
	repl   *caddy.Replacer // nil outside of Caddy
	id     string          // of the request
	begun  time.Time
	param  string      // in the path
	lease  lease       // once the mesh is in use
	task   mesh.Served // once a worker serves it
	keeper string      // of the previous response, when this one goes on from it

	identity *auth.Identity // of the client, once it is admitted

	status int         // of the answer, once it begins
	seen   observation // for the metrics
	work   keyedWork   // where the request has an Idempotency-Key

	writeLimit time.Duration // of each write
	limited    time.Time     // when the deadline for writing was set; zero when there is none
}

// newExchange begins an exchange.
func newExchange(h *Handler, w http.ResponseWriter, r *http.Request) *exchange {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails: see crypto/rand
	x := &exchange{
		h: h, w: w, r: r,
		rc:   http.NewResponseController(w),
		repl: replacer(r),
		id:   hex.EncodeToString(id[:]),

		begun:      time.Now(),
		writeLimit: writeTimeout,
	}
	if srv := server(r); srv != nil && srv.WriteTimeout > 0 {
		x.writeLimit = min(writeTimeout, srv.WriteTimeout)
	}
	header := w.Header()
	header["X-Request-Id"] = []string{x.id}
	header["X-Content-Type-Options"] = []string{"nosniff"}
	x.limitBodyTime()
	// An agent may be silent for longer than the server's limit on writes, at the
	// end of which HTTP/2 resets the stream. Each write gets one; see [sender].
	_ = x.rc.SetWriteDeadline(time.Time{})
	return x
}

// takeLease gives the exchange access to the mesh, until its end.
func (x *exchange) takeLease() (lease, error) {
	if x.lease != nil {
		return x.lease, nil
	}
	l, err := x.h.gateway.Lease()
	if err != nil {
		return nil, err
	}
	x.lease = l
	return l, nil
}

// release ends what the exchange holds.
func (x *exchange) release() {
	if x.lease != nil {
		x.lease.Release()
	}
	x.lift()
}

// limit gives the next write its time, or almost: not every one sets the deadline anew.
func (x *exchange) limit() {
	now := time.Now()
	if x.limited.IsZero() || now.Sub(x.limited) > x.writeLimit/8 {
		_ = x.rc.SetWriteDeadline(now.Add(x.writeLimit))
		x.limited = now
	}
}

// lift ends the limit.
func (x *exchange) lift() {
	if !x.limited.IsZero() {
		x.limited = time.Time{}
		_ = x.rc.SetWriteDeadline(time.Time{})
	}
}

// log returns the logger for this exchange.
func (x *exchange) log() *zap.Logger {
	logger := x.h.logger.With(zap.String("request_id", x.id))
	if x.task.Peer == "" {
		return logger
	}
	return logger.With(zap.String("peer", x.task.Peer), zap.String("task", x.task.TaskID))
}

// encode returns the JSON of an answer. A worker's text that is not UTF-8 does
// not make it fail.
func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v, jsontext.AllowInvalidUTF8(true))
	if err != nil {
		return nil, fmt.Errorf("encoding answer: %w", err)
	}
	return b, nil
}

// answer writes a whole answer of JSON. When the client is gone there is nobody
// to tell.
func (x *exchange) answer(status int, body []byte) { x.answerAs("application/json", status, body) }

// answerAs is answer with another kind of body.
func (x *exchange) answerAs(contentType string, status int, body []byte) {
	h := x.w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	x.writeHeader(status)
	for len(body) > 0 { // in pieces, so that a slow client has time for each
		n := min(len(body), 64<<10)
		if _, err := (sender{x}).Write(body[:n]); err != nil {
			return
		}
		body = body[n:]
	}
}

// writeHeader sends the status and the headers, and how long they took: clients
// of OpenAI's look for that.
func (x *exchange) writeHeader(status int) {
	x.w.Header().Set("Openai-Processing-Ms", strconv.FormatInt(time.Since(x.begun).Milliseconds(), 10))
	x.status = status
	x.w.WriteHeader(status)
}

// begin starts an answer of status 200 that is sent as it comes.
func (x *exchange) begin(contentType string) sender {
	h := x.w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Accel-Buffering", "no") // for an nginx before us
	x.writeHeader(http.StatusOK)
	return sender{x}
}

// sender writes an answer. What is written is sent at once.
type sender struct{ x *exchange }

// Write sends p, and gives that its time. Beyond HTTP/1 the limit does not outlast
// the write: agents are silent for long, and HTTP/2 would reset the stream. Where
// there are no limits to set, the server's own hold.
func (s sender) Write(p []byte) (int, error) {
	s.x.limit()
	n, err := s.x.w.Write(p)
	if err == nil {
		err = s.x.rc.Flush()
	}
	if s.x.r.ProtoMajor != 1 {
		s.x.lift()
	}
	if errors.Is(err, http.ErrNotSupported) {
		err = nil
	}
	return n, err
}

// served says in headers, in placeholders and in the access log who serves the
// task. Of several tasks it is the first.
func (x *exchange) served(s mesh.Served) {
	first := x.task.Peer == ""
	x.task = s
	values := [...]string{s.Peer, headerText(s.Agent), s.TaskID, s.Tier.String(), strconv.Itoa(s.Attempts), strconv.FormatInt(s.Queued.Milliseconds(), 10)}
	h := x.w.Header()
	for i, name := range servedHeaders {
		h[name] = values[i : i+1 : i+1]
	}
	if fields := x.logFields(); fields != nil {
		fields.Set(zap.Object("agentfm", servedFields(s)))
	}
	if first && x.repl != nil {
		x.repl.Map(x.placeholder)
	}
}

// logFields returns the fields of the access log; nil where there is none.
func (x *exchange) logFields() *caddyhttp.ExtraLogFields {
	ctx := x.r.Context()
	if srv, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok && srv != nil && srv.Logs == nil {
		return nil
	}
	fields, _ := ctx.Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields)
	return fields
}

// servedHeaders say who serves, spelled as Go has them.
var servedHeaders = [...]string{
	"X-Agentfm-Peer", "X-Agentfm-Agent", "X-Agentfm-Task", "X-Agentfm-Tier", "X-Agentfm-Attempts", "X-Agentfm-Queue-Ms",
}

// servedFields says in a log who serves.
type servedFields mesh.Served

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (s servedFields) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("peer", s.Peer)
	enc.AddString("agent", s.Agent)
	enc.AddString("model", s.Model)
	enc.AddString("task", s.TaskID)
	enc.AddString("tier", s.Tier.String())
	enc.AddInt("attempts", s.Attempts)
	enc.AddInt64("queue_ms", s.Queued.Milliseconds())
	return nil
}

// placeholder returns the value of a placeholder that says who serves.
func (x *exchange) placeholder(key string) (any, bool) {
	name, ok := strings.CutPrefix(key, "http.agentfm.")
	if !ok {
		return nil, false
	}
	switch name {
	case "peer":
		return x.task.Peer, true
	case "agent":
		return x.task.Agent, true
	case "model":
		return x.task.Model, true
	case "task":
		return x.task.TaskID, true
	case "tier":
		return x.task.Tier.String(), true
	case "attempts":
		return x.task.Attempts, true
	case "queue_ms":
		return x.task.Queued.Milliseconds(), true
	}
	return nil, false
}

// attempted says of an error of a dispatch whose failure it is, when nobody served.
func (x *exchange) attempted(err error) {
	if a, ok := errors.AsType[*mesh.AttemptError](err); ok && x.task.Peer == "" {
		x.served(a.Served)
	}
}

// headerText makes a stranger's text fit for a header: every byte that is not
// printable ASCII, and the percent sign, becomes percent and two hex digits.
func headerText(s string) string {
	escaped := func(r rune) bool { return r < ' ' || r > '~' || r == '%' }
	if !strings.ContainsFunc(s, escaped) {
		return s
	}
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; escaped(rune(c)) {
			fmt.Fprintf(&b, "%%%02X", c)
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
