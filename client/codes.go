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
	CodeInvalidRequest        Code = "invalid_request_error"
	CodeModelRequired         Code = "model_required"
	CodePromptRequired        Code = "prompt_required"
	CodeUnsupportedPromptType Code = "unsupported_prompt_type"
	CodeUnsupportedParameter  Code = "unsupported_parameter"
	CodeContextLength         Code = "context_length_exceeded"
	CodeURLNotAllowed         Code = "url_not_allowed"
	CodeMethodNotAllowed      Code = "method_not_allowed"
	CodeRequestTooLarge       Code = "request_too_large"
	CodeBadRequest            Code = "bad_request"
	CodeBadPeerID             Code = "bad_peer_id"
	CodeBadCID                Code = "bad_cid"
	CodeBadRating             Code = "bad_rating"
	CodeMissingField          Code = "missing_field"
	CodeBodyTooLarge          Code = "body_too_large"
	CodeBadSignature          Code = "bad_signature"

	CodeUnauthorized      Code = "unauthorized"
	CodeInvalidAPIKey     Code = "invalid_api_key"
	CodeInsufficientScope Code = "insufficient_scope"
	CodeNoAuthentication  Code = "authentication_not_configured"
	CodeCrossOrigin       Code = "cross_origin_refused"
	CodeForbidden         Code = "forbidden"
	CodeNonSelfSubmitter  Code = "non_self_submitter"
	CodeDispatchRefused   Code = "dispatch_refused"

	CodeModelNotFound   Code = "model_not_found"
	CodeWorkerNotFound  Code = "worker_not_found"
	CodeTaskNotFound    Code = "task_not_found"
	CodeCommentNotFound Code = "comment_not_found"
	CodeEntryNotFound   Code = "entry_not_found"
	CodeNotFound        Code = "not_found"
	CodeUnknownURL      Code = "unknown_url"

	CodeTaskEnded        Code = "task_ended"
	CodeTaskCancelled    Code = "task_cancelled"
	CodeOutputNotKept    Code = "output_not_kept"
	CodeTaskIDInUse      Code = "task_id_in_use"
	CodeOutputRestarted  Code = "output_restarted"
	CodeOutputExpired    Code = "output_expired"
	CodeArtifactsExpired Code = "artifacts_expired"

	CodeWebhookNotFound Code = "webhook_not_found"
	CodeWebhookPending  Code = "webhook_pending"

	CodeIdempotencyKeyInvalid Code = "idempotency_key_invalid"
	CodeIdempotencyKeyInUse   Code = "idempotency_key_in_use"
	CodeIdempotencyKeyReused  Code = "idempotency_key_reused"
	CodeIdempotencyNoAnswer   Code = "idempotency_answer_not_kept"

	CodeRateLimited       Code = "rate_limited"
	CodeRateLimitExceeded Code = "rate_limit_exceeded"

	CodeInternal             Code = "internal_error"
	CodeWorkerUnreachable    Code = "worker_unreachable"
	CodeWorkerStreamFailed   Code = "worker_stream_failed"
	CodeNoWorkerOnline       Code = "no_worker_online"
	CodeMeshOverloaded       Code = "mesh_overloaded"
	CodeAsyncCapacity        Code = "async_capacity_exhausted"
	CodeTaskStoreUnavailable Code = "task_store_unavailable"
	CodeLedgerUnavailable    Code = "ledger_unavailable"
	CodeCommentsUnavailable  Code = "comments_unavailable"
	CodeArtifactTooLarge     Code = "artifact_too_large"
	CodeArtifactStorageFull  Code = "artifact_storage_full"
)

// Why a task has failed, as [Task.Reason] has it, beside codes of errors.
const (
	ReasonCancelled        Code = "cancelled"
	ReasonClientGone       Code = "client_gone"
	ReasonQueueTimeout     Code = "queue_timeout"
	ReasonTimeout          Code = "timeout"
	ReasonAttemptsLost     Code = "attempts_lost"
	ReasonExitCode         Code = "exit_code"
	ReasonEmpty            Code = "empty"
	ReasonSignal           Code = "signal"
	ReasonOOMKilled        Code = "oom_killed"
	ReasonDeadline         Code = "deadline"
	ReasonOutputLimit      Code = "output_limit"
	ReasonImageUnavailable Code = "image_unavailable"
	ReasonDigestMismatch   Code = "digest_mismatch"
	ReasonRuntimeError     Code = "runtime_error"
	ReasonOutputTooLarge   Code = "output_too_large"
	ReasonNotAccepted      Code = "not_accepted"
	ReasonGatewayStopped   Code = "gateway_stopped"
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
