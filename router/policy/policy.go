// SPDX-License-Identifier: Apache-2.0

// Package policy holds the selection policies as guest modules of the namespace
// `agentfm.selection_policies`. Other modules of this namespace work as well: they
// implement [router.Selector].
package policy

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/Agent-FM/caddy-agentfm/internal/option"
	"github.com/Agent-FM/caddy-agentfm/router"
)

func init() {
	caddy.RegisterModule(LeastLoaded{})
	caddy.RegisterModule(PowerOfTwo{})
	caddy.RegisterModule(RoundRobin{})
	caddy.RegisterModule(&Sticky{})
}

// Namespace is where selection policies are registered.
const Namespace = "agentfm.selection_policies"

// LeastLoaded sends a request to the worker with the smallest share of its slots
// in use, as it announced and as this gateway has sent it since; among those to
// the one with the lowest CPU use, and to equals in turn. It is the default.
type LeastLoaded struct{ router.LeastLoaded }

// PowerOfTwo sends a request to the less loaded of two workers that are taken at
// random. It suits many gateways that share a mesh: they do not all choose the
// worker that was idle a second ago.
type PowerOfTwo struct{ router.PowerOfTwo }

// RoundRobin sends a request to the worker that was chosen the longest time ago.
type RoundRobin struct{ router.RoundRobin }

// Sticky sends the requests of one session to one worker, whose caches are warm
// for it, as long as that worker has a free slot and is not much busier than the
// others. A session is what the client names in a header. Without one, the
// requests of a conversation belong together: those whose messages begin the
// same, up to the first of the user, or whose prompts do.
type Sticky struct {
	router.Sticky `json:"-"`

	// The request headers that name the session; the first that a request has
	// decides. Default: X-AgentFM-Session.
	Headers []string `json:"headers,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (LeastLoaded) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: Namespace + ".least_loaded", New: func() caddy.Module { return new(LeastLoaded) }}
}

// CaddyModule returns the Caddy module information.
func (PowerOfTwo) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: Namespace + ".power_of_two", New: func() caddy.Module { return new(PowerOfTwo) }}
}

// CaddyModule returns the Caddy module information.
func (RoundRobin) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: Namespace + ".round_robin", New: func() caddy.Module { return new(RoundRobin) }}
}

// CaddyModule returns the Caddy module information.
func (*Sticky) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: Namespace + ".sticky", New: func() caddy.Module { return new(Sticky) }}
}

// Provision sets the default.
func (s *Sticky) Provision(caddy.Context) error {
	if len(s.Headers) == 0 {
		s.Headers = []string{"X-AgentFM-Session"}
	}
	return nil
}

// headerChars are what the name of a header is made of (RFC 9110, section 5.6.2).
const headerChars = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

// Validate refuses names that no header can have.
func (s *Sticky) Validate() error {
	for _, name := range s.Headers {
		if name == "" || strings.ContainsFunc(name, func(r rune) bool { return !strings.ContainsRune(headerChars, r) }) {
			return fmt.Errorf("'%s' is not the name of a header", name)
		}
	}
	return nil
}

// Session returns the session that a request names; empty for none.
func (s *Sticky) Session(h http.Header) string {
	for _, name := range s.Headers {
		if v := h.Get(name); v != "" {
			return v
		}
	}
	return ""
}

// UnmarshalCaddyfile reads the policy's name, which is all there is.
func (LeastLoaded) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return option.Set{}.Unmarshal(d)
}

// UnmarshalCaddyfile reads the policy's name, which is all there is.
func (PowerOfTwo) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return option.Set{}.Unmarshal(d)
}

// UnmarshalCaddyfile reads the policy's name, which is all there is.
func (RoundRobin) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return option.Set{}.Unmarshal(d)
}

// UnmarshalCaddyfile sets up the policy. Syntax:
//
//	sticky {
//		header <name>...
//	}
func (s *Sticky) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return option.Set{"header": option.Strings(&s.Headers)}.Unmarshal(d)
}

// Interface guards
var (
	_ router.Selector       = LeastLoaded{}
	_ router.Selector       = PowerOfTwo{}
	_ router.Selector       = RoundRobin{}
	_ router.Selector       = (*Sticky)(nil)
	_ caddy.Provisioner     = (*Sticky)(nil)
	_ caddy.Validator       = (*Sticky)(nil)
	_ caddyfile.Unmarshaler = LeastLoaded{}
	_ caddyfile.Unmarshaler = PowerOfTwo{}
	_ caddyfile.Unmarshaler = RoundRobin{}
	_ caddyfile.Unmarshaler = (*Sticky)(nil)
)
