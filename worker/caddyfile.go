// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/Agent-FM/caddy-agentfm/internal/option"
)

// runtimes is the namespace of the runtimes.
const runtimes = "agentfm.runtimes"

// UnmarshalCaddyfile sets up the app from the global option. Syntax:
//
//	agentfm_worker {
//		grace_period <duration>
//		agent <key> {
//			name        <text>
//			model       <text>
//			description <text>
//			author      <text>
//			capability  <kebab-case>
//			max_tasks   <n>
//			max_cpu     <percent>|off
//			max_gpu     <percent>|off
//			timeout     <duration>
//			max_files      <n>
//			max_files_size <size>
//			allow_peers <peer id>...
//			identity    <name or file>
//			listen      <multiaddr>...
//			expose      <url> <path>...
//			runtime     <module> {
//				...
//			}
//		}
//	}
//
// There may be any number of agents.
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return option.Set{
		"grace_period": option.Duration(&a.GracePeriod),
		"agent":        option.Each(a.unmarshalAgent),
	}.Unmarshal(d)
}

// unmarshalAgent reads one agent.
func (a *App) unmarshalAgent(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) != 1 {
		return d.ArgErr()
	}
	key := args[0]
	if _, ok := a.Agents[key]; ok {
		return d.Errf("agent '%s' is already specified", key)
	}
	if a.Agents == nil {
		a.Agents = make(map[string]*Config)
	}
	c, serves := new(Config), false
	a.Agents[key] = c
	err := option.Set{
		"name":           option.String(&c.Name),
		"model":          option.String(&c.Model),
		"description":    option.String(&c.Description),
		"author":         option.String(&c.Author),
		"capability":     option.String(&c.Capability),
		"max_tasks":      option.PositiveInt(&c.MaxTasks),
		"max_cpu":        option.Percent(&c.MaxCPU),
		"max_gpu":        option.Percent(&c.MaxGPU),
		"timeout":        option.Duration(&c.Timeout),
		"max_files":      option.PositiveInt(&c.MaxFiles),
		"max_files_size": option.Size(&c.MaxFilesSize),
		"allow_peers":    option.Strings(&c.AllowPeers),
		"identity":       option.String(&c.Identity),
		"listen":         option.Strings(&c.Listen),
		"expose":         option.Func(c.unmarshalExpose),
		"runtime": option.Func(func(d *caddyfile.Dispenser) error {
			var err error
			serves, err = c.unmarshalRuntime(d)
			return err
		}),
	}.Block(d)
	switch {
	case err != nil:
		return err
	case c.RuntimeRaw == nil:
		return d.Errf("agent '%s': %w", key, errNoRuntime)
	case c.Model == "" && !serves:
		return d.Errf("agent '%s': %w", key, errNoModel)
	}
	return nil
}

// unmarshalExpose reads what is exposed.
func (c *Config) unmarshalExpose(d *caddyfile.Dispenser) error {
	var args []string
	if err := option.Strings(&args).Read(d); err != nil {
		return err
	}
	if len(args) < 2 {
		return d.Err("expose: want a URL and the paths of it that may be reached")
	}
	c.Expose = &Expose{URL: args[0], Paths: args[1:]}
	return nil
}

// unmarshalRuntime loads the runtime's own options, and reports whether it is a
// [Server].
func (c *Config) unmarshalRuntime(d *caddyfile.Dispenser) (serves bool, err error) {
	if !d.NextArg() {
		return false, d.ArgErr()
	}
	name := d.Val()
	if _, err := caddy.GetModule(runtimes + "." + name); err != nil {
		var known []string
		for _, m := range caddy.GetModules(runtimes) {
			known = append(known, m.ID.Name())
		}
		return false, d.Errf("unrecognized runtime '%s'; this Caddy has: %s", name, strings.Join(known, ", "))
	}
	mod, err := caddyfile.UnmarshalModule(d, runtimes+"."+name)
	if err != nil {
		return false, err
	}
	rt, ok := mod.(Runtime)
	if !ok {
		return false, d.Errf("module "+runtimes+".%s is not a runtime: it is a %T", name, mod)
	}
	c.RuntimeRaw = caddyconfig.JSONModuleObject(rt, "runtime", name, nil)
	return serverOf(rt) != nil, nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*App)(nil)
