// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"go.uber.org/zap"
)

const (
	// A container that has exited is started again after a pause that grows. One
	// that served for serviceSteady was well.
	minServicePause = time.Second
	maxServicePause = time.Minute
	serviceSteady   = time.Minute
	// dialTimeout is how long a server may take to accept a connection.
	dialTimeout = 10 * time.Second
)

// errNotBeside says that a container cannot be reached.
var errNotBeside = errors.New("a way into a container that has no network needs Linux, and Caddy beside the Docker engine")

// errDown says that a server cannot be reached now.
var errDown = errors.New("the container does not run")

// services are the containers that serve, by what they are. They are global because
// configurations that want the same share a container: a reload neither starts a
// model server again, nor has two of them.
var services = struct {
	sync.Mutex
	byKey map[serviceKey]*service
}{byKey: make(map[serviceKey]*service)}

// serviceKey tells what a service is: whose, and the hash of all that its container
// is made of.
type serviceKey struct {
	peerID   string
	settings [sha256.Size]byte
}

// service is a container that serves, which is replaced when it exits. It lives as
// long as somebody uses it.
type service struct {
	key    serviceKey
	port   int
	cancel context.CancelFunc
	done   chan struct{} // closed when its last container is gone
	engine engine
	spec   spec

	// Under the mutex of services.
	users  []*serviceUser
	logger *zap.Logger   // of the newest user, also when it has left
	grace  time.Duration // the same

	mu       sync.Mutex
	net      dialer // into the container that runs, or nil
	up       bool   // it answers
	failures int    // how often a container has exited
	failure  error  // of the last time
	turned   chan struct{}
}

// serviceUser is a configuration that uses a service.
type serviceUser struct {
	logger *zap.Logger
	grace  time.Duration // between asking the container to end and killing it
	// changed is called when the server begins or ceases to answer. It must not block.
	changed func(up bool)
}

// serviceKeyOf returns the key of the service for what is prepared.
func serviceKeyOf(p *prepared, port int) serviceKey {
	return settingsKey(p, port, p.spec.serveConfig(""))
}

// settingsKey returns the key of containers that are kept while nothing of them changes;
// number is what else there is to tell.
func settingsKey(p *prepared, number int, config *container.Config) serviceKey {
	// where the engine is, and all that it is told of the container
	b, _ := json.Marshal([]any{p.engine.DaemonHost(), number, config, p.spec.commonHost(), p.spec.secretKey(), p.spec.network.settings()})
	return serviceKey{p.spec.agent.PeerID, sha256.Sum256(b)}
}

// joinService returns the service for what is prepared, and starts it for its first
// user; and how often its container had exited before.
func joinService(p *prepared, port int, u *serviceUser) (*service, int) {
	key := serviceKeyOf(p, port)
	services.Lock()
	defer services.Unlock()
	s, failures := services.byKey[key], 0
	if s != nil {
		failures = s.exits()
	} else {
		s = &service{key: key, port: port, engine: p.engine, spec: p.spec, done: make(chan struct{}), turned: make(chan struct{})}
		services.byKey[key] = s
		var ctx context.Context
		ctx, s.cancel = context.WithCancel(context.Background())
		go s.run(ctx)
	}
	s.users, s.logger, s.grace = append(s.users, u), u.logger, u.grace
	return s, failures
}

// leave takes a user out. When it was the last one, leave returns when the container
// is gone.
func (s *service) leave(u *serviceUser) {
	services.Lock()
	s.users = slices.DeleteFunc(s.users, func(v *serviceUser) bool { return v == u })
	last := len(s.users) == 0
	if !last {
		newest := s.users[len(s.users)-1]
		s.logger, s.grace = newest.logger, newest.grace
	}
	if last && services.byKey[s.key] == s {
		delete(services.byKey, s.key)
	}
	services.Unlock()
	if last {
		s.cancel()
		<-s.done
	}
}

// log returns the logger of the newest user: those of older ones may be closed.
func (s *service) log() *zap.Logger {
	services.Lock()
	defer services.Unlock()
	return s.logger
}

// run keeps a container going until ctx ends.
func (s *service) run(ctx context.Context) {
	defer close(s.done)
	for pause := minServicePause; ; pause = min(2*pause, maxServicePause) {
		output := &tail{log: s.log, what: "output of the model server"}
		served, err := s.serve(ctx, output)
		if ctx.Err() != nil {
			return
		}
		if served >= serviceSteady {
			pause = minServicePause
		}
		s.log().Warn("the model server does not run", zap.Error(err), zap.String("output", output.String()), zap.Duration("next_start", pause))
		s.turn(func() {
			s.failures++
			s.failure = err
		})
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		// What could not be removed. Without an engine, the next step says so.
		_ = sweep(ctx, s.engine, s.key.peerID, s.log())
	}
}

// turn changes the state of the service, and wakes those who wait for that.
func (s *service) turn(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.turned)
	s.turned = make(chan struct{})
}

// set says where the server is, and whether it answers, and tells the users. A
// container that has ended does not begin to answer.
func (s *service) set(n dialer, up bool) {
	changed := false
	s.turn(func() {
		if up && s.net != n {
			return
		}
		changed = s.up != up
		s.net, s.up = n, up
	})
	if !changed {
		return
	}
	services.Lock()
	users := slices.Clone(s.users)
	services.Unlock()
	for _, u := range users {
		u.changed(up)
	}
}

// isUp reports whether the server answers.
func (s *service) isUp() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.up
}

// exits returns how often the container has exited.
func (s *service) exits() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failures
}

// await returns when the server answers, or when its container has exited more often
// than that, with how.
func (s *service) await(ctx context.Context, failures int) error {
	for {
		s.mu.Lock()
		up, failed, err, turned := s.up, s.failures != failures, s.failure, s.turned
		s.mu.Unlock()
		switch {
		case up:
			return nil
		case failed:
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-turned:
		}
	}
}

// dial connects to the server.
func (s *service) dial(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	n := s.net
	s.mu.Unlock()
	if n == nil {
		return nil, errDown
	}
	return n.dial(ctx, s.port)
}
