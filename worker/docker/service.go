// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"go.uber.org/zap"
)

const (
	// A container that has exited is started again after a pause that grows. One
	// that served for serviceSteady was well.
	minServicePause = time.Second
	maxServicePause = time.Minute
	serviceSteady   = time.Minute
	// engineRetry is how often an engine that has gone away is asked again.
	engineRetry = 2 * time.Second
	// progressInterval is how often the log tells that a server is still starting.
	progressInterval = 10 * time.Second
	// askTimeout is how long a server may take for an answer while it starts.
	askTimeout = 10 * time.Second
	// exitNotice is how much later than everybody else the engine may hear of an exit.
	exitNotice = time.Second
	// dialTimeout is how long a server may take to accept a connection.
	dialTimeout = 10 * time.Second
	// outputWait is how long the last output of a container may take after its exit.
	outputWait = time.Second
)

// Pauses between questions to a server that starts.
const (
	minAskPause = 50 * time.Millisecond
	maxAskPause = time.Second
)

// errNotBeside says that a container cannot be reached.
var errNotBeside = errors.New("a way into a container that has no network needs Linux, and Caddy as root beside the Docker engine")

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
	logger *zap.Logger // of the newest user, also when it has left

	mu       sync.Mutex
	net      *netns // of the container that runs, or nil
	up       bool   // it answers
	failures int    // how often a container has exited
	failure  error  // of the last time
	turned   chan struct{}
}

// serviceUser is a configuration that uses a service.
type serviceUser struct {
	logger *zap.Logger
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
	s.users, s.logger = append(s.users, u), u.logger
	return s, failures
}

// leave takes a user out. When it was the last one, leave returns when the container
// is gone.
func (s *service) leave(u *serviceUser) {
	services.Lock()
	s.users = slices.DeleteFunc(s.users, func(v *serviceUser) bool { return v == u })
	last := len(s.users) == 0
	if !last {
		s.logger = s.users[len(s.users)-1].logger
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

// serve runs one container to its end, or to that of ctx; none is left. It returns
// for how long it answered, and how it ended.
func (s *service) serve(ctx context.Context, output *tail) (served time.Duration, err error) {
	p := prepared{engine: s.engine, spec: s.spec, logger: s.log()}
	id := rand.Text()
	live.add(liveKey{s.key.peerID, id})
	defer live.remove(liveKey{s.key.peerID, id})
	host := p.spec.commonHost()
	drop, err := p.place(host, id, nil)
	if err != nil {
		return 0, err
	}
	defer drop()
	c, err := p.create(ctx, p.spec.serveConfig(id), host)
	if err != nil {
		return 0, fmt.Errorf("creating container: %w", err)
	}
	defer s.remove(ctx, c)

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	followed, err := s.follow(ctx, c, output)
	if err != nil {
		return 0, err
	}
	link, err := p.start(ctx, c)
	if err != nil {
		return 0, err
	}
	defer link.close()
	p.logger.Info("starting the model server", zap.String("container", c))
	n, err := p.enter(ctx, c)
	if err != nil {
		awaitOutput(followed)
		return 0, err
	}
	defer n.close()
	s.set(n, false)
	defer s.set(nil, false)

	answered := make(chan time.Time, 1)
	var asking sync.WaitGroup
	asking.Go(func() {
		if s.awaitAnswer(ctx) {
			answered <- time.Now()
			s.set(n, true)
		}
	})
	err = s.end(ctx, c, followed, output)
	stop()
	asking.Wait()
	select {
	case began := <-answered:
		served = time.Since(began)
	default:
	}
	return served, err
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
func (s *service) set(n *netns, up bool) {
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

// awaitAnswer asks the server for its models until it answers; false when ctx ended
// before. What it answers is for others to judge, unless it says that it is not ready.
func (s *service) awaitAnswer(ctx context.Context) bool {
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return s.dial(ctx) },
		DisableKeepAlives: true,
	}
	began := time.Now()
	progress := time.NewTicker(progressInterval)
	defer progress.Stop()
	for pause := minAskPause; ; pause = min(2*pause, maxAskPause) {
		err := s.ask(ctx, transport)
		switch {
		case ctx.Err() != nil:
			return false
		case err == nil:
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
		select {
		case <-progress.C:
			s.log().Info("the model server does not answer yet", zap.Duration("since", time.Since(began)), zap.Error(err))
		default:
		}
	}
}

// ask asks the server for its models, once.
func (s *service) ask(ctx context.Context, transport http.RoundTripper) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/v1/models", s.port), nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode >= http.StatusInternalServerError {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// follow reads the output of a container, until it ends or the engine does; then the
// channel closes.
func (s *service) follow(ctx context.Context, id string, output *tail) (<-chan struct{}, error) {
	conn, err := s.engine.ContainerAttach(ctx, id, container.AttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		return nil, fmt.Errorf("attaching to container: %w", err)
	}
	ended := make(chan struct{})
	hangUp := context.AfterFunc(ctx, conn.Close)
	go func() {
		defer close(ended)
		defer conn.Close()
		defer hangUp()
		output.fill(conn.Reader)
	}()
	return ended, nil
}

// end waits until a container does not run any more, and returns how that came. It
// goes on as long as nobody tells: without its engine a container may well run.
func (s *service) end(ctx context.Context, id string, followed <-chan struct{}, output *tail) error {
	for lost := false; ; {
		exited, failed := s.engine.ContainerWait(ctx, id, container.WaitConditionNotRunning)
		if lost {
			if again, err := s.follow(ctx, id, output); err == nil {
				followed, lost = again, false
				s.log().Info("the Docker engine is back")
			}
		}
		var err error
		select {
		case answer := <-exited:
			if answer.Error != nil {
				return fmt.Errorf("waiting for container: %s", answer.Error.Message)
			}
			s.set(nil, false)
			awaitOutput(followed)
			return s.howEnded(ctx, id, int(answer.StatusCode))
		case err = <-failed:
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case cerrdefs.IsNotFound(err):
			return errors.New("somebody has removed the container")
		case !lost:
			s.log().Warn("the Docker engine does not tell of the model server; it may run all the same", zap.Error(err))
		}
		lost = true
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(engineRetry):
		}
	}
}

// awaitOutput waits for what a container said last.
func awaitOutput(followed <-chan struct{}) {
	select {
	case <-followed:
	case <-time.After(outputWait):
	}
}

// howEnded returns how a container has exited.
func (s *service) howEnded(ctx context.Context, id string, code int) error {
	state := &container.State{ExitCode: code}
	if c, err := s.engine.ContainerInspect(ctx, id); err == nil && c.ContainerJSONBase != nil && c.State != nil {
		state = c.State
	}
	return errors.New(s.spec.exit(state).String())
}

// remove removes a container. One that still runs because ctx has ended may end by
// itself first.
func (s *service) remove(ctx context.Context, id string) {
	if ctx.Err() != nil && s.spec.grace > 0 {
		p := prepared{engine: s.engine, spec: s.spec, logger: s.log()}
		p.stop(ctx, id)
	}
	if err := removeContainer(context.Background(), s.engine, id); err != nil {
		s.log().Error("removing container", zap.String("container", id), zap.Error(err))
		return
	}
	s.log().Info("the model server's container is removed", zap.String("container", id))
}
