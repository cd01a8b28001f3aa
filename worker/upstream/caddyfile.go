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
		"api_key":         option.Key(&r.APIKey),
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

// Interface guard
var _ caddyfile.Unmarshaler = (*Runtime)(nil)
