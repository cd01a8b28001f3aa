// SPDX-License-Identifier: Apache-2.0

package client

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// EnvWebhookSecret is the environment variable with the secret of handlers that are not
// given one; a gateway reads it, too.
const EnvWebhookSecret = "AGENTFM_WEBHOOK_SECRET"

// Limits of what a [WebhookHandler] takes.
const (
	// MaxWebhook is the largest body, in bytes.
	MaxWebhook = 64 << 10
	// MaxWebhookAge is how far the time of a signature may be from now: an older message is
	// one that somebody sends again.
	MaxWebhookAge = 5 * time.Minute
)

// WebhookPayload is what a gateway says of the end of a task.
type WebhookPayload struct {
	TaskID   string `json:"task_id"`
	WorkerID string `json:"worker_id"`
	// Status is [TaskCompleted] or [TaskFailed].
	Status TaskStatus `json:"status"`
	// Type is "task.completed", "task.failed" or "task.cancelled"; a gateway of AgentFM
	// does not say.
	Type   string `json:"type,omitzero"`
	Reason Code   `json:"reason,omitzero"`
	// DurationSeconds is from the submission to the end.
	DurationSeconds float64 `json:"duration_seconds,omitzero"`
	// ArtifactsURL is where the files are; empty where there are none. Fetch them with
	// [TaskService.Artifacts].
	ArtifactsURL string `json:"artifacts_url,omitzero"`
	// ID is that of the message, which is the same however often it is sent; empty where
	// the gateway does not say. It can be trusted only where Signed is [StandardSignature].
	ID string `json:"-"`
	// Signed says which signature was checked.
	Signed Signature `json:"-"`
}

// Signature is a way of signing a webhook.
type Signature string

// The ways of signing.
const (
	// NoSignature: the handler has no secret.
	NoSignature Signature = ""
	// HMACSignature: X-AgentFM-Signature, which says nothing of when it was made.
	HMACSignature Signature = "hmac"
	// StandardSignature: webhook-signature of Standard Webhooks.
	StandardSignature Signature = "standard"
)

// WebhookHandler receives webhooks. It is an [http.Handler] for one path, and answers 204
// to a message that it has handed over. A gateway sends a message again until it is
// answered like that: Callback may see one twice.
type WebhookHandler struct {
	// Secrets are those that a gateway may sign with, such as the old one and the new. A
	// message must then be signed with one of them. A handler without any takes the secret
	// in the environment variable [EnvWebhookSecret].
	Secrets []string
	// AllowUnsigned takes every message when there is no secret at all. Without it, a
	// handler without a secret refuses all.
	AllowUnsigned bool
	// RequireStandard takes no message without a signature of Standard Webhooks, so that
	// none can be sent again later.
	RequireStandard bool
	// Callback is given each message; it may be called by several goroutines. The answer is
	// sent after it, and a gateway waits 15 seconds. After an error the answer is 500, and
	// the gateway comes back.
	Callback func(r *http.Request, p WebhookPayload) error

	now func() time.Time // nil is time.Now
}

// ServeHTTP implements http.Handler.
func (h *WebhookHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	status, text := h.receive(w, r)
	if status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", http.MethodPost)
	}
	if text == "" {
		w.WriteHeader(status)
		return
	}
	http.Error(w, text, status)
}

// receive handles a request and returns the answer.
func (h *WebhookHandler) receive(w http.ResponseWriter, r *http.Request) (status int, text string) {
	if r.Method != http.MethodPost {
		return http.StatusMethodNotAllowed, "only POST is allowed"
	}
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != "application/json" {
		return http.StatusUnsupportedMediaType, "the content type must be application/json"
	}
	if r.Header.Get("Content-Encoding") != "" {
		return http.StatusUnsupportedMediaType, "the body must not be compressed"
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxWebhook))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return http.StatusRequestEntityTooLarge, "the body is too large"
		}
		return http.StatusBadRequest, "the body cannot be read"
	}
	signed, ok := h.verify(r.Header, body)
	if !ok {
		return http.StatusUnauthorized, "the signature is missing, wrong or too old"
	}
	var p WebhookPayload
	if err := decode(body, &p, ""); err != nil || !validTaskID(p.TaskID) || p.Status == "" {
		return http.StatusBadRequest, "the body is not that of a webhook"
	}
	p.ID, p.Signed = r.Header.Get("Webhook-Id"), signed
	if h.Callback != nil {
		if err := h.Callback(r, p); err != nil {
			return http.StatusInternalServerError, "the message could not be handled"
		}
	}
	return http.StatusNoContent, ""
}

// secrets returns the secrets; an empty one is none.
func (h *WebhookHandler) secrets() []string {
	var secrets []string
	for _, s := range h.Secrets {
		if s != "" {
			secrets = append(secrets, s)
		}
	}
	if env := os.Getenv(EnvWebhookSecret); len(h.Secrets) == 0 && env != "" {
		secrets = append(secrets, env)
	}
	return secrets
}

// verify checks the signature. When a message has both, that of Standard Webhooks counts.
func (h *WebhookHandler) verify(header http.Header, body []byte) (Signature, bool) {
	secrets := h.secrets()
	if len(secrets) == 0 {
		return NoSignature, h.AllowUnsigned && !h.RequireStandard
	}
	if header.Get("Webhook-Signature") != "" {
		return StandardSignature, h.verifyStandard(header, body, secrets)
	}
	if h.RequireStandard {
		return NoSignature, false
	}
	got, err := hex.DecodeString(header.Get("X-AgentFM-Signature"))
	good := false
	for _, s := range secrets {
		good = hmac.Equal(sum([]byte(s), body), got) || good
	}
	return HMACSignature, good && err == nil
}

// verifyStandard checks a signature of Standard Webhooks.
func (h *WebhookHandler) verifyStandard(header http.Header, body []byte, secrets []string) bool {
	now := time.Now
	if h.now != nil {
		now = h.now
	}
	id, stamp := header.Get("Webhook-Id"), header.Get("Webhook-Timestamp")
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || id == "" {
		return false
	}
	if age := now().Sub(time.Unix(seconds, 0)); age > MaxWebhookAge || age < -MaxWebhookAge {
		return false
	}
	good := false
	for _, s := range secrets {
		want := sum(standardKey(s), []byte(id+"."+stamp+"."), body)
		for _, signature := range strings.Fields(header.Get("Webhook-Signature")) {
			coded, ok := strings.CutPrefix(signature, "v1,")
			got, err := base64.StdEncoding.DecodeString(coded)
			good = ok && err == nil && hmac.Equal(want, got) || good
		}
	}
	return good
}

// standardKey returns the key that a secret is for Standard Webhooks.
func standardKey(secret string) []byte {
	if coded, ok := strings.CutPrefix(secret, "whsec_"); ok {
		if key, err := base64.StdEncoding.DecodeString(coded); err == nil {
			return key
		}
	}
	return []byte(secret)
}

// sum returns the HMAC-SHA256 of the parts, one after the other.
func sum(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}
