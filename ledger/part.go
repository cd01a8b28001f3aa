// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/lifetime"
	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// ErrNotRunning says that there is no ledger, or not yet.
var ErrNotRunning = errors.New("this gateway keeps no ledger")

// Settings are those of the ledger that a reload can change.
type Settings struct {
	// Floor is the score below which a worker gets no tasks.
	Floor float64
	// Seeds are the peers whose word counts, and how far, to 1.
	Seeds map[peer.ID]float64
	// FailOpen says that workers get tasks also when the ledger cannot be read.
	FailOpen bool
	// TrustNewcomers says that workers of which little is known get tasks as all others do.
	TrustNewcomers bool
	// Witness says that this node signs the heads of others' logs.
	Witness bool
	// Witnesses are asked to sign the heads of the own log, of which Quorum must have, before
	// others are shown one.
	Witnesses []peer.ID
	Quorum    int
}

// check refuses what is wrong for the node of an id.
func (s Settings) check(self peer.ID) error {
	if slices.Contains(s.Witnesses, self) {
		return fmt.Errorf("reputation: witnesses: %s is this node itself, whose own signature says nothing; name others", self)
	}
	return nil
}

// Part is the use of the ledger by one configuration. The nil part has no ledger: everybody
// may be sent tasks.
type Part struct {
	app    *mesh.App
	dir    string // empty for the folder of the node
	s      Settings
	logger *zap.Logger
	ledger atomic.Pointer[Ledger]
}

func init() {
	mesh.ProvideLedger(func(app *mesh.App) (mesh.Service, error) { return Use(app) })
}

// Use returns the ledger of a configuration, which all that is in it shares; nil for none.
// It is for who is being provisioned.
func Use(app *mesh.App) (*Part, error) {
	r := app.ReputationSettings()
	if r.Off {
		return nil, nil
	}
	s, err := app.Service(mesh.LedgerName, func() (mesh.Service, error) {
		return New(app, r.Store, Settings{
			Floor: r.Floor, Seeds: r.Seeds, FailOpen: r.FailOpen,
			TrustNewcomers: r.TrustNewcomers, Witness: r.Witness, Witnesses: r.Witnesses, Quorum: r.Quorum,
		}, app.Logger().Named("ledger")), nil
	})
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	return s.(*Part), nil
}

// New returns the use of the ledger in a folder; an empty one stands for the node's own in
// Caddy's data folder. It opens nothing.
func New(app *mesh.App, dir string, s Settings, logger *zap.Logger) *Part {
	return &Part{app: app, dir: dir, s: s, logger: logger}
}

// Using returns the use of a ledger that is open.
func Using(l *Ledger) *Part {
	p := new(Part)
	p.ledger.Store(l)
	return p
}

// Start opens the ledger, or joins the one that is open. When it cannot be opened, the error
// keeps the configuration from being used, unless it is to be done without.
func (p *Part) Start() error {
	at, err := p.app.Attach(mesh.LedgerName, func(n mesh.Node) (mesh.Attachment, error) {
		return Open(n, p.folder(n.Host.ID()), p.s)
	})
	if err != nil && p.s.FailOpen {
		p.logger.Error("this gateway has no ledger, and trusts everybody", zap.Error(err))
		return nil
	}
	if err != nil {
		return fmt.Errorf("reputation: %w", err)
	}
	l := at.(*Ledger)
	if want := p.folder(l.store.Self()); l.dir != want {
		return fmt.Errorf("reputation: the ledger is open in %s; to move it to %s, restart", l.dir, want)
	}
	if err := p.s.check(l.store.Self()); err != nil {
		return err
	}
	p.ledger.Store(l)
	l.parts.Join(p)
	l.changed()
	return nil
}

// folder returns where the ledger of a node is.
func (p *Part) folder(id peer.ID) string {
	if p.dir != "" {
		return p.dir
	}
	return filepath.Join(caddy.AppDataDir(), "agentfm", "ledger", id.String())
}

// Cleanup ends the use. The ledger stays open as long as the node.
func (p *Part) Cleanup() error {
	if l := p.ledger.Load(); l != nil {
		l.parts.Leave(p)
		l.changed()
	}
	return nil
}

// changed has what depends on the settings made anew.
func (l *Ledger) changed() {
	l.news()
	l.witnessing()
	l.cosigning.sign()
}

// settings returns those of the newest configuration.
func (l *Ledger) settings() Settings {
	if p, ok := l.parts.Newest(); ok {
		return p.s
	}
	return l.first
}

// Ledger returns the ledger. It is for who holds a lease of the node, or it may be closed.
// The error is [ErrNotRunning] when there is none.
func (p *Part) Ledger() (*Ledger, error) {
	if p == nil {
		return nil, ErrNotRunning
	}
	if l := p.ledger.Load(); l != nil {
		return l, nil
	}
	return nil, ErrNotRunning
}

// Standing returns what this gateway thinks of a peer.
func (p *Part) Standing(id peer.ID) Standing {
	l, err := p.Ledger()
	if err != nil {
		return Standing{}
	}
	return l.Standing(id)
}

// Store returns what is kept, to read.
func (l *Ledger) Store() *store.Store { return l.store }

// Floor returns the score below which a worker gets no tasks.
func (l *Ledger) Floor() float64 { return l.settings().Floor }

// newParts returns what tells which configurations use the ledger.
func newParts() *lifetime.Lifetime[*Part] { return lifetime.New[*Part](func() {}) }

// Interface guard
var _ mesh.Service = (*Part)(nil)
