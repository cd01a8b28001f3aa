// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/openai"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// maxQuote bounds a client's text in an error message, in bytes.
const maxQuote = 128

// dispatch sends a task over the mesh and says who serves it. param names the
// field of the prompt, for errors. The caller closes the run.
func (x *exchange) dispatch(call mesh.Call, param string) (run, error) {
	if strings.IndexByte(call.Prompt, 0) >= 0 {
		return nil, badRequest(param, "the prompt contains a NUL byte, which no agent is sent: as a command-line argument it could not be handed over")
	}
	l, err := x.takeLease()
	if err != nil {
		return nil, err
	}
	call.Selector = router.LeastLoaded{}
	call.Retries = x.h.retries
	t, err := l.Dispatch(x.r.Context(), call)
	if err != nil {
		return nil, x.taskProblem(err, call, param)
	}
	x.served(t.Served())
	return t, nil
}

// taskProblem completes the errors of a dispatch that depend on its task.
func (x *exchange) taskProblem(err error, call mesh.Call, param string) error {
	switch {
	case errors.Is(err, router.ErrNoMatch) && call.Target.Peer != "":
		return &problem{status: http.StatusNotFound, code: "worker_not_found", param: "worker_id", message: "that worker is not online"}
	case errors.Is(err, router.ErrNoMatch):
		return modelNotFound(call.Target.Model)
	case errors.Is(err, router.ErrPromptTooLong), errors.Is(err, wire.ErrFrameTooLarge):
		return promptTooLong(len(call.Prompt), x.promptLimit(call.Target), param)
	}
	return err
}

// modelNotFound is the error for a model that nobody online serves.
func modelNotFound(model string) *problem {
	return &problem{status: http.StatusNotFound, code: "model_not_found", param: "model",
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
	for _, w := range matching(x.lease.Workers(false), target) {
		limit = max(limit, w.PromptLimit())
	}
	if limit == 0 { // nobody matches, and nobody would take it
		return wire.MaxTaskFrame
	}
	return limit
}

// matching returns the workers that a request may go to, as the router decides it.
func matching(workers []mesh.WorkerInfo, target router.Request) []mesh.WorkerInfo {
	return router.Match(slices.Values(workers), target, func(w mesh.WorkerInfo) (string, string, string) {
		return w.PeerID, w.AgentName, w.Model
	})
}
