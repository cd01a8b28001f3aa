// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/Agent-FM/caddy-agentfm/handler/auth"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/openai"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// codeModelNotFound says that no worker matches.
const codeModelNotFound = "model_not_found"

// maxQuote bounds a client's text in an error message, in bytes.
const maxQuote = 128

// dispatch sends a task over the mesh. param names the field of the prompt, for
// errors. The caller closes the run.
func (x *exchange) dispatch(ctx context.Context, call mesh.Call, param string) (run, error) {
	if strings.IndexByte(call.Prompt, 0) >= 0 {
		return nil, errNUL(param)
	}
	l, err := x.takeLease()
	if err != nil {
		return nil, err
	}
	if err := x.target(&call.Target); err != nil {
		return nil, err
	}
	call.Selector = x.h.policy
	call.Retries = x.h.retries
	call.FirstByte = time.Duration(x.h.FirstByteTimeout)
	call.Timeout = time.Duration(x.h.TaskTimeout)
	call.Queue = mesh.Queue{Wait: time.Duration(x.h.queue.Wait), Size: x.h.queue.Size, Client: x.client()}
	t, err := l.Dispatch(ctx, call)
	x.ran(err)
	if err != nil {
		return nil, x.taskProblem(err, call, param)
	}
	x.seen.begins()
	return t, nil
}

// errNUL is the error for a prompt that has a NUL byte.
func errNUL(param string) error {
	return badRequest(param, "the prompt contains a NUL byte, which no agent is sent: as a command-line argument it could not be handed over")
}

// Headers by which a request chooses among the workers.
const (
	headerWorker  = "X-AgentFM-Worker"
	headerExclude = "X-AgentFM-Exclude"
)

// Their names as Go has them in a request.
var (
	keyWorker  = http.CanonicalHeaderKey(headerWorker)
	keyExclude = http.CanonicalHeaderKey(headerExclude)
)

// maxExclude bounds how many workers a request may exclude.
const maxExclude = 64

// target completes who may serve the request: from its headers, and by what its
// client may use.
func (x *exchange) target(t *router.Request) error {
	pin := x.r.Header.Get(keyWorker)
	if pin != "" {
		id, err := decodePeer(pin)
		if err != nil || len(x.r.Header[keyWorker]) > 1 {
			return badRequest("", "%s: want one peer id", headerWorker)
		}
		pin = id.String()
	} else {
		pin = x.keeper
	}
	for _, list := range x.r.Header[keyExclude] {
		for s := range strings.SplitSeq(list, ",") {
			id, err := decodePeer(strings.TrimSpace(s))
			if err != nil || len(t.Exclude) >= maxExclude {
				return badRequest("", "%s: want at most %d peer ids, separated by commas", headerExclude, maxExclude)
			}
			t.Exclude = append(t.Exclude, id.String())
		}
	}
	if x.identity.Restricted() || pin != "" {
		t.May = func(peer, agent, model string) bool {
			return (pin == "" || peer == pin) && x.identity.MayUse(peer, agent, model)
		}
	}
	return nil
}

// affinity returns what tells, for a policy that asks, which requests belong
// together: the session that a header names, or else what conversation returns.
func (x *exchange) affinity(conversation func() string) string {
	p, ok := x.h.policy.(interface{ Session(http.Header) string })
	if !ok {
		return ""
	}
	sum := sha256.Sum256([]byte(cmp.Or(p.Session(x.r.Header), conversation()))) // short: it is compared under a lock
	return string(sum[:])
}

// workersFor returns those of the workers that the client may see.
func (x *exchange) workersFor(workers []*mesh.WorkerInfo) []*mesh.WorkerInfo {
	if !x.identity.Restricted() {
		return workers
	}
	var visible []*mesh.WorkerInfo
	for _, w := range workers {
		if w = x.workerFor(w); w != nil {
			visible = append(visible, w)
		}
	}
	return visible
}

// workerFor returns what the client may see of a worker; nil for nothing, and of nil.
func (x *exchange) workerFor(w *mesh.WorkerInfo) *mesh.WorkerInfo {
	if w == nil || !x.identity.Restricted() {
		return w
	}
	seen := *w // the worker is shared
	seen.Models = nil
	for _, m := range w.Models {
		if x.identity.MayUse(w.PeerID, w.AgentName, m) {
			seen.Models = append(seen.Models, m)
		}
	}
	if len(seen.Models) == 0 && !x.identity.MayUse(w.PeerID, w.AgentName, w.Model) {
		return nil
	}
	return &seen
}

// client tells clients apart: by the user or the key, and else by the address.
func (x *exchange) client() string {
	if x.identity != nil && x.identity.ID != "" {
		return "user " + x.identity.ID
	}
	return "address " + auth.Source(x.r).String()
}

// taskProblem completes the errors of a dispatch that depend on its task.
func (x *exchange) taskProblem(err error, call mesh.Call, param string) error {
	switch {
	case errors.Is(err, router.ErrNoMatch) && call.Target.Peer != "":
		return &problem{status: http.StatusNotFound, code: "worker_not_found", param: "worker_id", message: "that worker is not online"}
	case errors.Is(err, router.ErrNoMatch) && x.r.Header.Get(headerWorker) != "":
		return &problem{status: http.StatusNotFound, code: codeModelNotFound,
			message: fmt.Sprintf("the worker in the header %s is not online, or does not go by %q",
				headerWorker, openai.Clip(call.Target.Model, maxQuote))}
	case errors.Is(err, router.ErrNoMatch) && x.keeper != "":
		return &problem{status: http.StatusNotFound, code: "not_found", param: "previous_response_id",
			message: fmt.Sprintf("the worker that has the previous response is not online, or does not go by %q", openai.Clip(call.Target.Model, maxQuote))}
	case errors.Is(err, router.ErrNoMatch):
		if x.wasOnline(call.Target) {
			return &problem{status: http.StatusServiceUnavailable, code: "no_worker_online", param: "model", retryAfter: offlineRetryAfter,
				message: fmt.Sprintf("the workers that %q names were online lately and are not now", openai.Clip(call.Target.Model, maxQuote))}
		}
		return modelNotFound(call.Target.Model)
	case errors.Is(err, router.ErrNoRoute):
		return x.noRoute(call.Target)
	case errors.Is(err, router.ErrExcluded) && call.Target.Peer != "":
		return &problem{status: http.StatusNotFound, code: "worker_not_found", param: "worker_id",
			message: "that worker is in the header " + headerExclude}
	case errors.Is(err, router.ErrExcluded): // by the request: no worker was tried
		return &problem{status: http.StatusNotFound, code: codeModelNotFound,
			message: "every worker that matches is in the header " + headerExclude}
	case errors.Is(err, router.ErrPromptTooLong), errors.Is(err, wire.ErrFrameTooLarge):
		return promptTooLong(len(call.Prompt), x.promptLimit(call.Target), param)
	}
	return err
}

// A worker that was online within offlineWait is expected back: it restarts, or its
// network does. A client may ask again after offlineRetryAfter seconds.
const (
	offlineWait       = 5 * time.Minute
	offlineRetryAfter = 5
)

// wasOnline reports whether a worker matches that was online lately.
func (x *exchange) wasOnline(target router.Request) bool {
	lately := time.Now().Add(-offlineWait)
	gone := slices.DeleteFunc(x.workersFor(x.lease.Workers(true)), func(w *mesh.WorkerInfo) bool {
		return w.Online || w.LastSeen.Before(lately)
	})
	return len(x.h.matching(gone, target)) > 0
}

// modelNotFound is the error for a model that nobody online serves.
func modelNotFound(model string) *problem {
	return &problem{status: http.StatusNotFound, code: codeModelNotFound, param: "model",
		message: fmt.Sprintf("no worker that is online has the peer id, agent name or model engine %q; GET /v1/models lists them", openai.Clip(model, maxQuote))}
}

// promptTooLong is the error for a prompt of size bytes where limit is allowed.
func promptTooLong(size, limit int, param string) *problem {
	var message string
	switch {
	case limit >= size: // only its encoding is too large
		message = fmt.Sprintf("the prompt is %d bytes and, encoded, over the %d bytes that a task carries; shorten it", size, wire.MaxTaskFrame)
	case limit == wire.MaxArgumentPrompt:
		message = fmt.Sprintf("the prompt is %d bytes; the agent takes at most %d, because it gets the prompt as a command-line argument; "+
			"shorten it, or let the agent's operator set `prompt stdin`", size, limit)
	default:
		message = fmt.Sprintf("the prompt is %d bytes; the agent takes at most %d; shorten it", size, limit)
	}
	return &problem{status: http.StatusBadRequest, code: "context_length_exceeded", param: param, message: message}
}

// promptLimit is the largest prompt that any worker takes which matches.
func (x *exchange) promptLimit(target router.Request) int {
	limit := 0
	for _, w := range x.h.matching(x.workersFor(x.lease.Workers(false)), target) {
		limit = max(limit, w.PromptLimit())
	}
	if limit == 0 { // nobody matches, and nobody would take it
		return wire.MaxTaskFrame
	}
	return limit
}

// matching returns the workers that a request may go to, as the router decides it.
func (h *Handler) matching(workers []*mesh.WorkerInfo, target router.Request) []*mesh.WorkerInfo {
	return router.Match(slices.Values(workers), target, func(w *mesh.WorkerInfo) router.Worker {
		return router.Worker{Peer: w.PeerID, Agent: w.AgentName, Model: w.Model, Models: w.Models, Probation: h.ledger.Standing(w.ID).Probation}
	})
}
