// SPDX-License-Identifier: Apache-2.0

// Package mesh is the Caddy app "agentfm": this process's node on an AgentFM
// mesh. It finds workers, keeps a directory of them, dispatches tasks to them
// and receives the files that they leave.
package mesh

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/certmagic"
	"github.com/libp2p/go-libp2p/core/crypto"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
)

func init() {
	caddy.RegisterModule(&App{})
}

// App takes part in an AgentFM mesh, a peer-to-peer network of workers that
// each run one AI agent.
//
// The app opens a libp2p node when something in the configuration uses it, such
// as the HTTP handler `agentfm`, or when it is a relay or a witness; a process
// that has only agents runs only their hosts. The node outlives configurations: a reload drops no request and no
// connection. Its identity, addresses, swarm key and discovery, and whether and how
// it is a relay, cannot change in a reload, which is then refused; they need a restart,
// as do the stores of tasks and of the ledger. Bootstrap nodes and the folder for
// artifacts can.
//
// The app emits the events `agentfm.worker_online` and `agentfm.worker_offline`
// when a worker comes or goes, with the data `peer_id`, `agent_name` and `model`.
// The last two are what a stranger says of itself. It emits `agentfm.entry_appended`,
// with a `kind` beside these, when the ledger gets an entry that speaks of a known worker.
//
// The node's identity is an Ed25519 key that is kept in Caddy's storage, apart
// for each instance of Caddy. Back it up: a peer id is a reputation.
type App struct {
	// Mesh says how this process takes part in the mesh. The agents of the app
	// `agentfm_worker` take part the same way.
	Mesh *Config `json:"mesh,omitempty"`

	// Artifacts is the folder in which the files that agents leave arrive, as
	// `<task id>.zip`. Default: agentfm/artifacts in Caddy's data folder.
	Artifacts string `json:"artifacts,omitempty"`

	// ArtifactLimits say how many of them are kept.
	ArtifactLimits *ArtifactLimits `json:"artifact_limits,omitempty"`

	// Tasks says how tasks are kept that clients submit without waiting for the answer.
	Tasks *Tasks `json:"tasks,omitempty"`

	// Reputation says how the ledger is kept of what this gateway and others say of
	// workers.
	Reputation *Reputation `json:"reputation,omitempty"`

	settings   Settings
	artifacts  *artifactFolder
	tasks      Tasks
	reputation ReputationSettings
	services   map[string]Service
	used       bool // something needs the node; set while provisioning
	held       bool // this configuration has a reference to give back
	node       atomic.Pointer[node]
	storage    certmagic.Storage
	ctx        caddy.Context
	logger     *zap.Logger

	caddyEvents *caddyevents.App
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "agentfm",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision resolves the settings. It opens nothing.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx, a.logger, a.storage = ctx, ctx.Logger(), ctx.Storage()
	var err error
	if a.settings, err = a.Mesh.resolve(a.logger); err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	dir := filepath.Join(caddy.AppDataDir(), "agentfm", "artifacts")
	if a.Artifacts != "" {
		if dir, err = caddy.NewReplacer().ReplaceOrErr(a.Artifacts, true, true); err != nil {
			return fmt.Errorf("artifacts: %w", err)
		}
	}
	if a.artifacts, err = newArtifactFolder(dir, a.ArtifactLimits); err != nil {
		return fmt.Errorf("artifact_limits: %w", err)
	}
	if a.tasks, err = a.Tasks.resolve(); err != nil {
		return fmt.Errorf("tasks: %w", err)
	}
	if a.reputation, err = a.Reputation.resolve(); err != nil {
		return fmt.Errorf("reputation: %w", err)
	}
	if err := metrics.Register(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	if err := a.serveOthers(); err != nil {
		return err
	}
	return a.hook(ctx)
}

// serveOthers says that a relay or a witness needs the node, and its ledger unless that is
// off, also when no site does.
func (a *App) serveOthers() error {
	if a.settings.Relay == nil && !a.reputation.Witness {
		return nil
	}
	a.Use()
	if a.reputation.Off {
		return nil
	}
	_, err := useLedger(a)
	return err
}

// useLedger makes the service of the ledger, which is of a package that this one does not
// know. It is there once that package is.
var useLedger = func(*App) (Service, error) {
	return nil, errors.New("this program has no ledger")
}

// LedgerName is the name of the ledger's service and of its attachment.
const LedgerName = "ledger"

// errLedgerOpen refuses a configuration without a ledger for a node that has one: it would go
// on saying who gets tasks.
var errLedgerOpen = errors.New("mesh: reputation: the ledger is open; to switch it off, restart")

// ProvideLedger says how the service of the ledger is made.
func ProvideLedger(use func(*App) (Service, error)) { useLedger = use }

// Use says that the configuration needs the node. Modules call it when they are
// provisioned; without it, Start opens nothing.
func (a *App) Use() { a.used = true }

// Settings returns the resolved settings, after Provision.
func (a *App) Settings() Settings { return a.settings }

// Logger returns the app's logger, after Provision.
func (a *App) Logger() *zap.Logger { return a.logger }

// Identity returns the key of that name; see [LoadIdentity].
func (a *App) Identity(name string) (crypto.PrivKey, error) {
	return LoadIdentity(a.ctx, a.storage, name, a.logger)
}

// Start opens the node, or joins the one that is open.
func (a *App) Start() error {
	if !a.used {
		return nil
	}
	if err := a.artifacts.open(); err != nil {
		return err
	}
	v, _, err := nodes.LoadOrNew(nodeKey, func() (caddy.Destructor, error) {
		return openNode(a.settings, func() (crypto.PrivKey, error) { return a.Identity(a.settings.Identity) }, a.logger)
	})
	if err != nil {
		return fmt.Errorf("opening mesh node: %w", err)
	}
	a.held = true
	n := v.(*node)
	if err := a.settings.Fits(n.settings); err != nil {
		return fmt.Errorf("mesh: %w", err)
	}
	if a.reputation.Off && n.hasAttached(LedgerName) {
		return errLedgerOpen
	}
	a.node.Store(n)
	n.Join(a)
	if err := a.startServices(); err != nil {
		return err
	}
	n.directory.open() // a ledger says by now who gets no tasks
	return nil
}

// Stop does nothing: the HTTP app may still be serving, and after a reload it
// still is. Cleanup gives the node back.
func (a *App) Stop() error { return nil }

// Cleanup gives the node back. It also runs for an app that never started.
func (a *App) Cleanup() error {
	err := a.cleanUpServices()
	if n := a.node.Load(); n != nil {
		n.Leave(a)
		n.emitter.CompareAndSwap(a, nil)
	}
	if !a.held {
		return err
	}
	a.held = false
	_, nodeErr := nodes.Delete(nodeKey)
	return errors.Join(err, nodeErr)
}

// Lease gives access to the node for the time of one request. It returns
// [ErrNotRunning] before the app has started and after its end: a client that asks meanwhile
// is told to ask again, and not that there are no workers.
func (a *App) Lease() (*Lease, error) {
	n := a.node.Load()
	if n == nil || n.directory.opening.Load() || !n.Lifetime.Lease() {
		return nil, ErrNotRunning
	}
	return &Lease{app: a, node: n}, nil
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
