// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/caddyserver/caddy/v2"
)

// Tasks is how tasks are kept that clients submit without waiting for the answer.
type Tasks struct {
	// The folder in which they are kept. One process can have it open; it cannot change
	// in a reload. May hold placeholders. Default: agentfm/task-store in Caddy's
	// data folder.
	Store string `json:"store,omitempty"`

	// The NATS servers in which they are kept in place of a folder, by several gateways
	// together: any of them shows, cancels and finishes any task. They share the folder
	// for artifacts, too. Default: none.
	NATS *NATS `json:"nats,omitempty"`

	// The secret that signs webhooks. With `whsec_` and the base64 of 24 to 64 bytes it
	// is one of Standard Webhooks. May be a placeholder such as `{env.NAME}`, which is
	// better than the secret: Caddy's admin API shows what stands here. Default: the
	// environment variable `AGENTFM_WEBHOOK_SECRET`; without it, webhooks are not signed.
	WebhookSecret string `json:"webhook_secret,omitempty"`

	// The secret before it, while receivers may still have that one: webhooks are then
	// signed with both. May be a placeholder that is empty. Default: none.
	OldWebhookSecret string `json:"old_webhook_secret,omitempty"`

	// How many tasks may be queued or running at one time, at most 1,000,000. More are
	// refused with status 503. The last eighth is for clients with few tasks. Default: 256.
	InFlight int `json:"in_flight,omitempty"`

	// How often a task may be begun and broken off, at most 100; a client may ask for
	// less. Default: 5.
	MaxAttempts int `json:"max_attempts,omitempty"`
	// How long after its submission a task may wait for a worker, at most 72h; a client
	// may ask for less. Default: 24h.
	QueueTimeout caddy.Duration `json:"queue_timeout,omitempty"`
	// How long a worker may take, beside what the site allows for it; a client may ask
	// for less. Default: what the site allows.
	RunTimeout caddy.Duration `json:"run_timeout,omitempty"`
	// How long after its submission a task may end, at most 96h; a client may ask for
	// less. Default: no limit.
	Timeout caddy.Duration `json:"timeout,omitempty"`
}

// webhookSecretEnv is where the secret is when the configuration has none.
const webhookSecretEnv = "AGENTFM_WEBHOOK_SECRET"

// resolve replaces placeholders and fills what is left open. The receiver may be nil.
func (t *Tasks) resolve() (Tasks, error) {
	out := Tasks{}
	if t != nil {
		out = *t
	}
	repl := caddy.NewReplacer()
	var err error
	switch {
	case out.NATS != nil && out.Store != "":
		return out, errors.New("store and nats are both there: tasks are kept in one of them")
	case out.NATS != nil:
		if out.NATS, err = out.NATS.resolve(); err != nil {
			return out, fmt.Errorf("nats: %w", err)
		}
	case out.Store == "":
		out.Store = filepath.Join(caddy.AppDataDir(), "agentfm", "task-store")
	default:
		if out.Store, err = repl.ReplaceOrErr(out.Store, true, true); err != nil {
			return out, fmt.Errorf("store: %w", err)
		}
	}
	if out.NATS == nil {
		if out.Store, err = filepath.Abs(out.Store); err != nil {
			return out, fmt.Errorf("store: %w", err)
		}
	}
	if out.WebhookSecret == "" {
		out.WebhookSecret = os.Getenv(webhookSecretEnv)
		if out.OldWebhookSecret != "" && out.WebhookSecret == "" {
			return out, errors.New("old_webhook_secret: there is no webhook_secret that took its place")
		}
	} else if out.WebhookSecret, err = repl.ReplaceOrErr(out.WebhookSecret, true, true); err != nil {
		return out, errors.New("webhook_secret: it holds a placeholder that is unknown or empty")
	}
	if out.OldWebhookSecret, err = repl.ReplaceOrErr(out.OldWebhookSecret, false, true); err != nil {
		return out, errors.New("old_webhook_secret: it holds a placeholder that is unknown")
	}
	return out, nil
}

// WebhookSecrets returns those that sign webhooks, the newest first.
func (t Tasks) WebhookSecrets() []string {
	var secrets []string
	for _, s := range []string{t.WebhookSecret, t.OldWebhookSecret} {
		if s != "" {
			secrets = append(secrets, s)
		}
	}
	return secrets
}

// TaskSettings returns the resolved settings of tasks, after Provision.
func (a *App) TaskSettings() Tasks { return a.tasks }

// Service is a part of the gateway beside the node. Start is called after the node is
// open; Cleanup once, also when Start was not.
type Service interface {
	Start() error
	Cleanup() error
}

// Service returns the service of a name, which is made when there is none yet. Modules
// call it when they are provisioned.
func (a *App) Service(name string, open func() (Service, error)) (Service, error) {
	if s, ok := a.services[name]; ok {
		return s, nil
	}
	s, err := open()
	if err != nil {
		return nil, err
	}
	if a.services == nil {
		a.services = make(map[string]Service)
	}
	a.services[name] = s
	return s, nil
}

// startServices starts the services.
func (a *App) startServices() error {
	for _, s := range a.services {
		if err := s.Start(); err != nil {
			return err
		}
	}
	return nil
}

// cleanUpServices ends the use of the services.
func (a *App) cleanUpServices() error {
	var errs []error
	for _, s := range a.services {
		errs = append(errs, s.Cleanup())
	}
	a.services = nil
	return errors.Join(errs...)
}

// KeepArtifact gives the files of a task another id, in place of those that have it. The
// error is fs.ErrNotExist when there are none.
func (l *Lease) KeepArtifact(from, to string) error {
	folder := l.app.artifacts
	if err := os.Rename(folder.file(from), folder.file(to)); err != nil {
		return err
	}
	return syncDir(folder.dir)
}

// Roomy returns an [ErrNoRoom] when there is no room for files of tasks.
func (l *Lease) Roomy() error { return l.app.artifacts.roomy() }

// DropArtifact removes the files of a task, if there are any.
func (l *Lease) DropArtifact(taskID string) error {
	err := os.Remove(l.app.artifacts.file(taskID))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
