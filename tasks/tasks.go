// SPDX-License-Identifier: Apache-2.0

// Package tasks keeps tasks that outlive the request that submitted them, and the
// process: their state, their output, and the webhooks that tell of their end. A task
// that was accepted is on disk; it ends in exactly one of its final states.
package tasks

import (
	"cmp"
	"context"
	"fmt"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/webhook"
)

// Numbers of tasks that may be queued or running at one time.
const (
	DefaultInFlight = 256
	MaxInFlight     = 1_000_000
)

// Options are the settings of a [Part].
type Options struct {
	// Dir is the folder of the store; or else Cluster is where it is. It cannot change
	// in a reload.
	Dir     string
	Cluster *Cluster
	// Secrets sign the webhooks of owners that have no secret of their own: the newest,
	// and the one before it, where receivers still have that. None for no signature.
	Secrets []string
	// Bounds are the greatest that a task may have, and those of a task whose client asks
	// for none. What is left open is [MaxLost] and [QueueLimit], or no bound.
	Bounds Bounds
	// InFlight is how many tasks may be queued or running; 0 for [DefaultInFlight].
	InFlight int
	Logger   *zap.Logger
}

// Part is the use of the task store by one configuration. Its sites are registered while
// it is provisioned; it is started and cleaned up once.
type Part struct {
	options Options
	signer  *webhook.Signer
	sites   []site
	held    bool // there is a reference to give back
	service atomic.Pointer[service]
}

// site is a runner by the settings that it has.
type site struct {
	name string
	Runner
}

// New returns the use of the store. It opens nothing. The error is of the options.
func New(o Options) (*Part, error) {
	if o.InFlight == 0 {
		o.InFlight = DefaultInFlight
	}
	if o.InFlight < 0 || o.InFlight > MaxInFlight {
		return nil, fmt.Errorf("in_flight: want a number from 1 to %d", MaxInFlight)
	}
	signer, err := webhook.NewSigner(o.Secrets...)
	if err != nil {
		return nil, fmt.Errorf("webhook_secret: %w", err)
	}
	if err := o.Bounds.check(); err != nil {
		return nil, err
	}
	if o.Cluster != nil {
		if err := o.Cluster.check(); err != nil {
			return nil, err
		}
	}
	return &Part{options: o, signer: signer}, nil
}

// Register adds a site. name stands for its settings: after a restart, the tasks that it
// took are run by a site of that name, or else by the first that there is.
func (p *Part) Register(name string, r Runner) { p.sites = append(p.sites, site{name, r}) }

// Start opens the store, or joins the one that is open.
func (p *Part) Start() error {
	at := place{p.options.Dir, p.options.Cluster}
	v, _, err := services.LoadOrNew(serviceKey, func() (caddy.Destructor, error) {
		return openService(at, p.options.Logger, defaultLimits)
	})
	if err != nil {
		return err
	}
	p.held = true
	s := v.(*service)
	if !s.place.is(at) {
		return fmt.Errorf("tasks: the store is open in %s; to move it to %s, or to change how it is reached, restart", s.place, at)
	}
	p.service.Store(s)
	s.Join(p)
	return nil
}

// Cleanup gives the store back. It also runs for a part that never started.
func (p *Part) Cleanup() error {
	if s := p.service.Load(); s != nil {
		s.Leave(p)
	}
	if !p.held {
		return nil
	}
	p.held = false
	_, err := services.Delete(serviceKey)
	return err
}

// runner returns the site of a name, or the first.
func (p *Part) runner(name string) Runner {
	for _, s := range p.sites {
		if s.name == name {
			return s
		}
	}
	if len(p.sites) == 0 {
		return nil
	}
	return p.sites[0]
}

// signerFor returns who signs the webhooks of a task: with the secret of its owner, or else
// that of the configuration. An owner is the same at all sites.
func (p *Part) signerFor(r *Record) *webhook.Signer {
	if first := p.runner(r.Site); first != nil {
		if s := first.Signer(r.Owner); s != nil {
			return s
		}
	}
	for _, site := range p.sites {
		if s := site.Signer(r.Owner); s != nil {
			return s
		}
	}
	return p.signer
}

// use gives access to the store, until the function that it returns is called. The nil
// part has none.
func (p *Part) use() (*session, func(), error) {
	if p == nil {
		return nil, nil, ErrNotRunning
	}
	s := p.service.Load()
	if s == nil || !s.Lease() {
		return nil, nil, ErrNotRunning
	}
	now := s.current.Load()
	if now == nil {
		s.Release()
		if why := s.trouble.Load(); why != nil {
			return nil, nil, fmt.Errorf("%w: %w", ErrNotRunning, *why)
		}
		return nil, nil, ErrNotRunning
	}
	return now, s.Release, nil
}

// Ready reports whether tasks can be accepted and looked up. The nil part has nothing to
// be ready.
func (p *Part) Ready() error {
	if p == nil {
		return nil
	}
	now, release, err := p.use()
	if err != nil {
		return err
	}
	defer release()
	return now.roomy()
}

// Submission is a task to be accepted.
type Submission struct {
	// ID is one of [NewID], which a [Key] has; empty for a new one.
	ID          string
	Owner, Site string
	Target      Target
	Bounds      Bounds // as [Part.Bounds] returns them
	Prompt      string
	// WebhookURL is told of the end; empty for nobody. It was checked by [CheckURL].
	WebhookURL string
	// Base is where clients find the API, for the URL of the files in a webhook.
	Base string
}

// Submit accepts a task: when it returns nil, the task is on disk. The error is [ErrFull],
// [ErrNotRunning] or an [ErrStore].
func (p *Part) Submit(ctx context.Context, sub Submission) (*Record, error) {
	s, release, err := p.use()
	if err != nil {
		return nil, err
	}
	defer release()
	now := s.limits.now().UTC()
	r := &Record{
		ID: cmp.Or(sub.ID, newID(now, laneOf(sub.Owner, sub.Target))), Owner: sub.Owner, Site: sub.Site,
		Keyed: sub.ID != "", Target: sub.Target, Bounds: sub.Bounds, PromptSize: len(sub.Prompt), State: Queued, Created: now,
	}
	if sub.WebhookURL != "" {
		r.Webhook = &Webhook{URL: sub.WebhookURL, Base: sub.Base, State: WebhookPending}
	}
	// The client's going away does not undo half of it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	if err := s.submit(ctx, r, sub.Prompt, p.options.InFlight); err != nil {
		return nil, err
	}
	return r, nil
}

// Get returns a task of an owner.
func (p *Part) Get(ctx context.Context, owner, id string) (*Record, error) {
	s, release, err := p.use()
	if err != nil {
		return nil, err
	}
	defer release()
	if !callID.MatchString(id) {
		return nil, ErrNotFound
	}
	r, _, err := s.store.get(ctx, keyOf(owner, id))
	return r, err
}

// List returns tasks of an owner, newest first, and whether there are more.
func (p *Part) List(ctx context.Context, owner string, q Query) ([]*Record, bool, error) {
	s, release, err := p.use()
	if err != nil {
		return nil, false, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	end, err := s.beginList(ctx, owner)
	if err != nil {
		return nil, false, err
	}
	defer end()
	return s.store.list(ctx, owner, q)
}

// Cancel ends a task of an owner, and stops the agent that runs it. With [ErrEnded] it
// also returns the record: the task had an end already.
func (p *Part) Cancel(ctx context.Context, owner, id string) (*Record, error) {
	s, release, err := p.use()
	if err != nil {
		return nil, err
	}
	defer release()
	if !callID.MatchString(id) {
		return nil, ErrNotFound
	}
	// The client's going away does not undo half of it.
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer done()
	if key := keyOf(owner, id); isCall(key) {
		return s.cancelCall(ctx, key)
	}
	return s.cancelTask(ctx, (&Record{Owner: owner, ID: id}).key())
}

// Output calls read with the output of a task of an owner, from an offset on and as far as
// it has come. The error is [ErrExpired] when it is kept no more.
func (p *Part) Output(ctx context.Context, owner, id string, offset int64, read func(*Record, *Output) error) error {
	r, err := p.Get(ctx, owner, id)
	if err != nil {
		return err
	}
	s, release, err := p.use()
	if err != nil {
		return err
	}
	defer release()
	if r.Sync {
		return ErrNotKept
	}
	out, err := s.store.openOutput(ctx, r, offset)
	if err != nil {
		return err
	}
	return read(r, out)
}
