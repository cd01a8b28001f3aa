// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"net/http"
	"time"

	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// webhookEntry is the webhook of a task as clients see it.
type webhookEntry struct {
	URL      string             `json:"url"`
	Status   tasks.WebhookState `json:"status"`
	Attempts int                `json:"attempts"`
	Code     int                `json:"last_status,omitzero"`
	Error    string             `json:"last_error,omitempty"`
	Last     time.Time          `json:"last_attempt_at,omitzero"`
	Next     time.Time          `json:"next_attempt_at,omitzero"`
	History  []deliveryEntry    `json:"history,omitempty"` // not in lists
}

// deliveryEntry is one attempt to deliver a webhook.
type deliveryEntry struct {
	At       time.Time `json:"at"`
	Duration float64   `json:"duration_seconds"`
	Status   int       `json:"status,omitzero"`
	Error    string    `json:"error,omitempty"`
}

// newWebhookEntry describes a webhook.
func newWebhookEntry(w *tasks.Webhook) *webhookEntry {
	last := w.Last()
	e := &webhookEntry{
		URL: w.URL, Status: w.State, Attempts: w.Attempts,
		Code: last.Status, Error: last.Error, Last: last.At, Next: w.Next,
	}
	for _, d := range w.History {
		e.History = append(e.History, deliveryEntry{d.At, d.Took.Seconds(), d.Status, d.Error})
	}
	return e
}

// redeliver serves POST /api/tasks/{id}/webhook: the webhook is sent again.
func (x *exchange) redeliver() error {
	r, err := x.h.tasks.Redeliver(x.r.Context(), x.identity.ID, x.param)
	if err != nil {
		return taskStoreProblem(err)
	}
	answer, err := encode(newTaskEntry(r))
	if err != nil {
		return err
	}
	x.answer(http.StatusAccepted, answer)
	return nil
}
