// SPDX-License-Identifier: Apache-2.0

// Package worker is the Caddy app "agentfm_worker": agents of this process that
// take tasks from an AgentFM mesh and run them.
package worker

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh"
)

func init() {
	caddy.RegisterModule(&App{})
	caddy.OnExit(closeAll)
}

// defaultGracePeriod is how long running tasks may go on when Caddy exits.
const defaultGracePeriod = 10 * time.Second

// App runs agents and offers them to an AgentFM mesh. The app `agentfm` says
// which mesh; a gateway in the same process is connected to directly.
//
// Each agent is a peer of its own: it has an identity, announces its model, its
// load and its hardware every two seconds, and takes tasks up to its limits.
//
// Agents and their running tasks outlive a reload. The tasks of an agent whose
// settings changed finish as they began; new ones run with the new settings, as
// soon as the new runtime is ready. When an agent is removed, its running tasks
// finish and then it leaves the mesh. When Caddy exits, agents take no new
// tasks, and running ones are stopped after the grace period.
type App struct {
	// Agents are the agents of this process by a name of your choice. The name
	// is part of where the agent's identity is kept: renaming an agent gives it
	// a new peer id.
	Agents map[string]*Config `json:"agents,omitempty"`

	// GracePeriod is how long running tasks may go on when Caddy exits.
	// Default: 10s.
	GracePeriod caddy.Duration `json:"grace_period,omitempty"`

	generations []*generation
	stopping    sync.Once
	stopped     chan struct{}
	logger      *zap.Logger
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "agentfm_worker",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision reads the settings of the agents. It opens nothing.
func (a *App) Provision(ctx caddy.Context) error {
	a.logger, a.stopped = ctx.Logger(), make(chan struct{})
	if a.GracePeriod == 0 {
		a.GracePeriod = caddy.Duration(defaultGracePeriod)
	}
	app, err := ctx.App("agentfm")
	if err != nil {
		return fmt.Errorf("loading the app agentfm: %w", err)
	}
	for key, c := range a.Agents {
		g, err := c.provision(ctx, key, app.(*mesh.App))
		if err != nil {
			return fmt.Errorf("agent %s: %w", key, err)
		}
		a.generations = append(a.generations, g)
	}
	// Caddy stops its apps one after the other, in any order, and the HTTP app
	// may wait for requests that our own agents are serving.
	events, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("loading the app events: %w", err)
	}
	return events.(*caddyevents.App).On("stopping", onStopping{a})
}

// Validate checks the settings of the agents.
func (a *App) Validate() error {
	for _, g := range a.generations {
		if err := g.validate(); err != nil {
			return fmt.Errorf("agent %s: %w", g.key, err)
		}
	}
	return nil
}

// Start opens the agents, or joins those that are open.
func (a *App) Start() error {
	for _, g := range a.generations {
		if err := g.start(); err != nil {
			return fmt.Errorf("agent %s: %w", g.key, err)
		}
	}
	return nil
}

// Stop ends the agents when Caddy exits. After a reload they belong to the next
// configuration; Cleanup gives them back.
func (a *App) Stop() error {
	if caddy.Exiting() {
		a.shutDown()
		<-a.stopped
	}
	return nil
}

// shutDown begins to end the agents, once.
func (a *App) shutDown() {
	a.stopping.Do(func() {
		go func() {
			defer close(a.stopped)
			var ending sync.WaitGroup
			for _, g := range a.generations {
				if g.agent != nil {
					ending.Go(func() { g.agent.shutDown(time.Duration(a.GracePeriod)) })
				}
			}
			ending.Wait()
		}()
	})
}

// Cleanup gives the agents back. It also runs for an app that never started.
func (a *App) Cleanup() error {
	for _, g := range a.generations {
		g.leave()
	}
	return nil
}

// onStopping begins the end of the agents as soon as Caddy begins to exit.
type onStopping struct{ app *App }

// Handle implements caddyevents.Handler.
func (o onStopping) Handle(context.Context, caddy.Event) error {
	if caddy.Exiting() {
		o.app.shutDown()
	}
	return nil
}

// Interface guards
var (
	_ caddy.App           = (*App)(nil)
	_ caddy.Provisioner   = (*App)(nil)
	_ caddy.Validator     = (*App)(nil)
	_ caddy.CleanerUpper  = (*App)(nil)
	_ caddyevents.Handler = onStopping{}
)
