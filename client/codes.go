// SPDX-License-Identifier: Apache-2.0

package client

import "net/http"

// Code is what a gateway calls an error, or the end of a task. It is a target of
// [errors.Is]: errors.Is(err, client.CodeTaskEnded). A gateway may have more codes than
// there are constants here.
type Code string

// Error implements error: a code is a target of [errors.Is].
func (c Code) Error() string { return string(c) }

// The codes of a gateway's errors.
const (
	CodeInvalidRequest        Code = "invalid_request_error" // a body, or a value in it, of a wrong form
	CodeModelRequired         Code = "model_required"
	CodePromptRequired        Code = "prompt_required"
	CodeUnsupportedPromptType Code = "unsupported_prompt_type" // a prompt or a part of it that is no text
	CodeUnsupportedParameter  Code = "unsupported_parameter"   // a field asks for what agents cannot do
	CodeContextLength         Code = "context_length_exceeded" // the prompt is larger than any agent takes that matches
	CodeURLNotAllowed         Code = "url_not_allowed"         // no webhook is sent there
	CodeMethodNotAllowed      Code = "method_not_allowed"
	CodeRequestTooLarge       Code = "request_too_large" // the body is over the limit
	CodeBadRequest            Code = "bad_request"       // no hash of an entry
	CodeBadPeerID             Code = "bad_peer_id"
	CodeBadCID                Code = "bad_cid"
	CodeBadRating             Code = "bad_rating"     // beyond -1 to 1
	CodeMissingField          Code = "missing_field"  // a comment without a text
	CodeBodyTooLarge          Code = "body_too_large" // a comment over 10 KiB
	CodeBadSignature          Code = "bad_signature"  // of a comment

	CodeUnauthorized      Code = "unauthorized"                  // no key, or a header of a wrong form
	CodeInvalidAPIKey     Code = "invalid_api_key"               // unknown or expired
	CodeInsufficientScope Code = "insufficient_scope"            // the key may not do this
	CodeNoAuthentication  Code = "authentication_not_configured" // the operator has not decided who may call
	CodeCrossOrigin       Code = "cross_origin_refused"          // a web page that may not call
	CodeForbidden         Code = "forbidden"                     // another handler refused it
	CodeNonSelfSubmitter  Code = "non_self_submitter"            // a comment whose author is not the gateway
	CodeDispatchRefused   Code = "dispatch_refused"              // the worker has a bad reputation

	CodeModelNotFound   Code = "model_not_found"
	CodeWorkerNotFound  Code = "worker_not_found"
	CodeTaskNotFound    Code = "task_not_found" // or a task without files, or one of another key
	CodeCommentNotFound Code = "comment_not_found"
	CodeEntryNotFound   Code = "entry_not_found"
	CodeNotFound        Code = "not_found"   // no such path
	CodeUnknownURL      Code = "unknown_url" // the worker does not serve this route

	CodeTaskEnded        Code = "task_ended"      // what shall be cancelled has ended
	CodeTaskCancelled    Code = "task_cancelled"  // while its client waited
	CodeOutputNotKept    Code = "output_not_kept" // it went to the client that waited for it
	CodeTaskIDInUse      Code = "task_id_in_use"
	CodeOutputRestarted  Code = "output_restarted" // that output was of an attempt that is lost
	CodeOutputExpired    Code = "output_expired"
	CodeArtifactsExpired Code = "artifacts_expired"

	CodeWebhookNotFound Code = "webhook_not_found" // the task has none
	CodeWebhookPending  Code = "webhook_pending"   // it is to be delivered anyway

	CodeIdempotencyKeyInvalid Code = "idempotency_key_invalid"
	CodeIdempotencyKeyInUse   Code = "idempotency_key_in_use"      // the first request is being served
	CodeIdempotencyKeyReused  Code = "idempotency_key_reused"      // with another request
	CodeIdempotencyNoAnswer   Code = "idempotency_answer_not_kept" // the first request was begun; its answer is lost

	CodeRateLimited       Code = "rate_limited"        // wrong keys, or too many streams
	CodeRateLimitExceeded Code = "rate_limit_exceeded" // too many requests wait

	CodeInternal             Code = "internal_error"
	CodeWorkerUnreachable    Code = "worker_unreachable"
	CodeWorkerStreamFailed   Code = "worker_stream_failed"     // the agent or its worker failed
	CodeNoWorkerOnline       Code = "no_worker_online"         // there were some within five minutes
	CodeMeshOverloaded       Code = "mesh_overloaded"          // all that match are full
	CodeAsyncCapacity        Code = "async_capacity_exhausted" // as many tasks wait as may
	CodeTaskStoreUnavailable Code = "task_store_unavailable"   // its disk may be full
	CodeLedgerUnavailable    Code = "ledger_unavailable"
	CodeCommentsUnavailable  Code = "comments_unavailable"
	CodeArtifactTooLarge     Code = "artifact_too_large"    // the files of the agent
	CodeArtifactStorageFull  Code = "artifact_storage_full" // of the gateway
)

// Why a task has failed, as [Task.Reason] has it, beside codes of errors.
const (
	ReasonCancelled        Code = "cancelled"         // somebody cancelled it
	ReasonClientGone       Code = "client_gone"       // who waited for it went away
	ReasonQueueTimeout     Code = "queue_timeout"     // no worker took it in time
	ReasonTimeout          Code = "timeout"           // it did not end in its time
	ReasonAttemptsLost     Code = "attempts_lost"     // it was begun and broken off too often
	ReasonExitCode         Code = "exit_code"         // the agent ended with another than 0
	ReasonEmpty            Code = "empty"             // the agent said nothing and left no files
	ReasonSignal           Code = "signal"            // the agent was killed
	ReasonOOMKilled        Code = "oom_killed"        // the agent took more memory than it may
	ReasonDeadline         Code = "deadline"          // the agent took longer than it may
	ReasonOutputLimit      Code = "output_limit"      // the agent said more than it may
	ReasonImageUnavailable Code = "image_unavailable" // the worker has no image
	ReasonDigestMismatch   Code = "digest_mismatch"   // the image is not the one that was announced
	ReasonRuntimeError     Code = "runtime_error"     // the worker could not run the agent
	ReasonOutputTooLarge   Code = "output_too_large"  // the gateway keeps no more
	ReasonNotAccepted      Code = "not_accepted"      // the gateway ended before it took it
	ReasonGatewayStopped   Code = "gateway_stopped"   // the gateway ended while the task ran
)

// kinds are the kinds of errors that have a code of their own. Of others, the status
// decides.
var kinds = map[Code]Kind{
	CodeInvalidAPIKey:   ErrAuthentication,
	CodeDispatchRefused: ErrDispatchRefused,

	CodeModelNotFound:  ErrModelNotFound,
	CodeWorkerNotFound: ErrWorkerNotFound,

	CodeInternal:           ErrInternal,
	CodeWorkerUnreachable:  ErrWorkerUnreachable,
	CodeWorkerStreamFailed: ErrWorkerStream,
	CodeMeshOverloaded:     ErrMeshOverloaded,
	CodeNoWorkerOnline:     ErrMeshOverloaded,
	CodeRateLimitExceeded:  ErrRateLimited, // also in a stream, which has no status
	CodeContextLength:      ErrInvalidRequest,
	CodeTaskIDInUse:        ErrConflict,
	CodeArtifactTooLarge:   ErrArtifact,

	CodeIdempotencyKeyReused: ErrConflict,
}

// kindOf returns the kind of an error that a gateway answers with.
func kindOf(status int, code Code) Kind {
	if kind, ok := kinds[code]; ok {
		return kind
	}
	switch status {
	case http.StatusUnauthorized:
		if code == CodeBadSignature { // of a comment
			return ErrInvalidRequest
		}
		return ErrAuthentication
	case http.StatusForbidden:
		return ErrPermission
	case http.StatusNotFound:
		return ErrNotFound
	case http.StatusConflict:
		return ErrConflict
	case http.StatusGone:
		return ErrExpired
	case http.StatusTooManyRequests:
		return ErrRateLimited
	case http.StatusServiceUnavailable:
		return ErrUnavailable
	case http.StatusBadGateway, http.StatusGatewayTimeout: // of a proxy before the gateway
		return ErrConnection
	}
	switch {
	case code == CodeArtifactStorageFull: // when the agent has ended
		return ErrArtifact
	case status >= 500:
		return ErrInternal
	case status >= 400:
		return ErrInvalidRequest
	case status == 0: // in a stream
		return ErrWorkerStream
	}
	return ErrProtocol
}
