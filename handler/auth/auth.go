// SPDX-License-Identifier: Apache-2.0

// Package auth says who calls the gateway: it checks bearer keys from the
// configuration and from a file that may change at any time, limits failed
// logins, and knows what each key may do. It is also the authentication provider
// "agentfm", for the same keys before other handlers.
package auth

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/internal/webhook"
)

// Options is what a [Checker] is made from.
type Options struct {
	// Keys are the values of api_keys: each may hold several keys, separated by
	// commas or line ends, and may be a placeholder. Nil for none; a list without
	// a key is an error.
	Keys []string
	// File is the path of a key file, and may hold placeholders. Empty for none.
	File string
	// Logger gets what the operator should know; never a key.
	Logger *zap.Logger
}

// Checker checks keys. It is safe for concurrent use, and holds no goroutine and
// no open file.
type Checker struct {
	keys    *store
	budget  *budget
	now     func() time.Time
	logger  *zap.Logger
	observe func(metrics.Login) // called once a check
}

// New returns a checker. It reads the key file, which must be there and good.
// The errors name the option, and the line of the file; never a key.
func New(o Options) (*Checker, error) { return newChecker(o, failures, time.Now) }

// newChecker is New with a budget and a clock.
func newChecker(o Options, b *budget, now func() time.Time) (*Checker, error) {
	c := &Checker{budget: b, now: now, logger: o.Logger, observe: metrics.Auth}
	if c.logger == nil {
		c.logger = zap.NewNop()
	}
	if o.Keys == nil && o.File == "" {
		return nil, errors.New("no keys: want api_keys or api_keys_file")
	}
	var fixed keySet
	if o.Keys != nil {
		keys, err := parseValues(o.Keys)
		if err == nil {
			fixed, err = merge(nil, keys)
		}
		if err != nil {
			return nil, fmt.Errorf("api_keys: %w", err)
		}
	}
	var err error
	if c.keys, err = newStore(fixed, o.File, now, c.logger); err != nil {
		return nil, fmt.Errorf("api_keys_file: %w", err)
	}
	return c, nil
}

// Check returns who sends a request, by its one header `Authorization: Bearer
// KEY`, or an error.
//
// A client that failed too often is refused before its key is looked at, right
// or wrong: else it could go on guessing, and wait for the one answer that differs.
func (c *Checker) Check(r *http.Request) (*Identity, *Error) {
	token, err := bearer(r.Header)
	if err == errMissing {
		c.observe(metrics.LoginMissing)
		return nil, err
	}
	from := Source(r)
	if c.budget.spent(from) {
		return nil, c.refuse(from, metrics.LoginRateLimited, "too many failures", "")
	}
	if err != nil {
		return nil, c.refuse(from, metrics.LoginMalformed, "malformed header", "")
	}
	k := c.keys.current().find(token)
	switch {
	case k == nil:
		return nil, c.refuse(from, metrics.LoginInvalid, "unknown key", "")
	case k.expired(c.now()):
		return nil, c.refuse(from, metrics.LoginInvalid, "expired key", k.identity.ID)
	case c.budget.spent(from): // by guesses sent at the same time
		return nil, c.refuse(from, metrics.LoginRateLimited, "too many failures", "")
	}
	c.observe(metrics.LoginOK)
	return k.identity, nil
}

// Signer returns who signs the webhooks of a client whose key has a secret for that; nil
// for others. A new secret in the key file counts as a new key does.
func (c *Checker) Signer(id string) *webhook.Signer {
	for _, k := range c.keys.current() {
		if k.identity.ID == id {
			return k.signer
		}
	}
	return nil
}

// refuse counts and notes a failure, and returns its error.
func (c *Checker) refuse(from netip.Addr, outcome metrics.Login, reason, id string) *Error {
	if outcome != metrics.LoginRateLimited && !c.budget.fail(from) {
		outcome, reason = metrics.LoginRateLimited, "too many failures"
	}
	c.observe(outcome)
	if ok, unlogged := c.budget.mayLog(from); ok {
		fields := []zap.Field{zap.String("reason", reason), zap.Int("unlogged", unlogged)}
		if from.IsValid() {
			fields = append(fields, zap.Stringer("client", from))
		}
		if id != "" {
			fields = append(fields, zap.String("key", id))
		}
		c.logger.Warn("authentication failed", fields...)
	}
	switch outcome {
	case metrics.LoginMalformed:
		return errMalformed
	case metrics.LoginInvalid:
		return errInvalid
	}
	return errRateLimited
}
