// SPDX-License-Identifier: Apache-2.0

// Package caddyfile registers the Caddyfile forms of the modules: the global
// options "agentfm" and "agentfm_worker", each of which is the app of that name,
// the directive "agentfm", which is the HTTP handler, and the directive
// "agentfm_auth", which is Caddy's authentication handler with our provider.
//
// "agentfm" is ordered before "reverse_proxy": after "basic_auth", "encode" and
// "handle", so that authentication comes first. "agentfm_auth" is ordered before
// "basic_auth".
package caddyfile

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/caddyauth"

	"github.com/Agent-FM/caddy-agentfm/handler"
	"github.com/Agent-FM/caddy-agentfm/handler/auth"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("agentfm", func(d *caddyfile.Dispenser, existing any) (any, error) {
		return parseApp(d, existing, "agentfm", new(mesh.App))
	})
	httpcaddyfile.RegisterGlobalOption("agentfm_worker", func(d *caddyfile.Dispenser, existing any) (any, error) {
		return parseApp(d, existing, "agentfm_worker", new(worker.App))
	})
	httpcaddyfile.RegisterHandlerDirective("agentfm", parseHandler)
	httpcaddyfile.RegisterDirectiveOrder("agentfm", httpcaddyfile.Before, "reverse_proxy")
	httpcaddyfile.RegisterHandlerDirective("agentfm_auth", parseAuth)
	httpcaddyfile.RegisterDirectiveOrder("agentfm_auth", httpcaddyfile.Before, "basic_auth")
}

// parseApp reads a global option that is an app. A global option can set one app
// only, which is why agents are not inside the option "agentfm".
func parseApp(d *caddyfile.Dispenser, existing any, name string, app caddyfile.Unmarshaler) (any, error) {
	if existing != nil {
		d.Next()
		return nil, d.Errf("global option '%s' is already specified", name)
	}
	if err := app.UnmarshalCaddyfile(d); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: name, Value: caddyconfig.JSON(app, nil)}, nil
}

// parseHandler reads the directive "agentfm".
func parseHandler(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	m := new(handler.Handler)
	return m, m.UnmarshalCaddyfile(h.Dispenser)
}

// parseAuth reads the directive "agentfm_auth".
func parseAuth(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	p := new(auth.Provider)
	if err := p.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	return caddyauth.Authentication{ProvidersRaw: caddy.ModuleMap{"agentfm": caddyconfig.JSON(p, nil)}}, nil
}
