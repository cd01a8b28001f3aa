// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/Agent-FM/caddy-agentfm/internal/option"
)

// UnmarshalCaddyfile reads the runtime's options; see [Runtime] for its syntax.
func (r *Runtime) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	err := option.Set{
		"base_url":        option.String(&r.BaseURL),
		"api_key":         option.Func(r.unmarshalKey),
		"api_key_file":    option.String(&r.APIKeyFile),
		"models":          option.Strings(&r.Models),
		"rename":          option.Map(&r.Rename),
		"routes":          option.Strings(&r.Routes),
		"health_interval": option.Duration(&r.HealthInterval),
	}.Unmarshal(d)
	switch {
	case err != nil:
		return err
	case r.BaseURL == "":
		return d.WrapErr(errNoBaseURL)
	case r.APIKey != "" && r.APIKeyFile != "":
		return d.WrapErr(errTwoKeys)
	}
	return nil
}

// unmarshalKey reads the key. Its errors do not show it.
func (r *Runtime) unmarshalKey(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 1 || args[0] == "" {
		return d.Err("api_key: want one key")
	}
	r.APIKey = args[0]
	if d.NextBlock(d.Nesting()) {
		return d.Err("unexpected block")
	}
	return nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*Runtime)(nil)
