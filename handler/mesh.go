// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"fmt"

	"github.com/caddyserver/caddy/v2"

	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// useMesh returns the mesh of this configuration and says that it is needed.
func useMesh(ctx caddy.Context) (gateway, error) {
	mod, err := ctx.App("agentfm")
	if err != nil {
		return nil, fmt.Errorf("loading app agentfm: %w", err)
	}
	app, ok := mod.(*mesh.App)
	if !ok {
		return nil, fmt.Errorf("app agentfm is a %T", mod)
	}
	app.Use()
	return meshGateway{app}, nil
}

// meshGateway makes a gateway of the app. Go wants the methods spelled out:
// theirs return their own types, not our interfaces.
type meshGateway struct{ app *mesh.App }

// Lease implements gateway.
func (g meshGateway) Lease() (lease, error) {
	l, err := g.app.Lease()
	if err != nil {
		return nil, err
	}
	return meshLease{l}, nil
}

// meshLease makes a lease of the app's.
type meshLease struct{ *mesh.Lease }

// Dispatch implements lease.
func (l meshLease) Dispatch(ctx context.Context, c mesh.Call) (run, error) {
	r, err := l.Lease.Dispatch(ctx, c)
	if err != nil {
		return nil, err
	}
	return r, nil
}
