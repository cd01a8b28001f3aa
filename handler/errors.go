// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"strings"
	"unicode"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/Agent-FM/caddy-agentfm/handler/auth"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/openai"
	"github.com/Agent-FM/caddy-agentfm/router"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// codeRateLimit is the code of requests that come too often. That of failed logins
// is another.
const codeRateLimit = "rate_limit_exceeded"

// codeNoRoom says that there is no room for files. There may be some in roomRetryAfter
// seconds.
const (
	codeNoRoom     = "artifact_storage_full"
	roomRetryAfter = 5
)

// queueRetryAfter is when a request may come again that found no place in the
// queue, in seconds.
const queueRetryAfter = 2

// maxRetryAfter is the longest time that an answer asks a client to wait, in seconds.
// After more than that openai-node does not wait, but comes back within 8 s; over
// 120 s, openai-python does not try again at all.
const maxRetryAfter = 60

// statusClientGone is what the access log says of a request whose client did not
// wait for the answer.
const statusClientGone = 499

// problem is an error with its answer.
type problem struct {
	status  int
	code    string
	message string
	param   string
	// retryAfter is in seconds; 0 for none.
	retryAfter int
	// challenge is the header WWW-Authenticate; empty for none.
	challenge string
	// final says that a client must not send the request again by itself: an
	// agent has run, and would run a second time.
	final bool
	// ended is why an agent failed, where its worker says.
	ended wire.Cause
	// cause is for the log.
	cause error
}

// Error implements error.
func (p *problem) Error() string { return p.message }

// openAI returns the problem as clients see it.
func (p *problem) openAI() *openai.Error {
	kind := openai.TypeInvalidRequest
	if p.status >= 500 {
		kind = openai.TypeServer
	}
	return &openai.Error{Message: p.message, Type: kind, Code: p.code, Param: p.param, Cause: string(p.ended)}
}

// Errors of access and routing.
var (
	errExposed = &problem{status: http.StatusForbidden, code: "authentication_not_configured",
		message: "nothing authenticates the clients of this gateway, so it serves only this machine, by the name localhost or a " +
			"loopback address; its operator can set api_keys, put an authentication handler before it, or set allow_unauthenticated"}
	errCrossOrigin = &problem{status: http.StatusForbidden, code: "cross_origin_refused",
		message: "calls from web pages of this origin are not allowed"}
	errNotFound = &problem{status: http.StatusNotFound, code: "not_found", message: "there is nothing at this path; GET /v1/models and POST /v1/chat/completions are where to begin"}
	errMethod   = &problem{status: http.StatusMethodNotAllowed, code: "method_not_allowed",
		message: "this path does not take this method; see the header Allow"}
)

// badRequest is the error for a request that is malformed.
func badRequest(param, format string, args ...any) *problem {
	return &problem{status: http.StatusBadRequest, code: openai.CodeInvalidRequest, param: param, message: fmt.Sprintf(format, args...)}
}

// tooLarge is the error for a body over limit bytes.
func tooLarge(limit int64) *problem {
	return &problem{status: http.StatusRequestEntityTooLarge, code: "request_too_large",
		message: fmt.Sprintf("the body is over %d bytes", limit)}
}

// streamFailed is the error for a task that a worker began and did not end well.
func streamFailed(cause error, message string) *problem {
	return &problem{status: http.StatusBadGateway, code: "worker_stream_failed", final: true, message: message, cause: cause}
}

// overloaded is the error for a gateway that has no room for an answer.
func overloaded(message string) *problem {
	return &problem{status: http.StatusServiceUnavailable, code: "mesh_overloaded", retryAfter: 1, message: message}
}

// problemOf maps an error to its answer. What a dispatch returns has been
// through [exchange.taskProblem] already, where it needs to know the task.
func problemOf(err error) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	if e, ok := errors.AsType[*auth.Error](err); ok {
		return &problem{status: e.Status, code: e.Code, message: e.Message, retryAfter: e.RetryAfter, challenge: e.Challenge}
	}
	if e, ok := errors.AsType[*openai.Error](err); ok {
		return &problem{status: http.StatusBadRequest, code: e.Code, message: e.Message, param: e.Param}
	}
	is := func(target error) bool { return errors.Is(err, target) }
	switch {
	case is(mesh.ErrNotRunning):
		return &problem{status: http.StatusServiceUnavailable, code: "mesh_overloaded", retryAfter: 1, message: "the gateway is starting", cause: err}
	case is(tasks.ErrCancelled):
		return &problem{status: http.StatusConflict, code: "task_cancelled", final: true, message: "the task was cancelled", cause: err}
	case is(mesh.ErrTaskID):
		return &problem{status: http.StatusConflict, code: "task_id_in_use", param: "task_id", final: true,
			message: "a task of this id runs, or has left files; choose another, or leave it out"}
	case is(router.ErrBusy), is(wire.ErrCapacity):
		return &problem{status: http.StatusServiceUnavailable, code: "mesh_overloaded", retryAfter: 1,
			message: "every worker that matches is at capacity", cause: err}
	case is(router.ErrQueueFull):
		return &problem{status: http.StatusServiceUnavailable, code: "mesh_overloaded", retryAfter: queueRetryAfter,
			message: "every worker that matches is at capacity, and too many requests wait for one already", cause: err}
	case is(router.ErrCrowdedOut):
		return &problem{status: http.StatusTooManyRequests, code: codeRateLimit, retryAfter: queueRetryAfter,
			message: "too many of your requests wait for a worker; others have their turn", cause: err}
	case is(mesh.ErrNoModel): // which went since the worker announced it
		return &problem{status: http.StatusNotFound, code: codeModelNotFound, param: "model", message: reason(err, mesh.ErrNoModel), cause: err}
	case is(wire.ErrRefused): // no agent ran
		p := streamFailed(err, reason(err, wire.ErrRefused))
		p.final = false
		return p
	case is(wire.ErrAgentFailed):
		p := streamFailed(err, reason(err, wire.ErrAgentFailed))
		if e, ok := errors.AsType[*wire.AgentError](err); ok {
			p.ended = e.Cause
		}
		return p
	case is(wire.ErrTruncated):
		return streamFailed(err, "the worker's output ended early")
	case is(mesh.ErrNoRoom):
		return &problem{status: http.StatusInsufficientStorage, code: codeNoRoom, final: true,
			message: "the agent left files, and the gateway has no room for them", cause: err}
	case is(mesh.ErrArtifactSize):
		return &problem{status: http.StatusBadGateway, code: "artifact_too_large", final: true,
			message: "the files that the agent left are larger than the gateway keeps", cause: err}
	case is(mesh.ErrArtifact):
		return streamFailed(err, "the worker announced files and did not deliver them")
	case is(mesh.ErrUnavailable):
		return &problem{status: http.StatusServiceUnavailable, code: "mesh_overloaded", retryAfter: offlineRetryAfter,
			message: "the model server of the worker does not answer it", cause: err}
	case is(mesh.ErrUnreachable):
		return &problem{status: http.StatusBadGateway, code: "worker_unreachable", message: "no matching worker could be reached", cause: err}
	case is(os.ErrDeadlineExceeded), is(context.DeadlineExceeded):
		return streamFailed(err, "the worker took too long")
	case is(mesh.ErrStream):
		return streamFailed(err, "the connection to the worker broke")
	case is(fs.ErrNotExist):
		return &problem{status: http.StatusNotFound, code: "task_not_found", message: "there are no files of this task"}
	}
	return &problem{status: http.StatusInternalServerError, code: "internal_error", message: "internal error", cause: err}
}

// reason returns what err says from the text of one of the errors that it wraps
// onward: what the worker said, and nothing of ours around it.
func reason(err, from error) string {
	text := err.Error()
	if i := strings.Index(text, from.Error()); i >= 0 {
		text = text[i:]
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) { // it may be shown on a terminal
			return ' '
		}
		return r
	}, text)
}

// caddyProblem returns an error of another of Caddy's handlers. What it says is
// not for strangers; the log has it. Whom the provider "agentfm" refused gets the
// answer that this handler would have given.
func (x *exchange) caddyProblem(err error) *problem {
	if s, err := strconv.Atoi(x.w.Header().Get("Retry-After")); err == nil && s > maxRetryAfter {
		x.w.Header().Set("Retry-After", strconv.Itoa(maxRetryAfter)) // a rate limit may have long windows
	}
	status := http.StatusInternalServerError
	if e, ok := errors.AsType[caddyhttp.HandlerError](err); ok && e.StatusCode >= 400 {
		status = e.StatusCode
	}
	if refusal := auth.Refusal(x.r); refusal != nil && status == http.StatusUnauthorized {
		if refusal.Status != status {
			x.w.Header().Del("WWW-Authenticate") // belongs to the status that it was
		}
		return problemOf(refusal)
	}
	code, ok := map[int]string{
		http.StatusUnauthorized:          "unauthorized",
		http.StatusForbidden:             "forbidden",
		http.StatusNotFound:              "not_found",
		http.StatusMethodNotAllowed:      "method_not_allowed",
		http.StatusRequestEntityTooLarge: "request_too_large",
		http.StatusTooManyRequests:       codeRateLimit,
	}[status]
	switch {
	case ok:
	case status < http.StatusInternalServerError:
		code = openai.CodeInvalidRequest
	default:
		code = "internal_error"
	}
	return &problem{status: status, code: code, message: "the request was refused: " + strings.ToLower(http.StatusText(status)), cause: err}
}

// fail answers with an error.
func (x *exchange) fail(err error) {
	x.attempted(err)
	if x.r.Context().Err() != nil {
		x.gone(err)
		x.w.WriteHeader(statusClientGone)
		return
	}
	p := problemOf(err)
	x.logProblem(p)
	h := x.w.Header()
	if p.challenge != "" {
		h.Set("WWW-Authenticate", p.challenge)
	}
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	if p.final {
		h.Set("X-Should-Retry", "false") // the official clients heed it
	}
	if isPage(x.r.URL.Path) {
		x.failPage(p)
		return
	}
	x.answer(p.status, p.openAI().Envelope())
}

// logProblem logs what the operator can do something about.
func (x *exchange) logProblem(p *problem) {
	level := zapcore.DebugLevel
	switch {
	case p.status == http.StatusInternalServerError:
		level = zapcore.ErrorLevel
	case p.status >= 500:
		level = zapcore.WarnLevel
	}
	if c := x.log().Check(level, "request failed"); c != nil {
		c.Write(zap.Int("status", p.status), zap.String("code", p.code), zap.Error(p.cause))
	}
}

// gone notes that the client went away.
func (x *exchange) gone(err error) {
	x.work.left = true
	if c := x.log().Check(zapcore.DebugLevel, "client went away"); c != nil {
		c.Write(zap.Error(err))
	}
}
