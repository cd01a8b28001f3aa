// SPDX-License-Identifier: Apache-2.0

// Package upstream is the Caddy module "agentfm.runtimes.openai": an agent whose
// model is a server that speaks OpenAI's API.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

func init() {
	caddy.RegisterModule(&Runtime{})
}

// Runtime serves an agent with a server that speaks OpenAI's API, such as Ollama,
// vLLM, llama.cpp or LiteLLM. It passes requests on to it, and the answers back as
// they come: with tools, images, embeddings, the server's own count of tokens, and
// whatever else the server can do.
//
// Of a request it changes the name of the model, where the server knows it by
// another, and leaves out what is not the server's business: credentials, cookies,
// and headers that say where the request came from. A request for the agent by its
// name or peer id gets the first of the models, which is the agent's `model` if it
// has one. A model that the server does not have, or not any more, is refused, so that
// the gateway tries another worker.
//
// What the server has is asked when the agent starts: its models at `/v1/models`,
// and its routes by sending each an empty JSON object, which starts no work; and again
// every five minutes, or when its models have changed or it did not answer. While
// the server does not answer, the agent offers nothing; it is looked after every
// `health_interval`, and when a request fails. A model that is the agent's own must
// be there, or nothing is.
//
// The server gets no key but that of `api_key` or `api_key_file`. Redirects are not
// followed, and proxies of the environment are not used.
//
// Gateways that send a text get an answer, too: the text is the one message of a
// chat with the first model.
//
// Placeholders are replaced in `base_url`, `api_key` and `api_key_file`, once, when
// the configuration is loaded; one that has no value there is an error.
//
// Syntax:
//
//	runtime openai {
//		base_url        <url>
//		api_key         <key>
//		api_key_file    <file>
//		models          <name>...
//		rename          <offered> <name at the server>
//		routes          <route>...
//		health_interval <duration>
//	}
type Runtime struct {
	// BaseURL is where the server has its API, for example
	// `http://127.0.0.1:11434/v1`. One without a path gets `/v1`. Required.
	BaseURL string `json:"base_url,omitempty"`

	// APIKey is the server's key. Use a placeholder, such as `{env.VLLM_API_KEY}`:
	// what stands here is in Caddy's configuration as it is. Default: none is sent.
	APIKey string `json:"api_key,omitempty"`

	// APIKeyFile is a file that holds nothing but the server's key. A change of it
	// counts with the next request, without a reload; while it is gone or broken,
	// the key stays as it was. Only one of `api_key` and `api_key_file` may be set.
	// Default: none.
	APIKeyFile string `json:"api_key_file,omitempty"`

	// Models are those of the server's models that are offered, in this order, each
	// by its name at the server or by that of `rename`. Default: all that the server
	// lists, at most 64.
	Models []string `json:"models,omitempty"`

	// Rename has the names that clients ask for, and for each of them the name that
	// the model has at the server; that name is then not offered. Default: nothing.
	Rename map[string]string `json:"rename,omitempty"`

	// Routes are the routes that are offered, for example `/v1/chat/completions`.
	// Default: those of OpenAI's API that the server turns out to have.
	Routes []string `json:"routes,omitempty"`

	// HealthInterval is how often the server is asked for its models. Default: 10s.
	HealthInterval caddy.Duration `json:"health_interval,omitempty"`

	logger    *zap.Logger
	base      *url.URL // without a slash at its end
	key       *apiKey
	transport *http.Transport
	conns     *conns // for small requests to a server without TLS; nil for none
	view      atomic.Pointer[view]
	doubt     chan struct{} // a request could not reach the server
	replaced  atomic.Bool   // it may be another server since it was looked after
	working   atomic.Int64  // requests that the server has
	ear       ear
	// These are as the constants of their names; tests have others.
	askTimeout, probeInterval, maxSilence time.Duration
}

// defaultHealthInterval is how often the server is looked after.
const defaultHealthInterval = 10 * time.Second

// Limits of connections to the server.
const (
	dialTimeout  = 10 * time.Second
	maxIdleConns = 256 // of requests at once, which then need no new connection
	idleTimeout  = 90 * time.Second
	maxHeader    = 256 << 10
)

// CaddyModule returns the Caddy module information.
func (*Runtime) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "agentfm.runtimes.openai",
		New: func() caddy.Module { return new(Runtime) },
	}
}

// Provision replaces placeholders and sets defaults.
func (r *Runtime) Provision(ctx caddy.Context) error {
	r.logger = ctx.Logger()
	if r.HealthInterval == 0 {
		r.HealthInterval = caddy.Duration(defaultHealthInterval)
	}
	if r.BaseURL == "" {
		return errNoBaseURL
	}
	repl := caddy.NewReplacer()
	base, err := repl.ReplaceOrErr(r.BaseURL, true, true)
	if err != nil {
		return fmt.Errorf("base_url: %w", err)
	}
	if r.base, err = ParseBase(base); err != nil {
		return fmt.Errorf("base_url: %w", err)
	}
	if r.key, err = r.provisionKey(repl); err != nil {
		return err
	}
	dial := r.open((&net.Dialer{Timeout: dialTimeout}).DialContext)
	if addr, ok := plainAddr(r.base); ok && canBeQuiet {
		r.conns = &conns{dial: dial, addr: addr}
	}
	return nil
}

// provisionKey returns the source of the key. Its errors show nothing of it.
func (r *Runtime) provisionKey(repl *caddy.Replacer) (*apiKey, error) {
	k := &apiKey{logger: r.logger}
	switch {
	case r.APIKey != "" && r.APIKeyFile != "":
		return nil, errTwoKeys
	case r.APIKey != "":
		text, err := repl.ReplaceOrErr(r.APIKey, true, true)
		if err != nil { // it would show a key with braces in it
			return nil, errors.New("api_key: a placeholder in it is unknown or empty")
		}
		if k.last, err = Bearer(text); err != nil {
			return nil, fmt.Errorf("api_key: %w", err)
		}
	case r.APIKeyFile != "":
		var err error
		if k.file, err = repl.ReplaceOrErr(r.APIKeyFile, true, true); err != nil {
			return nil, fmt.Errorf("api_key_file: %w", err)
		}
	}
	return k, nil
}

// Errors of what must be, or must not be.
var (
	errNoBaseURL = errors.New("base_url: required; where the server has its API, such as http://127.0.0.1:11434/v1")
	errTwoKeys   = errors.New("api_key and api_key_file: only one may be set")
)

// ParseBase reads a base URL: http or https, without credentials, query and fragment.
// The path has no slash at its end; where there is none, it is /v1. Errors do not show
// the URL: there may be a password in it.
func ParseBase(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "", u.Opaque != "":
		return nil, errors.New("not a URL such as http://127.0.0.1:11434/v1")
	case u.User != nil:
		return nil, errors.New("has credentials in it; use api_key")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return nil, errors.New("has a query or a fragment")
	}
	u = &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimRight(u.Path, "/")}
	if u.Path == "" {
		u.Path = apiPrefix
	}
	return u, nil
}

// Validate checks the settings. It does not ask the server.
func (r *Runtime) Validate() error {
	if r.HealthInterval < 0 {
		return fmt.Errorf("health_interval: %s is negative", time.Duration(r.HealthInterval))
	}
	for i, name := range r.Models {
		if slices.Contains(r.Models[:i], name) {
			return fmt.Errorf("models: %q is there twice", name)
		}
	}
	if len(r.Models) > worker.MaxModels || len(r.Rename) > worker.MaxModels {
		return fmt.Errorf("models, rename: more than %d", worker.MaxModels)
	}
	folded := make(map[string]bool)
	for name := range r.Rename {
		switch {
		case !fit(name):
			return fmt.Errorf("rename: %q is not a name that can be offered", name)
		case folded[fold(name)]:
			return fmt.Errorf("rename: %q is there twice; clients may write it in any case", name)
		}
		folded[fold(name)] = true
	}
	for i, route := range r.Routes {
		switch {
		case !strings.HasPrefix(route, apiPrefix+"/") || path.Clean(route) != route || strings.ContainsFunc(route, notInRoute):
			return fmt.Errorf("routes: %q is not a route such as /v1/chat/completions", route)
		case slices.Contains(r.Routes[:i], route):
			return fmt.Errorf("routes: %q is there twice", route)
		}
	}
	return nil
}

// notInRoute reports whether a route has no such character.
func notInRoute(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune(`?#%\`, c) }

// Offer implements worker.Server.
func (r *Runtime) Offer() (worker.Offer, bool) {
	v := r.view.Load()
	if v == nil || !v.up {
		return worker.Offer{}, false
	}
	return v.offer, true
}

// RetryEvery implements worker.MayBeLate: a server that is there late is found as one that
// is there again.
func (r *Runtime) RetryEvery() time.Duration { return time.Duration(r.HealthInterval) }

// PromptLimit implements worker.Runtime.
func (r *Runtime) PromptLimit() int { return wire.MaxTaskFrame }

// PromptNUL implements worker.Runtime.
func (r *Runtime) PromptNUL() bool { return true }

// request returns a request to the server, with its key. The path follows the base
// URL.
func (r *Runtime) request(ctx context.Context, method, path string) *http.Request {
	u := *r.base
	u.Path += path
	req := &http.Request{Method: method, URL: &u, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: make(http.Header)}
	if key := r.key.get(); key != "" {
		req.Header["Authorization"] = []string{key}
	}
	return req.WithContext(ctx)
}

// Interface guards
var (
	_ caddy.Provisioner = (*Runtime)(nil)
	_ caddy.Validator   = (*Runtime)(nil)
	_ worker.Server     = (*Runtime)(nil)
	_ worker.MayBeLate  = (*Runtime)(nil)
)
