// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// WebhookState is how far the delivery of a webhook has come.
type WebhookState string

// The states of a delivery. Only the first has more to come.
const (
	WebhookPending   WebhookState = "pending"
	WebhookDelivered WebhookState = "delivered"
	WebhookGone      WebhookState = "disabled" // the receiver answered with status 410
	WebhookGivenUp   WebhookState = "given_up"
)

// Webhook is who is told of a task's end, and whether that has been done.
type Webhook struct {
	URL  string `json:"url"`
	Base string `json:"base,omitempty"`

	State    WebhookState `json:"state"`
	Attempts int          `json:"attempts"`
	// Status is that of the last answer; 0 where there was none. Error is a code then.
	Status int       `json:"last_status,omitempty"`
	Error  string    `json:"last_error,omitempty"`
	Next   time.Time `json:"next_attempt,omitzero"`
	Last   time.Time `json:"last_attempt,omitzero"`
}

// retryAfter is when each attempt follows the one before, after the first, give or take a
// tenth: 75 hours in all.
var retryAfter = []time.Duration{
	5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
	10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

// maxRetryAfter bounds what a receiver's header Retry-After is followed for.
const maxRetryAfter = 24 * time.Hour

// attempted notes how an attempt went.
func (w *Webhook) attempted(now time.Time, status int, wait time.Duration, err error) {
	w.Attempts++
	w.Status, w.Error, w.Last, w.Next = status, errorCode(err), now, time.Time{}
	switch {
	case err == nil && status >= 200 && status < 300:
		w.State = WebhookDelivered
	case status == http.StatusGone:
		w.State = WebhookGone
	case w.Attempts > len(retryAfter):
		w.State = WebhookGivenUp
	default:
		d := retryAfter[w.Attempts-1]
		d += time.Duration((rand.Float64() - 0.5) / 5 * float64(d))
		w.Next = now.Add(max(d, min(wait, maxRetryAfter)))
	}
}

// errorCode says of an attempt that had no answer why.
func errorCode(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, ErrURL):
		return "url_not_allowed"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "unreachable"
}

// event is the body of a webhook.
type event struct {
	TaskID   string  `json:"task_id"`
	WorkerID string  `json:"worker_id"`
	Status   string  `json:"status"`
	Type     string  `json:"type"`
	Reason   *string `json:"reason"`
	Duration float64 `json:"duration_seconds"`
	Files    *string `json:"artifacts_url"`
}

// body returns what is sent of a task's end. It is the same in each attempt.
func (r *Record) body() ([]byte, error) {
	e := event{
		TaskID: r.ID, WorkerID: r.Worker.Peer, Status: string(Completed), Type: "task." + string(r.State),
		Duration: r.Ended.Sub(r.Created).Seconds(),
	}
	if e.WorkerID == "" { // nobody has run it
		e.WorkerID = r.Target.Worker
	}
	if r.State != Completed { // receivers know two states
		e.Status = string(Failed)
	}
	if r.Reason != "" {
		e.Reason = &r.Reason
	}
	if r.Files {
		url := r.Webhook.Base + "/api/tasks/" + r.ID + "/artifacts"
		e.Files = &url
	}
	return json.Marshal(e)
}

// signer signs webhooks, with both signatures. The zero value does not.
type signer struct {
	secret string
	key    []byte // of Standard Webhooks
}

// whsec begins a secret in the form of Standard Webhooks.
const whsec = "whsec_"

// newSigner returns one for a secret.
func newSigner(secret string) (signer, error) {
	s := signer{secret: secret, key: []byte(secret)}
	if coded, ok := strings.CutPrefix(secret, whsec); ok {
		key, err := base64.StdEncoding.DecodeString(coded)
		if err != nil || len(key) < 24 || len(key) > 64 {
			return s, errSecret
		}
		s.key = key
	}
	return s, nil
}

// sign sets the headers of a webhook.
func (s signer) sign(h http.Header, id string, now time.Time, body []byte) {
	timestamp := strconv.FormatInt(now.Unix(), 10)
	h.Set("Webhook-Id", id)
	h.Set("Webhook-Timestamp", timestamp)
	if s.secret == "" {
		return
	}
	standard := hmac.New(sha256.New, s.key)
	fmt.Fprintf(standard, "%s.%s.%s", id, timestamp, body)
	h.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(standard.Sum(nil)))
	ours := hmac.New(sha256.New, []byte(s.secret))
	ours.Write(body)
	h.Set("X-AgentFM-Signature", hex.EncodeToString(ours.Sum(nil)))
}

// Limits of one attempt.
const (
	postTimeout = 15 * time.Second
	maxAnswer   = 64 << 10
)

// post makes one attempt. wait is what the receiver asks for.
func (p *poster) post(ctx context.Context, r *Record, s signer) (status int, wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, postTimeout)
	defer cancel()
	if err := CheckURL(r.Webhook.URL); err != nil {
		return 0, 0, err
	}
	body, err := r.body()
	if err != nil {
		return 0, 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Webhook.URL, strings.NewReader(string(body)))
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %w", ErrURL, err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "caddy-agentfm")
	s.sign(req.Header, "msg_"+r.ID, time.Now(), body)
	resp, err := p.client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer) // the status is the answer
	return resp.StatusCode, retryAfterOf(resp.Header), nil
}

// retryAfterOf reads the header of that name.
func retryAfterOf(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 {
		return time.Duration(min(seconds, int(maxRetryAfter/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return time.Until(at)
	}
	return 0
}
