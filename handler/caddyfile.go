// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/Agent-FM/caddy-agentfm/internal/option"
)

// UnmarshalCaddyfile sets up the handler from the directive. Syntax:
//
//	agentfm [<matcher>] {
//		api_keys      <key>...
//		api_keys_file <file>
//		trust_caddy_auth
//		allow_origins <origin>...
//		retries       <n>
//		body_limit    <size>
//		allow_unauthenticated
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return option.Set{
		"api_keys":              option.Strings(&h.APIKeys),
		"api_keys_file":         option.String(&h.APIKeysFile),
		"trust_caddy_auth":      option.Flag(&h.TrustCaddyAuth),
		"allow_origins":         option.Strings(&h.AllowOrigins),
		"retries":               option.Count(&h.Retries),
		"body_limit":            option.Size(&h.BodyLimit),
		"allow_unauthenticated": option.Flag(&h.AllowUnauthenticated),
	}.Unmarshal(d)
}
