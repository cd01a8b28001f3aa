// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/docker/docker/api/types/container"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// Limits of what a container may ask of its link.
const (
	maxLinkConns    = 64 // at once; further ones wait
	maxLinkHeader   = 64 << 10
	maxAnswerHeader = 256 << 10 // of who answers
	linkHeaderTime  = 30 * time.Second
	linkIdleTime    = 2 * time.Minute // between requests
)

// exitedError says that a container has exited, and how.
type exitedError struct{ worker.Exit }

func (e exitedError) Error() string { return e.String() }

// start starts a container, and serves it what it may reach. What listens for it is
// there before its program begins, if the engine takes a moment between the making of
// the container's network and that; else it is there when start returns.
func (p *prepared) start(ctx context.Context, id string, a *sidecar) (*link, error) {
	o := p.spec.network
	if !o.served() {
		return nil, p.startContainer(ctx, id)
	}
	if a != nil {
		return p.startBeside(ctx, id, a)
	}
	opened := o.early(ctx, id, o.port)
	err := p.startContainer(ctx, id)
	d := opened()
	if err == nil {
		d, err = p.confirm(ctx, id, d)
	}
	if err != nil {
		d.close()
		if _, over := errors.AsType[exitedError](err); over {
			return nil, nil // it did not need anything
		}
		return nil, err
	}
	return p.newLink(d, id), nil
}

// startBeside does so where the container has the network of another one. What listens
// is there first, in any case.
func (p *prepared) startBeside(ctx context.Context, id string, a *sidecar) (*link, error) {
	l, err := a.Listen(p.spec.network.port)
	if err != nil {
		return nil, fmt.Errorf("listening in the container: %w", err)
	}
	d := &door{Listener: l}
	if err := p.startContainer(ctx, id); err != nil {
		d.close()
		return nil, err
	}
	return p.newLink(d, id), nil
}

// newLink begins to serve a container.
func (p *prepared) newLink(d *door, id string) *link {
	return newLink(d, p.spec.network.handler(func() *zap.Logger { return p.log().With(zap.String("container", id)) }))
}

func (p *prepared) startContainer(ctx context.Context, id string) error {
	if err := p.engine.ContainerStart(ctx, id, container.StartOptions{}); err != nil {
		return fmt.Errorf("starting container: %w", err)
	}
	return nil
}

// door is a listener within a container. A nil door is none.
type door struct {
	net.Listener
	ns *netns // nil where another container has opened it
}

// openEarly looks for a container that is being started, and opens a door in it. The
// function that it returns ends that, and returns the door if there is one. Nothing
// may be accepted from it yet: that it is in the right container is only likely.
func openEarly(ctx context.Context, id string, port int) func() *door {
	ctx, cancel := context.WithCancel(ctx)
	opened := make(chan *door, 1)
	seen := processes() // none of those that are there before is of the container
	go func() {
		var d *door
		if n, err := findNetns(ctx, id, seen); err == nil {
			d, _ = n.open(port)
		}
		opened <- d
	}()
	return func() *door {
		cancel()
		return <-opened
	}
}

// open listens on a port of the loopback interface. The door has the namespace then.
func (n *netns) open(port int) (*door, error) {
	l, err := n.listen(port)
	if err != nil {
		n.close()
		return nil, fmt.Errorf("listening in the container: %w", err)
	}
	return &door{l, n}, nil
}

func (d *door) close() {
	if d != nil {
		_ = d.Close()
		if d.ns != nil {
			d.ns.close()
		}
	}
}

// confirm returns the door of a container that runs: that which was opened early if
// it is in there, or another one.
func (p *prepared) confirm(ctx context.Context, id string, early *door) (*door, error) {
	n, err := p.enter(ctx, id)
	if err != nil {
		return early, err
	}
	if early != nil && early.ns.same(n) {
		n.close()
		return early, nil
	}
	early.close()
	return n.open(p.spec.network.port)
}

// handler answers the requests of one container. Close ends what it keeps open, after
// the last request.
type handler interface {
	http.Handler
	io.Closer
}

// linkTransport passes on the requests of one container.
func linkTransport(dial func(ctx context.Context, network, address string) (net.Conn, error)) *http.Transport {
	return &http.Transport{
		DialContext:            dial,
		TLSHandshakeTimeout:    dialTimeout,
		IdleConnTimeout:        linkIdleTime,
		MaxIdleConns:           maxLinkConns,
		MaxIdleConnsPerHost:    maxLinkConns,
		MaxConnsPerHost:        maxLinkConns,
		MaxResponseHeaderBytes: maxAnswerHeader,
		DisableCompression:     true, // what the agent did not ask for, it may not read
	}
}

// link serves a container what it may reach. A nil link serves nothing.
type link struct {
	door    *door
	server  *http.Server
	handler handler
	cancel  context.CancelFunc

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup // of requests, and of Serve
}

// newLink begins to serve. Requests have a context that ends when the link is closed.
func newLink(d *door, h handler) *link {
	ctx, cancel := context.WithCancel(context.Background())
	k := &link{door: d, handler: h, cancel: cancel}
	k.server = &http.Server{
		Handler:           k,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: linkHeaderTime,
		IdleTimeout:       linkIdleTime,
		MaxHeaderBytes:    maxLinkHeader,
		ErrorLog:          log.New(io.Discard, "", 0), // an agent can make as many errors as it likes
	}
	k.running.Go(func() { _ = k.server.Serve(limit(d, maxLinkConns)) })
	return k
}

// ServeHTTP passes a request on, unless the link is closed: close waits for all that
// it let through.
func (k *link) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	closed := k.closed
	if !closed {
		k.running.Add(1)
	}
	k.mu.Unlock()
	if closed {
		return
	}
	defer k.running.Done()
	k.handler.ServeHTTP(w, r)
}

// close breaks off what goes on, and returns when nothing does.
func (k *link) close() {
	if k == nil {
		return
	}
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.cancel()
	_ = k.server.Close()
	k.running.Wait()
	_ = k.handler.Close()
	k.door.close()
}

// enter opens the way into a container. Its process may have ended by then, and its
// number be another's: it must be the same afterwards. That it has ended, the engine
// may hear a moment later.
func (p *prepared) enter(ctx context.Context, id string) (*netns, error) {
	pid, err := p.pid(ctx, id)
	if err != nil {
		return nil, err
	}
	n, err := openNetns(pid, id)
	after, gone := p.pid(ctx, id)
	for end := time.Now().Add(exitNotice); err != nil && gone == nil && ctx.Err() == nil && time.Now().Before(end); {
		time.Sleep(minAskPause)
		after, gone = p.pid(ctx, id)
	}
	switch {
	case gone != nil:
		err = gone
	case after != pid:
		err = errors.New("the container was started again by somebody else")
	case err == nil:
		return n, nil
	}
	if n != nil {
		n.close()
	}
	return nil, err
}

// pid returns the first process of a container that runs.
func (p *prepared) pid(ctx context.Context, id string) (int, error) {
	c, err := p.engine.ContainerInspect(ctx, id)
	switch {
	case err != nil:
		return 0, fmt.Errorf("inspecting container: %w", err)
	case c.ContainerJSONBase == nil || c.State == nil:
		return 0, errors.New("inspecting container: the engine does not tell its state")
	case !c.State.Running || c.State.Pid <= 0:
		return 0, exitedError{p.spec.exit(c.State)}
	}
	return c.State.Pid, nil
}
