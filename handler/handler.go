// SPDX-License-Identifier: Apache-2.0

// Package handler is the HTTP handler "agentfm": it serves AgentFM's own API and
// OpenAI's in front of a mesh of agents.
package handler

import (
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

func init() {
	caddy.RegisterModule(&Handler{})
}

// Defaults of the settings.
const (
	defaultRetries   = 2
	defaultBodyLimit = 32 << 20
)

// Handler is a gateway to a mesh of AI agents. It serves AgentFM's API under
// `/api`, OpenAI's under `/v1`, and `/health`; every other path goes to the next
// handler. Tasks are sent over the mesh by the `agentfm` app.
//
// ## Who may call
//
// With `api_keys`, every request under `/api` and `/v1` needs one of them, as
// `Authorization: Bearer KEY`. Without, a request is served when it came in over
// loopback or a Unix socket, or when an authentication handler before this one
// has accepted it; others are refused with status 403, so that a gateway is not
// opened to the internet by accident. `allow_unauthenticated` lifts that.
// `/health` needs no key. A request that changes something and comes from a web
// page of another origin than loopback is refused.
//
// ## Answers
//
// Every answer carries the header `X-Request-Id`. Errors are JSON,
// `{"error":{"message","type","code","param"}}`, on every route. An agent that
// fails is never a success: before its first byte of output the status says so,
// after it the stream ends with an error. Answers of a task name who served it,
// in headers (`X-AgentFM-Peer`, `X-AgentFM-Agent`, `X-AgentFM-Task`,
// `X-AgentFM-Attempts`) and placeholders:
//
// Placeholder | Description
// ------------|------------
// `{http.agentfm.peer}` | The peer id of the worker
// `{http.agentfm.agent}` | The name of its agent
// `{http.agentfm.model}` | The model engine of its agent
// `{http.agentfm.task}` | The id of the task
// `{http.agentfm.attempts}` | How many workers were tried
type Handler struct {
	// The keys that clients may present. A value may hold several, separated by
	// commas or line ends, and may be a placeholder such as
	// `{env.AGENTFM_API_KEYS}`. A key has at least 16 characters and no white
	// space. When this is set and holds no key, the configuration is refused.
	// Default: no key is needed.
	APIKeys []string `json:"api_keys,omitempty"`

	// How many other workers to try when one fails before the first byte of its
	// output. Default: 2.
	Retries *int `json:"retries,omitempty"`

	// The largest body of a request, in bytes. Default: 32 MiB.
	BodyLimit int64 `json:"body_limit,omitempty"`

	// Serve addresses other than loopback without authentication. The
	// environment variable `AGENTFM_ALLOW_UNAUTH_PUBLIC=1` does the same.
	// Default: false.
	AllowUnauthenticated bool `json:"allow_unauthenticated,omitempty"`

	gateway   gateway
	keys      keySet
	retries   int
	bodyLimit int64
	open      bool // may serve anyone from anywhere
	logger    *zap.Logger
}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.agentfm",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision sets up the handler.
func (h *Handler) Provision(ctx caddy.Context) error {
	gw, err := useMesh(ctx)
	if err != nil {
		return err
	}
	return h.setUp(gw, ctx.Logger())
}

// setUp fills what the configuration leaves open.
func (h *Handler) setUp(gw gateway, logger *zap.Logger) error {
	h.gateway, h.logger = gw, logger
	h.retries = defaultRetries
	if h.Retries != nil {
		h.retries = *h.Retries
	}
	h.bodyLimit = h.BodyLimit
	if h.bodyLimit == 0 {
		h.bodyLimit = defaultBodyLimit
	}
	h.open = h.AllowUnauthenticated || os.Getenv("AGENTFM_ALLOW_UNAUTH_PUBLIC") == "1"
	if h.APIKeys == nil {
		return nil
	}
	var err error
	if h.keys, err = parseKeys(h.APIKeys); err != nil {
		return fmt.Errorf("api_keys: %w", err)
	}
	return nil
}

// Validate refuses settings that make no sense.
func (h *Handler) Validate() error {
	if h.retries < 0 {
		return errors.New("retries must not be negative")
	}
	if h.bodyLimit < 0 {
		return errors.New("body_limit must not be negative")
	}
	return nil
}

// ServeHTTP serves the request, or hands it on when the path is not ours.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if !ours(r.URL.Path) {
		return next.ServeHTTP(w, r)
	}
	x := newExchange(h, w, r)
	defer x.release()
	if err := x.serve(); err != nil {
		x.fail(err)
	}
	return nil
}

// Interface guards
var (
	_ caddy.Module                = (*Handler)(nil)
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.Validator             = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
	_ caddyfile.Unmarshaler       = (*Handler)(nil)
)
