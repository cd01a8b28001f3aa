// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/Agent-FM/caddy-agentfm/internal/option"
	"github.com/Agent-FM/caddy-agentfm/router"
	"github.com/Agent-FM/caddy-agentfm/router/policy"
)

// UnmarshalCaddyfile sets up the handler from the directive. Syntax:
//
//	agentfm [<matcher>] {
//		api_keys           <key>...
//		api_keys_file      <file>
//		trust_caddy_auth
//		allow_unauthenticated
//		allow_origins      <origin>...
//		policy             least_loaded|power_of_two|round_robin|sticky [{ header <name>... }]
//		retries            <n>
//		queue {
//			size <n>
//			wait <duration>
//		}
//		first_byte_timeout <duration>
//		task_timeout       <duration>
//		heartbeat          <duration>|off
//		body_limit         <size>
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return option.Set{
		"api_keys":              option.Strings(&h.APIKeys),
		"policy":                option.Func(h.unmarshalPolicy),
		"api_keys_file":         option.String(&h.APIKeysFile),
		"trust_caddy_auth":      option.Flag(&h.TrustCaddyAuth),
		"allow_origins":         option.Strings(&h.AllowOrigins),
		"retries":               option.Count(&h.Retries),
		"queue":                 option.Func(h.unmarshalQueue),
		"first_byte_timeout":    option.Duration(&h.FirstByteTimeout),
		"task_timeout":          option.Duration(&h.TaskTimeout),
		"heartbeat":             option.DurationOrOff(&h.Heartbeat),
		"body_limit":            option.Size(&h.BodyLimit),
		"allow_unauthenticated": option.Flag(&h.AllowUnauthenticated),
	}.Unmarshal(d)
}

// unmarshalPolicy reads the name of a selection policy, and its block.
func (h *Handler) unmarshalPolicy(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.ArgErr()
	}
	name := d.Val()
	id := policy.Namespace + "." + name
	if _, err := caddy.GetModule(id); err != nil {
		return d.Errf("policy: '%s' is not a selection policy", name)
	}
	mod, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return err
	}
	if _, ok := mod.(router.Selector); !ok {
		return d.Errf("policy: module %s is not a selection policy", id)
	}
	h.PolicyRaw = caddyconfig.JSONModuleObject(mod, "policy", name, nil)
	return nil
}

// unmarshalQueue reads the queue block.
func (h *Handler) unmarshalQueue(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	h.Queue = new(Queue)
	return option.Set{
		"size": option.PositiveInt(&h.Queue.Size),
		"wait": option.Duration(&h.Queue.Wait),
	}.Block(d)
}
