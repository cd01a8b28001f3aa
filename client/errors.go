// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode"
)

// Error is every error of this package. Test it with [errors.Is] and a [Kind] or a [Code],
// or take it with [errors.As].
type Error struct {
	// Kind is what sort of error it is.
	Kind Kind
	// Status is the HTTP status of the answer; 0 where there was none.
	Status int
	// Code is what the gateway calls the error; empty where it is not the gateway's.
	Code Code
	// Message is for people.
	Message string
	// Param names the field of the request that is at fault; empty where none is.
	Param string
	// Cause is one word on why an agent failed, such as "oom_killed"; empty where the
	// worker does not say.
	Cause string
	// RequestID is that of the answer. The gateway's log has it, too.
	RequestID string
	// RetryAfter is how long the gateway asks to wait; 0 where it does not.
	RetryAfter time.Duration
	// Err is what the error is made of, such as that of a context; it may be nil.
	Err error

	final bool // to send the request again helps nothing, or the gateway asks not to
}

// Kind is what sort of error an [Error] is. It is a target of [errors.Is].
type Kind string

// The kinds of errors. Every error has one.
const (
	// ErrAuthentication: the key is missing, unknown or expired.
	ErrAuthentication Kind = "authentication"
	// ErrPermission: the key, or the web page, may not do this.
	ErrPermission Kind = "permission"
	// ErrConnection: the gateway cannot be reached, does not answer in time, or the
	// connection broke.
	ErrConnection Kind = "connection"
	// ErrInternal: a fault of the gateway.
	ErrInternal Kind = "internal"
	// ErrProtocol: the answer is not one that a gateway gives.
	ErrProtocol Kind = "protocol"
	// ErrInvalidRequest: the request is wrong in itself. Where Status is 0, it was not sent.
	ErrInvalidRequest Kind = "invalid_request"
	// ErrWorkerNotFound: no worker of that peer id is online, or the key may not use it.
	ErrWorkerNotFound Kind = "worker_not_found"
	// ErrWorkerUnreachable: the worker is online, and the gateway cannot reach it.
	ErrWorkerUnreachable Kind = "worker_unreachable"
	// ErrWorkerStream: the agent or its worker failed.
	ErrWorkerStream Kind = "worker_stream"
	// ErrDispatchRefused: the gateway does not trust the worker.
	ErrDispatchRefused Kind = "dispatch_refused"
	// ErrModelNotFound: nobody goes by the name of the model.
	ErrModelNotFound Kind = "model_not_found"
	// ErrMeshOverloaded: every worker that matches is full, or away for the moment.
	ErrMeshOverloaded Kind = "mesh_overloaded"
	// ErrRateLimited: too many requests of this client.
	ErrRateLimited Kind = "rate_limited"
	// ErrUnavailable: the gateway cannot do this now, or has not been set up for it.
	ErrUnavailable Kind = "unavailable"
	// ErrNotFound: there is no such task, entry, comment or path.
	ErrNotFound Kind = "not_found"
	// ErrConflict: the request does not go with the state that the task is in.
	ErrConflict Kind = "conflict"
	// ErrExpired: it was there, and is not kept any more.
	ErrExpired Kind = "expired"
	// ErrTaskFailed: the task has ended and not well; see [Task.Err].
	ErrTaskFailed Kind = "task_failed"
	// ErrArtifact: the files of a task cannot be had or unpacked: they are damaged, too
	// large, or want to be where they must not.
	ErrArtifact Kind = "artifact"
	// ErrProof: a proof does not prove what it should.
	ErrProof Kind = "proof"
	// ErrGateway: a local gateway cannot be started; see the package localgateway.
	ErrGateway Kind = "gateway"
	// ErrContext: the context ended first. Its error is wrapped, and so is its cause:
	// [errors.Is] finds [context.Canceled] and [context.DeadlineExceeded].
	ErrContext Kind = "context"
)

// Error implements error: a kind is a target of [errors.Is].
func (k Kind) Error() string { return strings.ReplaceAll(string(k), "_", " ") }

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("agentfm: ")
	b.WriteString(printable(e.Message))
	var notes []string
	if e.Code != "" {
		notes = append(notes, printable(string(e.Code)))
	}
	if e.Status != 0 {
		notes = append(notes, fmt.Sprintf("status %d", e.Status))
	}
	if e.RequestID != "" {
		notes = append(notes, "request "+printable(e.RequestID))
	}
	if len(notes) > 0 {
		fmt.Fprintf(&b, " (%s)", strings.Join(notes, ", "))
	}
	return b.String()
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether the target is the error's [Kind] or [Code].
func (e *Error) Is(target error) bool {
	switch target := target.(type) {
	case Kind:
		return e.Kind == target
	case Code:
		return e.Code == target && target != ""
	}
	return false
}

// maxText bounds what errors keep of a text from outside, in bytes.
const maxText = 1 << 10

// printable makes a stranger's text fit for a line of a log or a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

// invalid is the error for what is not sent because it is wrong.
func invalid(param, format string, args ...any) *Error {
	return &Error{Kind: ErrInvalidRequest, Param: param, Message: fmt.Sprintf(format, args...)}
}

// protocolError is the error for an answer that is none of a gateway.
func protocolError(err error, format string, args ...any) *Error {
	message := fmt.Sprintf(format, args...)
	if err != nil {
		message += ": " + err.Error()
	}
	return &Error{Kind: ErrProtocol, Message: message, Err: err}
}

// artifactError is the error for files that cannot be had or unpacked.
func artifactError(err error, doing string) *Error {
	return &Error{Kind: ErrArtifact, Message: doing + ": " + err.Error(), Err: err}
}

// filesError is the error for files of a task that has ended well; nil for nil. It says what
// the one of the client does that it wraps.
func filesError(err error) error {
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Kind == ErrArtifact {
		return err
	}
	files := *e
	files.Kind, files.Err = ErrArtifact, e
	return &files
}

// transportError makes an [*Error] of one of the transport. What was being done is for the
// message.
func transportError(ctx context.Context, err error, doing string) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if ended := ctx.Err(); ended != nil {
		if cause := context.Cause(ctx); cause != ended {
			if e, ok := errors.AsType[*Error](cause); ok {
				return e
			}
			ended = fmt.Errorf("%w: %w", ended, cause)
		}
		return &Error{Kind: ErrContext, Message: doing + ": " + ended.Error(), Err: ended}
	}
	if e, ok := errors.AsType[*url.Error](err); ok { // it says the URL again
		err = e.Err
	}
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err) // and will be the next time
	return &Error{Kind: ErrConnection, Message: doing + ": " + err.Error(), Err: err, final: untrusted}
}
