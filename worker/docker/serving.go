// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"go.uber.org/zap"
)

const (
	// engineRetry is how often an engine that has gone away is asked again.
	engineRetry = 2 * time.Second
	// progressInterval is how often the log tells that a server is still starting.
	progressInterval = 10 * time.Second
	// askTimeout is how long a server may take for an answer while it starts.
	askTimeout = 10 * time.Second
	// exitNotice is how much later than everybody else the engine may hear of an exit.
	exitNotice = time.Second
	// outputWait is how long the last output of a container may take after its exit.
	outputWait = time.Second
)

// Pauses between questions to a server that starts.
const (
	minAskPause = 50 * time.Millisecond
	maxAskPause = time.Second
)

// serve runs one container to its end, or to that of ctx; none is left. It returns
// for how long it answered, and how it ended.
func (s *service) serve(ctx context.Context, output *tail) (served time.Duration, err error) {
	p := prepared{engine: s.engine, spec: s.spec, logger: s.log(), newest: s.log}
	if err := p.checkPort(s.port); err != nil {
		return 0, err
	}
	id := rand.Text()
	live.add(liveKey{s.key.peerID, id})
	defer live.remove(liveKey{s.key.peerID, id})
	host := p.spec.commonHost()
	drop, err := p.place(host, id, nil)
	if err != nil {
		return 0, err
	}
	defer drop()
	c, a, err := p.make(ctx, id, p.spec.serveConfig(id), host)
	if err != nil {
		return 0, err
	}
	defer a.close()
	defer s.remove(ctx, c)

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	followed, err := s.follow(ctx, c, output)
	if err != nil {
		return 0, err
	}
	link, err := p.start(ctx, c, a)
	if err != nil {
		return 0, err
	}
	defer link.close()
	p.logger.Info("starting the model server", zap.String("container", c))
	n := dialer(a)
	if a == nil {
		ns, err := p.enter(ctx, c)
		if err != nil {
			awaitOutput(followed)
			return 0, err
		}
		defer ns.close()
		n = ns
	} else {
		watching := p.watchSidecar(ctx, a, stop)
		defer func() {
			stop(nil)
			<-watching
		}()
	}
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
	stop(nil)
	asking.Wait()
	select {
	case began := <-answered:
		served = time.Since(began)
	default:
	}
	return served, err
}

// checkPort checks that nobody else has the port of a server whose network is that of this
// machine: the requests would be theirs.
func (p *prepared) checkPort(port int) error {
	if o := p.spec.network; o == nil || o.mode != networkHost {
		return nil
	}
	l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return fmt.Errorf("serve, with network host: port %d of this machine is not free: %w", port, err)
	}
	return l.Close()
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
	p := prepared{engine: s.engine, spec: s.spec, logger: s.log()}
	services.Lock()
	p.spec.grace = s.grace
	services.Unlock()
	if ctx.Err() != nil && p.spec.grace > 0 {
		p.stop(ctx, id)
	}
	if err := removeContainer(context.Background(), s.engine, id); err != nil {
		s.log().Error("removing container", zap.String("container", id), zap.Error(err))
		return
	}
	s.log().Info("the model server's container is removed", zap.String("container", id))
}
