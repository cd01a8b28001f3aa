// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/lifetime"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// agents are the open agents by key. They must outlive configurations: a reload
// must not end a running task, and an agent has one identity and one address.
var agents = caddy.NewUsagePool()

// live are the agents that are open, also those that only wait for their last
// tasks and are out of the pool.
var live = struct {
	sync.Mutex
	byKey map[string]*agent
}{byKey: make(map[string]*agent)}

// opening serialises the opening of agents.
var opening sync.Mutex

// killWait is how long stopped tasks may take to be gone.
const killWait = 30 * time.Second

// Why tasks are stopped, as causes of their context.
var (
	errShutDown    = errors.New("the worker is shutting down")
	errGatewayGone = errors.New("the gateway has gone")
)

// agent is one peer of the mesh that runs tasks.
type agent struct {
	*lifetime.Lifetime[*generation]
	key      string
	settings mesh.Settings
	host     *mesh.Host
	tasksDir string
	topic    *pubsub.Topic
	http     *http.Server  // of mesh protocol 2
	conns    *conns        // of that
	packing  turns         // of gateways that fetch files
	changed  chan struct{} // the telemetry is out of date

	isReady    chan struct{} // closed when the agent takes tasks for the first time
	firstReady func()

	active   atomic.Pointer[generation] // whose runtime takes new tasks: the newest that is ready
	mu       sync.Mutex
	lastHalf time.Time           // when an answer ended of which the gateway does not tell that it has it
	leaving  bool                // takes no tasks any more
	tasks    map[string]*running // by task id
	kept     map[string]*kept    // the same
	left     []*generation       // that may still get tasks
	working  sync.WaitGroup      // running tasks; added to under mu while not leaving
	base     context.Context     // of tasks
	kill     context.CancelCauseFunc
	closing  context.Context // of everything else
	cancel   context.CancelFunc
	services sync.WaitGroup
}

// openAgent opens the agent of g, or takes back the one that is waiting for its
// last tasks when it is the same.
func openAgent(g *generation) (*agent, error) {
	opening.Lock()
	defer opening.Unlock()
	live.Lock()
	old := live.byKey[g.key]
	live.Unlock()
	if old != nil {
		if g.settings.Fits(old.settings) == nil && old.Revive() {
			return old, nil
		}
		old.Close()
	}
	key, err := g.mesh.Identity(g.config.Identity)
	if err != nil {
		return nil, err
	}
	a := &agent{
		key: g.key, settings: g.settings,
		changed: make(chan struct{}, 1),
		tasks:   make(map[string]*running), kept: make(map[string]*kept), conns: newConns(),
	}
	if a.tasksDir, err = filepath.Abs(filepath.Join(caddy.AppDataDir(), "agentfm", "tasks", g.key)); err != nil {
		return nil, err
	}
	a.isReady = make(chan struct{})
	a.firstReady = sync.OnceFunc(func() { close(a.isReady) })
	a.base, a.kill = context.WithCancelCause(context.Background())
	a.closing, a.cancel = context.WithCancel(context.Background())
	a.Lifetime = lifetime.New[*generation](a.shut)
	if a.host, err = mesh.NewHost(a.closing, mesh.RoleWorker, key, a.settings.Listen, a.settings); err != nil {
		a.cancel()
		return nil, err
	}
	// The identity is this host's alone from here on, and so is what an earlier
	// process has left here. Not all of it need be ours to remove.
	a.remove(a.tasksDir)
	if err := os.MkdirAll(a.tasksDir, 0o700); err != nil {
		a.Close()
		return nil, fmt.Errorf("making the folder for tasks: %w", err)
	}
	if err := a.begin(); err != nil {
		a.Close()
		return nil, err
	}
	live.Lock()
	live.byKey[g.key] = a
	live.Unlock()
	g.logger.Info("agent is on the mesh",
		zap.Stringer("peer", a.host.ID()), zap.Stringers("listen", a.host.Bound()))
	return a, nil
}

// begin starts the agent's work on the mesh.
func (a *agent) begin() error {
	ps, err := mesh.NewPubSub(a.closing, a.host, func(p peer.ID) bool {
		return slices.ContainsFunc(a.neighbours(), func(n peer.AddrInfo) bool { return n.ID == p })
	})
	if err != nil {
		return fmt.Errorf("starting pubsub: %w", err)
	}
	// joined, not subscribed: receiving all telemetry of a large mesh costs a core
	if a.topic, err = ps.Join(wire.TelemetryTopic); err != nil {
		return err
	}
	events, err := a.topic.EventHandler()
	if err != nil {
		return err
	}
	a.host.SetStreamHandler(wire.TaskProtocol, a.serve)
	if a.http, err = a.listen(); err != nil {
		return fmt.Errorf("listening for requests: %w", err)
	}
	a.host.Network().Notify(&network.NotifyBundle{DisconnectedF: a.disconnected})
	a.services.Go(func() {
		for { // a new listener is told at once
			if _, err := events.NextPeerEvent(a.closing); err != nil {
				return
			}
			a.touch()
		}
	})
	a.services.Go(func() { a.publish(a.closing) })
	a.services.Go(func() { a.host.KeepConnected(a.closing, a.neighbours, a.log) })
	a.services.Go(func() { a.host.Discover(a.closing, mesh.RoleWorker, a.settings, a.log) })
	return nil
}

// remove removes a folder of the agent's tasks.
func (a *agent) remove(dir string) {
	if err := removeAll(dir); err != nil {
		a.log().Warn("a folder of a task could not be removed", zap.String("dir", dir), zap.Error(err))
	}
}

// neighbours returns whom the agent stays connected to: the bootstrap nodes and
// the gateway of this process.
func (a *agent) neighbours() []peer.AddrInfo {
	var out []peer.AddrInfo
	if g, ok := a.Newest(); ok {
		out = append(out, g.settings.Bootstrap...)
	}
	if node, ok := mesh.LocalNode(); ok {
		out = append(out, node)
	}
	return out
}

// settle makes the newest configuration the active one, when its runtime is
// ready. Until then the one before it goes on, also when it has left already.
func (a *agent) settle() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if g, ok := a.Newest(); ok && g.ready.Load() && g != a.active.Load() {
		before := a.active.Swap(g)
		a.firstReady()
		if !g.alone { // its reload may still fail
			g.fallback = before
		}
	}
	a.retire()
	a.touch()
}

// leave takes a configuration out. When it was the newest, its reload failed, and
// what was active before it is so again.
func (a *agent) leave(g *generation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	newest, _ := a.Newest()
	a.Leave(g)
	active := a.active.Load()
	switch before, ok := a.Newest(); {
	case newest == g && active == g && ok && before.ready.Load():
		a.active.Store(before)
	case newest == g && active == g && ok:
		a.active.Store(g.fallback)
	case newest != g && ok: // the reload went well
		newest.alone, newest.fallback = true, nil
	}
	a.left = append(a.left, g)
	a.retire()
	a.touch()
}

// retire ends the lives of the configurations that have left and get no tasks.
func (a *agent) retire() {
	active := a.active.Load()
	newest, _ := a.Newest()
	a.left = slices.DeleteFunc(a.left, func(g *generation) bool {
		if g == active || active != nil && g == active.fallback || newest != nil && g == newest.fallback {
			return false
		}
		g.retire()
		return true
	})
}

// setLeaving says whether the agent takes no tasks any more.
func (a *agent) setLeaving(leaving bool) {
	a.mu.Lock()
	a.leaving = leaving
	a.mu.Unlock()
	a.conns.leave(leaving)
	a.touch()
}

// touch says that the telemetry is out of date.
func (a *agent) touch() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// log returns the logger of the newest configuration.
func (a *agent) log() *zap.Logger {
	if g, ok := a.Newest(); ok {
		return g.logger
	}
	return caddy.Log().Named("agentfm_worker").With(caddyAgent(a.key))
}

// Destruct implements caddy.Destructor. Running tasks finish; a reload does not
// wait for them.
func (a *agent) Destruct() error {
	if caddy.Exiting() {
		a.Close()
		return nil
	}
	a.setLeaving(true)
	var last time.Time
	a.mu.Lock()
	for _, t := range a.tasks {
		if t.end.After(last) {
			last = t.end
		}
	}
	a.mu.Unlock()
	a.Drain(max(time.Until(last), 0) + mesh.ArtifactTimeout)
	return nil
}

// shutDown ends the agent when Caddy exits: it takes no new tasks and says so,
// running ones may go on for the grace period, then they are stopped.
func (a *agent) shutDown(grace time.Duration) {
	a.setLeaving(true)
	idle := make(chan struct{})
	go func() {
		a.working.Wait()
		close(idle)
	}()
	select {
	case <-idle:
	case <-time.After(grace):
		a.log().Info("stopping running tasks: the grace period is over")
		a.kill(errShutDown)
		a.conns.giveUp()
		select {
		case <-idle:
		case <-time.After(killWait):
			a.log().Error("tasks did not stop")
		}
	}
	a.Close()
}

// shut closes the agent. It runs once, through the agent's Lifetime.
func (a *agent) shut() {
	a.setLeaving(true)
	a.kill(errShutDown)
	a.conns.giveUp()
	done := make(chan struct{})
	go func() {
		a.working.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(killWait):
		a.log().Error("tasks did not stop")
	}
	// the end of an answer may still be on its way to a gateway that cannot tell
	a.mu.Lock()
	last := a.lastHalf
	a.mu.Unlock()
	time.Sleep(min(finishHalfTime-time.Since(last), finishHalfTime))
	a.cancel()
	if a.http != nil {
		_ = a.http.Close()
	}
	_ = a.host.Close()
	a.services.Wait()
	live.Lock()
	if live.byKey[a.key] == a {
		delete(live.byKey, a.key)
	}
	live.Unlock()
}

// closeAll ends the agents that are still open when the process exits: those
// that were removed from the configuration and had tasks to finish.
func closeAll(context.Context) {
	live.Lock()
	var rest []*agent
	for _, a := range live.byKey {
		rest = append(rest, a)
	}
	live.Unlock()
	var closing sync.WaitGroup
	for _, a := range rest {
		closing.Go(func() { a.shutDown(defaultGracePeriod) })
	}
	closing.Wait()
}

// caddyAgent is the log field that names an agent.
func caddyAgent(key string) zap.Field { return zap.String("agent", key) }

// Interface guard
var _ caddy.Destructor = (*agent)(nil)
