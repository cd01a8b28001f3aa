// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// WebhookState is how far the delivery of a webhook has come.
type WebhookState string

// The states of a delivery. Only the first has more to come by itself.
const (
	WebhookPending   WebhookState = "pending"
	WebhookDelivered WebhookState = "delivered"
	WebhookGone      WebhookState = "disabled" // the receiver answered with status 410
	WebhookGivenUp   WebhookState = "given_up"
)

// WebhookStates are all of them.
var WebhookStates = []WebhookState{WebhookPending, WebhookDelivered, WebhookGone, WebhookGivenUp}

// Valid reports whether s is one of [WebhookStates].
func (s WebhookState) Valid() bool { return slices.Contains(WebhookStates, s) }

// Webhook is who is told of a task's end, and whether that has been done.
type Webhook struct {
	URL  string `json:"url"`
	Base string `json:"base,omitempty"`

	State    WebhookState `json:"state"`
	Attempts int          `json:"attempts"`
	// Earlier counts the attempts before the schedule began that is followed now.
	Earlier int       `json:"earlier,omitempty"`
	Next    time.Time `json:"next_attempt,omitzero"`
	// History are the newest attempts, the oldest first, at most [MaxHistory].
	History []Delivery `json:"history,omitempty"`
}

// MaxHistory is how many attempts are kept of a webhook.
const MaxHistory = 20

// Delivery is one attempt to deliver a webhook.
type Delivery struct {
	At   time.Time     `json:"at"`
	Took time.Duration `json:"took"`
	// Status is that of the answer; 0 where there was none. Error is a code then.
	Status int    `json:"status,omitempty"`
	Error  string `json:"error,omitempty"`
}

// Last returns the latest attempt; the zero value when there is none.
func (w *Webhook) Last() Delivery {
	if len(w.History) == 0 {
		return Delivery{}
	}
	return w.History[len(w.History)-1]
}

// retryAfter is when each attempt follows the one before, after the first, or up to a tenth
// later: 75 hours in all.
var retryAfter = []time.Duration{
	5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour,
	10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

// maxRetryAfter bounds what a receiver's header Retry-After is followed for.
const maxRetryAfter = 24 * time.Hour

// longestWait is the longest that one can be: a step with its tenth, or what a receiver asks for.
var longestWait = max(retryAfter[len(retryAfter)-1]*11/10, maxRetryAfter)

// wait returns how long it is until the next attempt; 0 or less for none. A wait longer than
// any can be was noted while the clock was ahead, and is none.
func (w *Webhook) wait(now time.Time) time.Duration {
	if wait := w.Next.Sub(now); wait <= longestWait {
		return wait
	}
	return 0
}

// attempted notes how an attempt went, which has just ended. wait is what the receiver
// asked for.
func (w *Webhook) attempted(d Delivery, wait time.Duration) {
	w.Attempts++
	w.Next = time.Time{}
	w.History = append(w.History, d)
	w.History = w.History[max(0, len(w.History)-MaxHistory):]
	switch tries := w.Attempts - w.Earlier; {
	case d.Error == "" && d.Status >= 200 && d.Status < 300:
		w.State = WebhookDelivered
	case d.Status == http.StatusGone:
		w.State = WebhookGone
	case tries > len(retryAfter):
		w.State = WebhookGivenUp
	default:
		now := d.At.Add(d.Took)
		d := retryAfter[tries-1]
		d += rand.N(d / 10)
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
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
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

// retryAfterOf reads the header of that name.
func retryAfterOf(h http.Header, now time.Time) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.Atoi(value); err == nil && seconds > 0 {
		return time.Duration(min(seconds, int(maxRetryAfter/time.Second))) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return at.Sub(now)
	}
	return 0
}
