// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/openai"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// responses serves POST /v1/responses.
func (x *exchange) responses() error {
	return x.completion(func(body []byte) (completion, error) {
		req, err := openai.DecodeResponses(body)
		return completion{
			kind: openai.KindResponses, model: req.Model, prompt: req.Prompt(), param: "input", affinity: req.Affinity,
			choices: 1, limits: req.Limits, stream: req.Stream, echo: req.Echo,
		}, err
	})
}

// response serves what is asked of a response that a worker's model server keeps: it
// goes to the worker that made it, for the client that had it made.
func (x *exchange) response() error {
	l, err := x.takeLease()
	if err != nil {
		return err
	}
	id, _, _ := strings.Cut(x.param, "/")
	worker, ok := l.ResponseOf(id, x.client())
	if !ok {
		return &problem{status: http.StatusNotFound, code: "not_found", message: "there is no such response: this gateway knows those that it " +
			"has passed on lately, from model servers that keep them; an agent's answer is not kept"}
	}
	err = x.passOn(mesh.Call{
		Target:  router.Request{Peer: worker, Routes: mesh.Route(x.r.URL.Path)},
		Request: &mesh.Request{Method: x.r.Method, Target: x.r.URL.RequestURI(), Header: x.forwarded("application/json")},
		Aside:   true,
	}, x.r.URL.Query().Get("stream") == "true")
	if p, ok := errors.AsType[*problem](err); ok && p.status == http.StatusNotFound {
		return &problem{status: http.StatusNotFound, code: "not_found", message: "the worker that has the response is not online"}
	}
	return err
}

// pathResponses is where responses are made.
const pathResponses = "/v1/responses"

// maxUnnamed is how far into an answer its id is looked for, in bytes.
const maxUnnamed = 64 << 10

// responseID is how a response names itself, at the beginning of it.
var responseID = regexp.MustCompile(`"id"\s*:\s*"(resp[-_][A-Za-z0-9_-]{1,128})"`)

// noteResponse remembers which worker has the response that begins so.
func (p *passage) noteResponse(begin []byte) {
	if p.noted || p.x.r.Method != http.MethodPost || p.x.r.URL.Path != pathResponses {
		return
	}
	m := responseID.FindSubmatch(begin)
	if m != nil {
		p.x.lease.NoteResponse(string(m[1]), p.x.task.Peer, p.x.client())
	}
	p.unnamed += len(begin) // comments may come first
	p.noted = m != nil || p.unnamed > maxUnnamed
}

// WriteString implements openai.Keeper: the last events of a response that is
// streamed repeat its text, which is held until then.
func (a *heldAnswer) WriteString(text string) (int, error) {
	if a.b.Len()+len(text) > maxAnswer {
		return 0, streamFailed(nil, fmt.Sprintf("the response is over %d bytes; ask for it at /v1/chat/completions with \"stream\":true", maxAnswer))
	}
	return len(text), a.hold(text)
}

// String implements openai.Keeper.
func (a *heldAnswer) String() string { return a.b.String() }

// Interface guard
var _ openai.Keeper = (*heldAnswer)(nil)
