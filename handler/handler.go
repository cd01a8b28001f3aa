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

	"github.com/Agent-FM/caddy-agentfm/handler/auth"
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
// With `api_keys` or `api_keys_file`, every request under `/api` and `/v1` needs
// one of the keys, as `Authorization: Bearer KEY`. A client address with 30
// failures in a minute is refused with status 429 until the minute ends. Behind a
// proxy, set Caddy's `trusted_proxies`, or the proxy is the client. The name of
// the key becomes `{http.auth.user.id}`, for access logs and later handlers.
//
// Without keys, a request is served when it came in over loopback or a Unix
// socket, or when an authentication handler before this one has accepted it;
// others are refused with status 403, so that a gateway is not opened to the
// internet by accident. `allow_unauthenticated` lifts that.
//
// `/health` needs no key. A request that changes something and comes from a web
// page is refused, unless the page's origin is loopback or in `allow_origins`.
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
	// space; it may be given by its hash, `sha256:` and 64 hex digits. When this is
	// set and holds no key, the configuration is refused.
	// Default: no key is needed, unless there is a key file.
	APIKeys []string `json:"api_keys,omitempty"`

	// A file of more keys, one a line:
	//
	//     [<name>] <key or sha256:<64 hex>> [models=<a>,<b>] [scope=read|run] [expires=<RFC 3339>]
	//
	// A name has 1 to 64 of the characters `a-z`, `A-Z`, `0-9`, `_.@-`. A key with
	// `models` sees and uses only the workers with one of these peer ids, agent
	// names or model engines; quote names with spaces, as in
	// `models="HR Assistant,llama3.2"`. With `scope=read` it cannot run tasks, with
	// `scope=run` it can do nothing else. After `expires` it is not valid. Lines
	// that begin with `#` are comments. At most 1 MiB and 10,000 keys.
	//
	// The file is looked at again at most once a second, when requests come, and
	// read when it has changed: keys rotate without a reload. A file that is gone,
	// broken or without a key is logged, and the keys stay as they were.
	// May hold placeholders such as `{env.CREDENTIALS_DIRECTORY}`. Default: none.
	APIKeysFile string `json:"api_keys_file,omitempty"`

	// With keys set, also serve without a key whom an authentication handler before
	// this one accepted, as `{http.auth.user.id}` says. Such a user may do
	// everything; one of the provider "agentfm", what its key may. Without keys,
	// such users are served anyway. Default: false.
	TrustCaddyAuth bool `json:"trust_caddy_auth,omitempty"`

	// The origins of web pages that may call and read answers beside those of
	// loopback, such as `https://app.example.com`: scheme, host and, when it is not
	// the scheme's own, port. May hold placeholders. Default: none.
	AllowOrigins []string `json:"allow_origins,omitempty"`

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
	keys      *auth.Checker // nil where no keys are set
	origins   map[string]bool
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
	var err error
	if h.origins, err = parseOrigins(h.AllowOrigins); err != nil {
		return fmt.Errorf("allow_origins: %w", err)
	}
	if h.APIKeys == nil && h.APIKeysFile == "" {
		return nil
	}
	h.keys, err = auth.New(auth.Options{Keys: h.APIKeys, File: h.APIKeysFile, Logger: logger})
	return err
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
