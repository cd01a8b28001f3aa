// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"errors"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/openai"
	"github.com/Agent-FM/caddy-agentfm/router"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// submitRequest is the body of POST /api/execute/async.
type submitRequest struct {
	WorkerID   string `json:"worker_id"`
	Model      string `json:"model"`
	Prompt     string `json:"prompt"`
	WebhookURL string `json:"webhook_url"`

	MaxAttempts  *int `json:"max_attempts"`
	QueueTimeout *int `json:"queue_timeout_seconds"`
	RunTimeout   *int `json:"run_timeout_seconds"`
	Timeout      *int `json:"timeout_seconds"`
}

// bounds are those that the client asks for.
func (r submitRequest) bounds() (b tasks.Bounds, err error) {
	for _, f := range []struct {
		name string
		v    *int
		set  func(int)
	}{
		{"max_attempts", r.MaxAttempts, func(n int) { b.Attempts = n }},
		{"queue_timeout_seconds", r.QueueTimeout, func(n int) { b.Queue = time.Duration(n) * time.Second }},
		{"run_timeout_seconds", r.RunTimeout, func(n int) { b.Run = time.Duration(n) * time.Second }},
		{"timeout_seconds", r.Timeout, func(n int) { b.Total = time.Duration(n) * time.Second }},
	} {
		if f.v == nil {
			continue
		}
		if *f.v < 1 || *f.v > maxBound {
			return b, badRequest(f.name, "%s: want a whole number from 1 to %d", f.name, maxBound)
		}
		f.set(*f.v)
	}
	return b, nil
}

// maxBound is more than anything that a client may ask for, in seconds.
const maxBound = 1_000_000

// taskBounds returns the bounds of a task that is submitted.
func (x *exchange) taskBounds(req submitRequest) (tasks.Bounds, error) {
	b, err := req.bounds()
	if err != nil {
		return b, err
	}
	if most := x.h.runTime(); b.Run > most {
		return b, badRequest("run_timeout_seconds", "run_timeout_seconds: at most %d is allowed here", int(most.Seconds()))
	}
	b, err = x.h.tasks.Bounds(b)
	if over, ok := errors.AsType[*tasks.BoundError](err); ok {
		name, most := over.Name, over.Most
		if d, ok := most.(time.Duration); ok {
			name, most = name+"_seconds", int(d.Seconds())
		}
		return b, badRequest(name, "%s: at most %v is allowed here", name, most)
	}
	return b, err
}

// decodeSubmit reads and checks the body.
func decodeSubmit(body []byte) (submitRequest, error) {
	var req submitRequest
	if err := openai.Decode(body, &req); err != nil {
		return req, err
	}
	req.Model = strings.TrimSpace(req.Model)
	switch {
	case req.WorkerID == "" && req.Model == "":
		return req, badRequest("worker_id", "worker_id is missing; want the peer id of a worker, or model")
	case req.WorkerID != "" && req.Model != "":
		return req, badRequest("model", "worker_id and model are both there; send one of them")
	case req.WorkerID != "":
		id, err := decodePeer(req.WorkerID)
		if err != nil {
			return req, badRequest("worker_id", "worker_id is not a peer id")
		}
		req.WorkerID = id.String()
	case len(req.Model) > maxModel:
		return req, badRequest("model", "model has more than %d bytes", maxModel)
	}
	if req.Prompt == "" {
		return req, &problem{status: http.StatusBadRequest, code: openai.CodePromptRequired, param: "prompt", message: "prompt is missing or empty"}
	}
	if strings.IndexByte(req.Prompt, 0) >= 0 {
		return req, errNUL("prompt")
	}
	if req.WebhookURL != "" {
		if err := tasks.CheckURL(req.WebhookURL); err != nil {
			return req, &problem{status: http.StatusBadRequest, code: "url_not_allowed", param: "webhook_url", message: "webhook_url: " + err.Error()}
		}
	}
	return req, nil
}

// maxModel bounds the name of a model that is kept with a task, in bytes.
const maxModel = 256

// submitPath is where tasks are submitted.
const submitPath = "/api/execute/async"

// submit serves POST /api/execute/async: the task is on disk when the client hears of it.
func (x *exchange) submit() error {
	body, err := x.body()
	if err != nil {
		return err
	}
	req, err := decodeSubmit(body)
	if err != nil {
		return err
	}
	if err := x.trusted(req.WorkerID); err != nil {
		return err
	}
	bounds, err := x.taskBounds(req)
	if err != nil {
		return err
	}
	target, err := x.taskTarget(req)
	if err != nil {
		return err
	}
	r, err := x.submitOnce(tasks.Submission{
		Owner: x.identity.ID, Site: x.h.site, Target: target, Bounds: bounds,
		Prompt: req.Prompt, WebhookURL: req.WebhookURL, Base: x.base(),
	})
	if err != nil {
		return taskStoreProblem(err)
	}
	return x.accepted(r.ID)
}

// accepted tells the client that its task was accepted.
func (x *exchange) accepted(id string) error {
	answer, err := encode(struct {
		TaskID  string      `json:"task_id"`
		Status  tasks.State `json:"status"`
		Message string      `json:"message"`
	}{id, tasks.Queued, "the task is queued; GET /api/tasks/" + id + " tells how it goes"})
	if err != nil {
		return err
	}
	x.w.Header().Set("Location", "/api/tasks/"+id)
	x.answer(http.StatusAccepted, answer)
	return nil
}

// taskTarget says who may run a task that is submitted. There must be somebody now.
func (x *exchange) taskTarget(req submitRequest) (tasks.Target, error) {
	l, err := x.takeLease()
	if err != nil {
		return tasks.Target{}, err
	}
	if err := roomFor(l); err != nil {
		return tasks.Target{}, err
	}
	call := mesh.Call{Target: router.Request{Peer: req.WorkerID, Model: req.Model}, Prompt: req.Prompt}
	if err := x.target(&call.Target); err != nil {
		return tasks.Target{}, err
	}
	t := tasks.Target{
		Worker: req.WorkerID, Model: req.Model, Exclude: call.Target.Exclude,
		Limited: x.identity.Restricted(), Models: x.identity.Models(),
	}
	if pin := x.r.Header.Get(headerWorker); pin != "" {
		id, _ := decodePeer(pin) // it is one: see target
		t.Only = id.String()
	}
	found := false
	for _, w := range x.h.matching(x.workersFor(l.Workers(false)), call.Target) {
		found = found || t.Only == "" || w.PeerID == t.Only
	}
	if !found {
		return t, x.taskProblem(router.ErrNoMatch, call, "prompt")
	}
	if limit := x.promptLimit(call.Target); len(req.Prompt) > limit {
		return t, promptTooLong(len(req.Prompt), limit, "prompt")
	}
	return t, nil
}

// base returns where the client finds this gateway: a proxy that is trusted says what it was
// asked for.
func (x *exchange) base() string {
	scheme, host := "http", x.r.Host
	if x.r.TLS != nil {
		scheme = "https"
	}
	if trusted, _ := caddyhttp.GetVar(x.r.Context(), caddyhttp.TrustedProxyVarKey).(bool); trusted {
		if s := strings.ToLower(x.proxySays("X-Forwarded-Proto")); s == "http" || s == "https" {
			scheme = s
		}
		if h := x.proxySays("X-Forwarded-Host"); len(h) <= maxHost && hostForm.MatchString(h) {
			host = h
		}
	}
	return scheme + "://" + host
}

// maxHost bounds the name and port of a host, in bytes.
const maxHost = 261

// hostForm is the form of a host, which may have a port.
var hostForm = regexp.MustCompile(`^([a-zA-Z0-9._-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?$`)

// proxySays returns what the first of several proxies says in a header.
func (x *exchange) proxySays(name string) string {
	first, _, _ := strings.Cut(x.r.Header.Get(name), ",")
	return strings.TrimSpace(first)
}

// taskStoreProblem maps an error of the task store to its answer.
func taskStoreProblem(err error) error {
	is := func(target error) bool { return errors.Is(err, target) }
	switch {
	case is(tasks.ErrHeld):
		return &problem{status: http.StatusServiceUnavailable, code: "async_capacity_exhausted", retryAfter: 60,
			message: "too many of your tasks that have ended must be kept: their webhooks are yet to be delivered, or their idempotency keys are of the last 24 hours"}
	case is(tasks.ErrFull):
		return &problem{status: http.StatusServiceUnavailable, code: "async_capacity_exhausted", retryAfter: 5,
			message: "too many tasks are queued or running"}
	case is(tasks.ErrNotFound):
		return &problem{status: http.StatusNotFound, code: "task_not_found", message: "you have no task of this id"}
	case is(tasks.ErrTooLarge):
		return &problem{status: http.StatusRequestEntityTooLarge, code: "request_too_large", message: tasks.ErrTooLarge.Error()}
	case is(tasks.ErrEnded):
		return &problem{status: http.StatusConflict, code: "task_ended", message: "the task has ended already"}
	case is(tasks.ErrOffset):
		return &problem{status: http.StatusRequestedRangeNotSatisfiable, code: openai.CodeInvalidRequest, param: "offset",
			message: "the output has not so many bytes"}
	case is(tasks.ErrNoWebhook):
		return &problem{status: http.StatusNotFound, code: "webhook_not_found", message: "the task was submitted without webhook_url"}
	case is(tasks.ErrPending):
		return &problem{status: http.StatusConflict, code: "webhook_pending", message: "the webhook is yet to be delivered; the task says when it is sent next"}
	case is(tasks.ErrTooSoon):
		return &problem{status: http.StatusTooManyRequests, code: "rate_limited", retryAfter: int(tasks.RedeliverAfter / time.Second),
			message: "the webhook was sent a moment ago; it can be sent again " + tasks.RedeliverAfter.String() + " after the last attempt"}
	case is(tasks.ErrNotKept):
		return &problem{status: http.StatusNotFound, code: "output_not_kept", message: "the output went to the client that waited for it, and is not kept"}
	case is(tasks.ErrExpired):
		return &problem{status: http.StatusGone, code: "output_expired", message: "the output of this task is not kept any more"}
	case is(tasks.ErrStore), is(tasks.ErrNotRunning):
		return &problem{status: http.StatusServiceUnavailable, code: "task_store_unavailable", retryAfter: 5,
			message: "tasks cannot be stored or looked up now", cause: err}
	}
	return err
}
