// SPDX-License-Identifier: Apache-2.0

package process

import (
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/Agent-FM/caddy-agentfm/internal/option"
)

// UnmarshalCaddyfile reads the runtime's options; see [Runtime].
func (r *Runtime) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	err := option.Set{
		"command": option.Strings(&r.Command),
		"prompt":  option.String(&r.Prompt),
		"dir":     option.String(&r.Dir),
		"env":     option.Map(&r.Env),
	}.Unmarshal(d)
	if err == nil && len(r.Command) == 0 {
		return d.WrapErr(errNoCommand)
	}
	return err
}

// Interface guard
var _ caddyfile.Unmarshaler = (*Runtime)(nil)
