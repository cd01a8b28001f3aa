// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// prepareBackoff bounds the wait before a runtime that could not be made ready
// is tried again, and how often the log says the same of it.
const prepareBackoff = time.Minute

// generation is an agent as one configuration has it.
type generation struct {
	key      string
	config   Config
	settings mesh.Settings // those of the mesh, with the agent's own identity and addresses
	allow    []peer.ID
	runtime  Runtime
	exposed  *exposed // nil for nothing
	mesh     *mesh.App
	logger   *zap.Logger

	agent  *agent // once started
	cancel context.CancelFunc
	image  atomic.Pointer[Image]
	ready  atomic.Bool                // image is set, and the runtime can run tasks
	failed atomic.Pointer[wire.Cause] // why it is not ready, where the runtime says
	doing  atomic.Pointer[progress]   // in Prepare; nil for nothing that takes long
	// lastOffer is what the back-end served last, where there is one.
	lastOffer atomic.Pointer[offered]

	// Under the agent's mutex: what was active before this one, until its reload
	// has gone well.
	fallback *generation
	alone    bool

	// life ends when no tasks come to this one any more.
	life   context.Context
	retire context.CancelFunc
}

// progress is what a runtime does before it is ready, and how far it is.
type progress struct {
	what    string
	percent float64
}

// start opens or joins the agent and makes the runtime ready in the background.
func (g *generation) start() error {
	v, _, err := agents.LoadOrNew(g.key, func() (caddy.Destructor, error) { return openAgent(g) })
	if err != nil {
		return err
	}
	a := v.(*agent)
	g.agent = a
	g.life, g.retire = context.WithCancel(a.closing)
	if err := g.settings.Fits(a.settings); err != nil {
		return err
	}
	a.Join(g)
	a.setLeaving(false)
	var ctx context.Context
	ctx, g.cancel = context.WithCancel(a.closing)
	a.services.Go(func() { g.prepare(ctx, a) })
	a.touch()
	return nil
}

// leave gives the agent back.
func (g *generation) leave() {
	a := g.agent
	if a == nil {
		return
	}
	g.agent = nil
	if g.cancel != nil {
		g.cancel()
	}
	a.leave(g)
	_, _ = agents.Delete(g.key)
}

// prepare makes the runtime ready, and tries again until it is or ctx ends. It does so
// each time that the runtime asks for it.
func (g *generation) prepare(ctx context.Context, a *agent) {
	asked := make(chan struct{}, 1)
	again := func() {
		select {
		case asked <- struct{}{}:
		default:
		}
	}
	agent := Agent{Key: g.key, Name: g.config.Name, PeerID: a.host.ID().String(), Model: g.config.Model, TasksDir: a.tasksDir, MaxDisk: diskFactor * g.config.MaxFilesSize, Changed: a.touch, Again: again, Context: g.life, Go: a.services.Go,
		Progress: func(what string, percent float64) { g.doing.Store(&progress{what, percent}) }}
	for g.prepareOnce(ctx, a, agent) {
		select {
		case <-ctx.Done():
			return
		case <-asked:
		}
	}
}

// prepareOnce makes the runtime ready; false when ctx ended before.
func (g *generation) prepareOnce(ctx context.Context, a *agent, agent Agent) bool {
	limit := prepareBackoff
	if m, ok := g.runtime.(MayBeLate); ok {
		limit = min(limit, m.RetryEvery())
	}
	var told string // to the log
	var when time.Time
	for wait := min(time.Second, limit); ; wait = min(2*wait, limit) {
		began := time.Now()
		image, err := g.runtime.Prepare(ctx, agent)
		g.doing.Store(nil)
		if ctx.Err() != nil {
			return false
		}
		if err == nil {
			g.image.Store(&image)
			g.ready.Store(true)
			a.settle()
			g.logger.Info("agent is ready", zap.String("model", g.config.Model), zap.String("image", image.Ref), zap.Duration("took", time.Since(began)))
			return true
		}
		cause := causeOf(err, wire.CauseRuntimeError)
		g.failed.Store(&cause)
		if err.Error() != told || time.Since(when) >= prepareBackoff {
			told, when = err.Error(), time.Now()
			g.logger.Error("agent is not ready", zap.Error(err), zap.String("cause", string(cause)), zap.Duration("next_try", wait))
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}
