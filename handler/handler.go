// SPDX-License-Identifier: Apache-2.0

// Package handler is the HTTP handler "agentfm": it serves AgentFM's own API and
// OpenAI's in front of a mesh of agents.
package handler

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/handler/auth"
	"github.com/Agent-FM/caddy-agentfm/ledger"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/router"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

func init() {
	caddy.RegisterModule(&Handler{})
}

// Defaults of the settings.
const (
	defaultRetries   = 2
	defaultBodyLimit = 32 << 20
	defaultHeartbeat = 15 * time.Second
	minHeartbeat     = time.Millisecond
	defaultQueueSize = 256
	defaultQueueWait = 10 * time.Second
)

// Handler is a gateway to a mesh of AI agents. It serves AgentFM's API under
// `/api`, OpenAI's under `/v1`, `/health`, and a page about each peer under
// `/ui/peer`; every other path goes to the next handler. Tasks are sent over the
// mesh by the `agentfm` app.
//
// ## Who may call
//
// With `api_keys` or `api_keys_file`, every request under `/api`, `/v1` and `/ui` needs
// one of the keys, as `Authorization: Bearer KEY`. A client address with 30
// failures in a minute is refused with status 429 until the minute ends. Behind a
// proxy, set Caddy's `trusted_proxies`, or the proxy is the client. The name of
// the key becomes `{http.auth.user.id}`, for access logs and later handlers.
//
// Without keys, a request is served when it came in over a Unix socket, or over
// loopback and asked for `localhost` or a loopback address, and through no proxy,
// as far as that can be told; or when an authentication handler before this one
// has accepted it. Others are refused with status 403, so that a gateway is not
// opened to the internet by accident. `allow_unauthenticated` lifts that.
//
// `/health` needs no key. A request that changes something and comes from a web
// page is refused, unless the page's origin is loopback or in `allow_origins`.
//
// ## Answers
//
// Every answer carries the header `X-Request-Id`. Errors are JSON,
// `{"error":{"message","type","code","param"}}`, on every route. An agent that
// fails is never a success: before its first byte of output the status says so,
// after it the stream ends with an error. Answers of a task name who served it, or
// failed at it, in headers (`X-AgentFM-Peer`, `X-AgentFM-Agent`, `X-AgentFM-Task`,
// `X-AgentFM-Attempts`, `X-AgentFM-Tier`, `X-AgentFM-Queue-Ms`), in the access log
// (`agentfm`) and in placeholders:
//
// Placeholder | Description
// ------------|------------
// `{http.agentfm.peer}` | The peer id of the worker
// `{http.agentfm.agent}` | The name of its agent
// `{http.agentfm.model}` | The model engine of its agent
// `{http.agentfm.task}` | The id of the task
// `{http.agentfm.attempts}` | How many workers were tried
// `{http.agentfm.tier}` | By which name the worker was found: `peer`, `agent` or `model`
// `{http.agentfm.queue_ms}` | How long the request waited for a slot, in milliseconds
//
// Inside of `handle_errors` the handler answers the same paths with Caddy's error,
// in the form of these APIs: what a rate limit or an authentication handler
// refuses is then what clients of the APIs expect.
//
// ## Which worker
//
// `model` is a peer id, an agent's name or a model engine; the first of these
// that any worker has decides, and the policy chooses among those workers. A
// request may name the one worker that shall serve it in the header
// `X-AgentFM-Worker`, and those that shall not in `X-AgentFM-Exclude`, as peer
// ids separated by commas. A worker that breaks rests, for 1 to 30 seconds, as
// long as there are others.
type Handler struct {
	// The keys that clients may present. A value may hold several, separated by
	// commas or line ends, and may be a placeholder such as
	// `{env.AGENTFM_API_KEYS}`. A key has at least 16 characters and no white
	// space; it may be given by its hash, `sha256:` and 64 hex digits. Caddy's admin
	// API shows what stands here, so that a placeholder or a hash is better than the
	// key. When this is set and holds no key, the configuration is refused.
	// Default: no key is needed, unless there is a key file.
	APIKeys []string `json:"api_keys,omitempty"`

	// A file of more keys, one a line:
	//
	//     [<name>] <key or sha256:<64 hex>> [models=<a>,<b>] [scope=read|run] [expires=<RFC 3339>]
	//         [webhook_secret=<new>[,<old>]]
	//
	// A name has 1 to 64 of the characters `a-z`, `A-Z`, `0-9`, `_.@-`. A key with
	// `models` sees and uses only the workers with one of these peer ids, agent
	// names or model engines; quote names with spaces, as in
	// `models="HR Assistant,llama3.2"`. With `scope=read` it cannot run tasks, with
	// `scope=run` it can do nothing else. After `expires` it is not valid. Webhooks
	// of its tasks are signed with its `webhook_secret`, in place of the gateway's, and
	// while receivers still have the one before it, with both. All that is one line. Lines
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

	// How a worker is chosen among those that match: a module of the namespace
	// agentfm.selection_policies. Default: least_loaded.
	PolicyRaw json.RawMessage `json:"policy,omitempty" caddy:"namespace=agentfm.selection_policies inline_key=policy"`
	// How many other workers to try when one fails before the first byte of its
	// output. Workers that turn out to be full do not count; of these four are
	// passed by. Default: 2.
	Retries *int `json:"retries,omitempty"`

	// How requests wait when every worker that matches is full. Default: they do
	// not, and are refused with status 503.
	Queue *Queue `json:"queue,omitempty"`

	// How long one worker may take from getting the task to its first byte of
	// output; then another is tried. Default: no limit but that of the task.
	FirstByteTimeout caddy.Duration `json:"first_byte_timeout,omitempty"`

	// How long a task may take, all attempts together, to its last byte. At most
	// 24 hours. Default: 10m.
	TaskTimeout caddy.Duration `json:"task_timeout,omitempty"`

	// How long a streamed answer may be silent before a comment is sent that keeps
	// proxies and clients from giving up. Before the first output, this also fixes
	// the status at 200: what goes wrong afterwards is an event of the stream. At
	// least 1ms; a negative value switches it off. Default: 15s.
	Heartbeat caddy.Duration `json:"heartbeat,omitempty"`

	// The largest body of a request, in bytes. Default: 32 MiB.
	BodyLimit int64 `json:"body_limit,omitempty"`

	// Serve addresses other than loopback without authentication. The
	// environment variable `AGENTFM_ALLOW_UNAUTH_PUBLIC=1` does the same.
	// Default: false.
	AllowUnauthenticated bool `json:"allow_unauthenticated,omitempty"`

	gateway   gateway
	tasks     *tasks.Part
	ledger    *ledger.Part // nil for none
	site      string       // stands for the settings with which tasks are run
	policy    router.Selector
	keys      *auth.Checker // nil where no keys are set
	origins   map[string]bool
	retries   int
	queue     Queue
	heartbeat time.Duration
	bodyLimit int64
	open      bool // may serve anyone from anywhere
	recent    *recentLists
	logger    *zap.Logger
}

// Queue is how requests wait for a free worker. Free slots go to the clients in
// turn, whatever the number of their requests: a client is the user or key that
// sends them, or else an address. When the queue is full, the client with the most
// requests in it loses its newest, with status 429.
type Queue struct {
	// How many requests may wait at one time. Sites that share the mesh count
	// together. Default: 256.
	Size int `json:"size,omitempty"`

	// How long a request may wait. Default: 10s.
	Wait caddy.Duration `json:"wait,omitempty"`
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
	app, err := useMesh(ctx)
	if err != nil {
		return err
	}
	if h.tasks, err = useTasks(app, ctx.Logger()); err != nil {
		return err
	}
	if h.ledger, err = ledger.Use(app); err != nil {
		return err
	}
	if h.PolicyRaw != nil {
		mod, err := ctx.LoadModule(h, "PolicyRaw")
		if err != nil {
			return fmt.Errorf("loading selection policy: %w", err)
		}
		h.policy = mod.(router.Selector)
	}
	return h.setUp(meshGateway{app}, ctx.Logger())
}

// setUp fills what the configuration leaves open.
func (h *Handler) setUp(gw gateway, logger *zap.Logger) error {
	h.gateway, h.logger, h.recent = gw, logger, new(recentLists)
	h.retries = defaultRetries
	if h.Retries != nil {
		h.retries = *h.Retries
	}
	if h.policy == nil {
		h.policy = router.LeastLoaded{}
	}
	if h.Queue != nil {
		h.queue = Queue{
			Size: cmp.Or(h.Queue.Size, defaultQueueSize),
			Wait: cmp.Or(h.Queue.Wait, caddy.Duration(defaultQueueWait)),
		}
	}
	h.heartbeat = cmp.Or(time.Duration(h.Heartbeat), defaultHeartbeat)
	h.bodyLimit = cmp.Or(h.BodyLimit, defaultBodyLimit)
	if h.tasks != nil {
		h.site = h.siteName()
		h.tasks.Register(h.site, taskRunner{h})
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
	switch {
	case h.bodyLimit < 0:
		return errors.New("body_limit must not be negative")
	case h.queue.Size < 0 || h.queue.Wait < 0:
		return errors.New("queue: size and wait must not be negative")
	case h.heartbeat > 0 && h.heartbeat < minHeartbeat:
		return fmt.Errorf("heartbeat must be %s or longer", minHeartbeat)
	case h.FirstByteTimeout < 0:
		return errors.New("first_byte_timeout must not be negative")
	case h.TaskTimeout < 0 || time.Duration(h.TaskTimeout) > mesh.MaxTaskTimeout:
		return fmt.Errorf("task_timeout must be within 0 and %s", mesh.MaxTaskTimeout)
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
	defer x.observe()
	if err, ok := r.Context().Value(caddyhttp.ErrorCtxKey).(error); ok {
		x.shareAnswer()
		x.fail(x.caddyProblem(err)) // we are inside of handle_errors
		return nil
	}
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
