// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/caddyauth"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/internal/option"
)

func init() {
	caddy.RegisterModule(&Provider{})
}

// Provider authenticates clients by the API keys of a gateway, before any
// handlers: `Authorization: Bearer KEY`. With it, the keys of the handler
// "agentfm" protect other handlers too, or rate limits can be set by user before
// that handler.
//
// A user's id is the name of the key, else `key-` and the first 8 hex digits of
// its SHA-256. The handler "agentfm" knows the rights of such a user: the models
// and the scope. Others find them in placeholders:
//
// Placeholder | Description
// ------------|------------
// `{http.auth.user.id}` | The name of the key
// `{http.auth.user.scope}` | What the key may do: `read`, `run` or `read,run`
// `{http.auth.user.models}` | The models of the key, with commas; empty for all
//
// The preflights of browsers have no key, and are refused like others; a matcher
// such as `not method OPTIONS` leaves them out.
//
// Whom it refuses gets status 401, and in `handle_errors` with the handler
// "agentfm" the status and the error that this would have given. A client address
// with 30 failures in a minute is refused, with the header `Retry-After`, until
// the minute ends. All handlers and providers of a process
// count together, and reloads do not reset the count.
type Provider struct {
	// The keys that clients may present; see the same option of the handler
	// "agentfm". Default: none.
	APIKeys []string `json:"api_keys,omitempty"`

	// A file of keys; see the same option of the handler "agentfm". One of both
	// must be given. Default: none.
	APIKeysFile string `json:"api_keys_file,omitempty"`

	checker *Checker
}

// CaddyModule returns the Caddy module information.
func (*Provider) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.authentication.providers.agentfm",
		New: func() caddy.Module { return new(Provider) },
	}
}

// Provision reads the keys.
func (p *Provider) Provision(ctx caddy.Context) error {
	err := metrics.Register(ctx.GetMetricsRegistry())
	if err != nil {
		return err
	}
	p.checker, err = New(Options{Keys: p.APIKeys, File: p.APIKeysFile, Logger: ctx.Logger()})
	return err
}

// Authenticate implements caddyauth.Authenticator. It sets the headers of the
// answer when the client is refused; the status is the handler's, always 401. What
// was wrong is left for [Refusal].
func (p *Provider) Authenticate(w http.ResponseWriter, r *http.Request) (caddyauth.User, bool, error) {
	id, err := p.checker.Check(r)
	if err != nil {
		w.Header().Set("WWW-Authenticate", realm) // belongs to the status
		err.setHeaders(w.Header())
		caddyhttp.SetVar(r.Context(), refusalVar, err)
		return caddyauth.User{}, false, nil
	}
	caddyhttp.SetVar(r.Context(), identityVar, id)
	return caddyauth.User{ID: id.ID, Metadata: id.metadata()}, true, nil
}

// UnmarshalCaddyfile sets up the provider from the directive. Syntax:
//
//	agentfm_auth [<matcher>] {
//		api_keys      <key>...
//		api_keys_file <file>
//	}
func (p *Provider) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	err := option.Set{
		"api_keys":      option.Strings(&p.APIKeys),
		"api_keys_file": option.String(&p.APIKeysFile),
	}.Unmarshal(d)
	if err == nil && p.APIKeys == nil && p.APIKeysFile == "" {
		return d.Err("want api_keys or api_keys_file")
	}
	return err
}

// Interface guards
var (
	_ caddy.Module            = (*Provider)(nil)
	_ caddy.Provisioner       = (*Provider)(nil)
	_ caddyauth.Authenticator = (*Provider)(nil)
	_ caddyfile.Unmarshaler   = (*Provider)(nil)
)
