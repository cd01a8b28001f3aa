// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"cmp"
	"errors"
	"strconv"
	"time"

	"github.com/Agent-FM/caddy-agentfm/openai"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// Sizes of a page of tasks.
const (
	defaultPage = 50
	maxPage     = 200
)

// taskEntry is a task as clients see it.
type taskEntry struct {
	ID       string        `json:"task_id"`
	Status   tasks.State   `json:"status"`
	Reason   string        `json:"reason,omitempty"`
	Message  string        `json:"message,omitempty"`
	WorkerID string        `json:"worker_id"`
	Agent    string        `json:"agent_name,omitempty"`
	Model    string        `json:"model,omitempty"`
	Attempts int           `json:"attempts"`
	Created  time.Time     `json:"created_at"`
	Started  time.Time     `json:"started_at,omitzero"`
	Ended    time.Time     `json:"ended_at,omitzero"`
	Prompt   int           `json:"prompt_bytes"`
	Output   int64         `json:"output_bytes"`
	Files    bool          `json:"has_files"`
	Artifact *artifact     `json:"artifacts,omitempty"`
	Usage    *openai.Usage `json:"usage,omitempty"`
	Late     []lateEntry   `json:"late_results,omitempty"`
	Webhook  *webhookEntry `json:"webhook,omitzero"`
}

// lateEntry is a result that did not count, as clients see it.
type lateEntry struct {
	Attempt  int         `json:"attempt"`
	WorkerID string      `json:"worker_id"`
	Status   tasks.State `json:"status"`
	Reason   string      `json:"reason,omitempty"`
	At       time.Time   `json:"at"`
}

// artifact is the zip of a task's files as clients see it.
type artifact struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
	Files  int    `json:"files,omitzero"`
}

// newTaskEntry describes a task. Before it runs, the worker is who was asked for.
func newTaskEntry(r *tasks.Record) taskEntry {
	e := taskEntry{
		ID: r.ID, Status: r.State, Reason: r.Reason, Message: r.Message,
		WorkerID: cmp.Or(r.Worker.Peer, r.Target.Worker), Agent: r.Worker.Agent, Model: cmp.Or(r.Worker.Model, r.Target.Model),
		Attempts: r.Attempts, Created: r.Created, Started: r.Started, Ended: r.Ended,
		Prompt: r.PromptSize, Output: r.Bytes, Files: r.Files,
	}
	if a := r.Result.Artifact; a != nil {
		e.Artifact = &artifact{a.Bytes, a.SHA256, a.Files}
	}
	if u := r.Result.Usage; u != nil {
		e.Usage = &openai.Usage{PromptTokens: u.Prompt, CompletionTokens: u.Completion, TotalTokens: u.Prompt + u.Completion, Estimated: u.Estimated}
	}
	for _, l := range r.Late {
		e.Late = append(e.Late, lateEntry{l.Attempt, l.Worker.Peer, l.State, l.Reason, l.At})
	}
	if r.Webhook != nil {
		e.Webhook = newWebhookEntry(r.Webhook)
	}
	return e
}

// listTasks serves GET /api/tasks.
func (x *exchange) listTasks() error {
	q, err := x.taskQuery()
	if err != nil {
		return err
	}
	page, more, err := x.h.tasks.List(x.r.Context(), x.identity.ID, q)
	if err != nil {
		return taskStoreProblem(err)
	}
	entries := make([]taskEntry, len(page))
	for i, r := range page {
		entries[i] = newTaskEntry(r)
		if w := entries[i].Webhook; w != nil {
			w.History = nil
		}
	}
	return x.answerJSON(struct {
		Tasks []taskEntry `json:"tasks"`
		More  bool        `json:"has_more"`
	}{entries, more})
}

// taskQuery reads the query of a list.
func (x *exchange) taskQuery() (tasks.Query, error) {
	values := x.r.URL.Query()
	q := tasks.Query{
		State: tasks.State(values.Get("status")), Webhook: tasks.WebhookState(values.Get("webhook")),
		Before: values.Get("before"), Limit: defaultPage,
	}
	if q.State != "" && !q.State.Valid() {
		return q, badRequest("status", "status: want one of %q", tasks.States)
	}
	if q.Webhook != "" && !q.Webhook.Valid() {
		return q, badRequest("webhook", "webhook: want one of %q", tasks.WebhookStates)
	}
	if q.Before != "" && !tasks.ValidID(q.Before) {
		return q, badRequest("before", "before: want the id of a task")
	}
	if s := values.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > maxPage {
			return q, badRequest("limit", "limit: want a number from 1 to %d", maxPage)
		}
		q.Limit = n
	}
	return q, nil
}

// getTask serves GET /api/tasks/{id}.
func (x *exchange) getTask() error {
	r, err := x.h.tasks.Get(x.r.Context(), x.identity.ID, x.param)
	if err != nil {
		return taskStoreProblem(err)
	}
	return x.answerJSON(newTaskEntry(r))
}

// cancelTask serves DELETE /api/tasks/{id}. What is cancelled can be cancelled again.
func (x *exchange) cancelTask() error {
	r, err := x.h.tasks.Cancel(x.r.Context(), x.identity.ID, x.param)
	if err != nil && !(errors.Is(err, tasks.ErrEnded) && r.State == tasks.Cancelled) {
		return taskStoreProblem(err)
	}
	return x.answerJSON(newTaskEntry(r))
}
