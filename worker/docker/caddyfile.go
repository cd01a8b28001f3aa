// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/Agent-FM/caddy-agentfm/internal/option"
)

// UnmarshalCaddyfile reads the runtime's options; see [Runtime] for its syntax.
func (r *Runtime) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	err := option.Set{
		"image":           option.String(&r.Image),
		"build":           option.String(&r.Build),
		"host":            option.String(&r.Host),
		"prompt":          option.String(&r.Prompt),
		"warm":            option.PositiveInt(&r.Warm),
		"stderr":          option.String(&r.Stderr),
		"memory":          option.String(&r.Memory),
		"output":          option.String(&r.Output),
		"grace":           option.DurationOrOff(&r.Grace),
		"tmpfs":           option.String(&r.Tmpfs),
		"cpus":            option.PositiveFloat(&r.CPUs),
		"pids":            option.PositiveInt(&r.PIDs),
		"env":             option.Map(&r.Env),
		"env_file":        option.String(&r.EnvFile),
		"network":         networkOption(&r.Network),
		"secret":          option.Map(&r.Secrets),
		"mount":           readMount(&r.Mounts),
		"user":            option.String(&r.User),
		"allow_root":      option.Flag(&r.AllowRoot),
		"ulimit":          option.Map(&r.Ulimits),
		"runtime":         option.String(&r.OCIRuntime),
		"require_runtime": option.Flag(&r.RequireRuntime),
		"gpus":            option.String(&r.GPUs),
		"platform":        option.String(&r.Platform),
		"pull":            option.String(&r.Pull),
		"serve":           option.PositiveInt(&r.Serve),
		"models":          option.Strings(&r.Models),
		"rename":          option.Map(&r.Rename),
		"routes":          option.Strings(&r.Routes),
	}.Unmarshal(d)
	if err != nil {
		return err
	}
	if r.Image == "" && r.Build == "" {
		return d.WrapErr(errNoImage)
	}
	if err := r.together(); err != nil {
		return d.WrapErr(err)
	}
	return nil
}
