// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// useMesh returns the mesh of this configuration and says that it is needed.
func useMesh(ctx caddy.Context) (*mesh.App, error) {
	mod, err := ctx.App("agentfm")
	if err != nil {
		return nil, fmt.Errorf("loading app agentfm: %w", err)
	}
	app, ok := mod.(*mesh.App)
	if !ok {
		return nil, fmt.Errorf("app agentfm is a %T", mod)
	}
	app.Use()
	return app, nil
}

// useTasks returns the task store of this configuration, which its sites share.
func useTasks(app *mesh.App, logger *zap.Logger) (*tasks.Part, error) {
	s, err := app.Service("tasks", func() (mesh.Service, error) {
		settings := app.TaskSettings()
		return tasks.New(tasks.Options{
			Dir: settings.Store, Cluster: (*tasks.Cluster)(settings.NATS), Secrets: settings.WebhookSecrets(), InFlight: settings.InFlight,
			Bounds: tasks.Bounds{
				Attempts: settings.MaxAttempts, Queue: time.Duration(settings.QueueTimeout),
				Run: time.Duration(settings.RunTimeout), Total: time.Duration(settings.Timeout),
			},
			Logger: logger.Named("tasks"),
		})
	})
	if err != nil {
		return nil, fmt.Errorf("tasks: %w", err)
	}
	return s.(*tasks.Part), nil
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
