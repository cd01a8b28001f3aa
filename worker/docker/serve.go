// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/worker"
	"github.com/Agent-FM/caddy-agentfm/worker/upstream"
)

// Errors of options that do not go together.
var (
	errServeWarm   = errors.New("warm: not with serve, whose container runs all the time")
	errServePrompt = errors.New("prompt: not with serve, which passes requests on as they are")
	errServeOutput = errors.New("output, stderr: not with serve, whose answers are the server's")
	errOnlyServe   = errors.New("models, rename, routes: only with serve")
)

// errRetired is for a task that comes when the container is no longer this
// configuration's.
var errRetired = errors.New("the configuration of this agent has changed")

// server is a Runtime with the option serve.
type server Runtime

// Server implements worker.MayServe.
func (r *Runtime) Server() worker.Server {
	if r.Serve == 0 {
		return nil
	}
	return (*server)(r)
}

// together checks which options are there.
func (r *Runtime) together() error {
	switch {
	case r.Serve != 0 && r.Warm != 0:
		return errServeWarm
	case r.Warm != 0 && r.Prompt != promptStdin && r.Prompt != promptInFile:
		return errWarmPrompt
	case r.Serve != 0 && r.Prompt != "":
		return errServePrompt
	case r.Serve != 0 && (r.Output != "" || r.Stderr != ""):
		return errServeOutput
	case r.Serve == 0 && (len(r.Models) > 0 || len(r.Rename) > 0 || len(r.Routes) > 0):
		return errOnlyServe
	}
	return nil
}

// provisionServer makes the way to a server, without going it.
func (r *Runtime) provisionServer() {
	r.upstream = upstream.New(upstream.Settings{
		Port: r.Serve, Models: r.Models, Rename: r.Rename, Routes: r.Routes, Logger: r.logger,
		Dial: func(ctx context.Context) (net.Conn, error) {
			s := r.service.Load()
			if s == nil {
				return nil, errDown
			}
			return s.dial(ctx)
		},
	})
}

// wayIn finds a way into the containers of the engine, if an option wants one. It is the
// worker's own where it may enter them, or else a program for a container beside each.
func (r *Runtime) wayIn(e engine) (program string, err error) {
	option, enter, find := r.enters(), mayEnter, programOf
	if r.beside != nil {
		enter, find = func() error { return errNotBeside }, r.beside
	}
	if option == "" {
		return "", nil
	}
	if host := e.DaemonHost(); !strings.HasPrefix(host, "unix://") {
		return "", fmt.Errorf("%s: %w; and the engine is at %s", option, errNotBeside, host)
	}
	no := enter()
	if no == nil {
		return "", nil
	}
	if program, err = find(); err != nil {
		return "", fmt.Errorf("%s: %w; nor can Caddy's program run in a container beside it: %w", option, no, err)
	}
	return program, nil
}

// prepareServer has a container serve, and asks the server what it has.
func (r *Runtime) prepareServer(ctx context.Context, agent worker.Agent, p *prepared) error {
	if r.user == nil { // for the first time
		logger := r.logger.With(zap.String("agent", agent.Key))
		r.user = &serviceUser{logger: logger, grace: p.spec.grace, changed: func(up bool) {
			if up { // it may be another than it was
				r.upstream.Look()
			}
			agent.Changed()
		}}
		agent.Go(func() {
			<-agent.Context.Done()
			r.retire()
			leaveHome(agent.PeerID)
		})
	}
	teller(agent.Progress).tell("starting model server", 0)
	s, failures := r.use(p)
	if s == nil {
		return errRetired
	}
	if err := s.await(ctx, failures); err != nil {
		return fmt.Errorf("waiting for the server in the container: %w", err)
	}
	_, err := r.upstream.Prepare(ctx, agent)
	return err
}

// use returns the service that the runtime has, which is the one for what is
// prepared, and how often its container had exited before; nil when the runtime is no
// longer used.
func (r *Runtime) use(p *prepared) (*service, int) {
	r.using.Lock()
	defer r.using.Unlock()
	if r.retired {
		return nil, 0
	}
	before := r.service.Load()
	if before != nil && before.key == serviceKeyOf(p, r.Serve) {
		return before, before.exits()
	}
	if before != nil { // the image is another one since the last attempt
		before.leave(r.user)
	}
	s, failures := joinService(p, r.Serve, r.user)
	r.service.Store(s)
	return s, failures
}

// retire gives the container back when the last request is done.
func (r *Runtime) retire() {
	r.requests.Lock() // for good
	r.using.Lock()
	defer r.using.Unlock()
	r.retired = true
	if s := r.service.Load(); s != nil {
		s.leave(r.user)
	}
}

// ServeHTTP implements worker.Server.
func (s *server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if !s.requests.TryRLock() {
		upstream.Refuse(w)
		return
	}
	defer s.requests.RUnlock()
	s.upstream.ServeHTTP(w, req)
}

// Offer implements worker.Server.
func (s *server) Offer() (worker.Offer, bool) {
	if c := s.service.Load(); c == nil || !c.isUp() {
		return worker.Offer{}, false
	}
	return s.upstream.Offer()
}

// serveTask has the server answer a text.
func (r *Runtime) serveTask(ctx context.Context, task worker.Task) (worker.Exit, error) {
	if !r.requests.TryRLock() {
		return worker.Exit{}, errRetired
	}
	defer r.requests.RUnlock()
	return r.upstream.Run(ctx, task)
}

// Interface guards
var (
	_ worker.MayServe = (*Runtime)(nil)
	_ worker.Server   = (*server)(nil)
)
