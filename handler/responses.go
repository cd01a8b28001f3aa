// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/Agent-FM/caddy-agentfm/openai"
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

// notFound is the error for a path that is nobody's. Clients may ask there for a
// response that they got: it says why there is none.
func (x *exchange) notFound() error {
	rest, ok := strings.CutPrefix(x.r.URL.Path, "/v1/responses/")
	id, action, _ := strings.Cut(rest, "/")
	var route string
	switch {
	case !ok || id == "":
		return errNotFound
	case action == "" && (x.r.Method == http.MethodGet || x.r.Method == http.MethodDelete):
		route = "/v1/responses/{id}"
	case action == "cancel" && x.r.Method == http.MethodPost, action == "input_items" && x.r.Method == http.MethodGet:
		route = "/v1/responses/{id}/" + action
	default:
		return errNotFound
	}
	p := *errNotFound
	p.message = fmt.Sprintf("there is no %s %s: this gateway keeps no responses; POST /v1/responses answers at once", x.r.Method, route)
	return &p
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
