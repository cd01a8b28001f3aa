// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/go-units"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

const (
	// createLimit is how long the engine may take to create a container.
	createLimit = time.Minute
	// codeKilled is the exit code of a process that SIGKILL has ended.
	codeKilled = 128 + 9
)

// run runs a task in a container of its own, which is gone when run returns: in one that
// was started ahead, or else in a fresh one.
func (p *prepared) run(ctx context.Context, task worker.Task) (worker.Exit, error) {
	if ctx.Err() != nil {
		return worker.Exit{}, context.Cause(ctx)
	}
	if p.warm != nil && task.Model == p.spec.agent.Model {
		if c := p.warm.take(); c != nil {
			exit, err := p.runWarm(ctx, c, task)
			if !errors.Is(err, errNotWarm) {
				return exit, err
			}
			p.logger.Warn("a task gets a fresh container", zap.String("task", task.ID), zap.Error(err))
		}
	}
	return p.runFresh(ctx, task)
}

// openToAgent opens a folder to whatever user the agent's image names. Others do not get
// here: the folder above is private.
func openToAgent(dir string) error {
	if err := os.Chmod(dir, 0o777); err != nil {
		return fmt.Errorf("opening the output folder to the agent: %w", err)
	}
	return nil
}

// runFresh runs a task in a fresh container.
func (p *prepared) runFresh(ctx context.Context, task worker.Task) (worker.Exit, error) {
	if err := openToAgent(task.OutputDir); err != nil {
		return worker.Exit{}, err
	}
	key := liveKey{p.spec.agent.PeerID, task.ID}
	live.add(key)
	defer live.remove(key)

	// Deferred before the removal, so waited for after it: who reads the output
	// slowly does not keep a container alive.
	var streams sync.WaitGroup
	defer streams.Wait()

	host := p.spec.hostConfig(task)
	drop, err := p.place(host, task.ID, &task)
	if err != nil {
		return worker.Exit{}, err
	}
	defer drop()
	id, a, err := p.make(ctx, task.ID, p.spec.config(task), host)
	if ctx.Err() != nil && err != nil {
		return worker.Exit{}, context.Cause(ctx)
	}
	if err != nil {
		if cerrdefs.IsNotFound(err) {
			err = unavailable(err) // somebody has removed it
			p.imageGone.Store(true)
		}
		return worker.Exit{}, err
	}
	defer a.close()
	defer p.end(ctx, id)
	return p.attend(ctx, id, a, task, &streams)
}

// create creates a container. The end of ctx does not interrupt it: a container
// whose id got lost would stay.
func (p *prepared) create(ctx context.Context, config *container.Config, host *container.HostConfig) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), createLimit)
	defer cancel()
	created, err := p.engine.ContainerCreate(ctx, config, host, nil, nil, "")
	if err != nil {
		p.removeLost(config.Labels)
		return "", err
	}
	if err := p.verify(ctx, created.ID); err != nil {
		p.remove(created.ID)
		return "", err
	}
	return created.ID, nil
}

// verify checks that a container will run as it was told to, where that is another
// runtime than the engine's default.
func (p *prepared) verify(ctx context.Context, id string) error {
	if p.spec.runtime == "" {
		return nil
	}
	c, err := p.engine.ContainerInspect(ctx, id)
	switch {
	case err != nil:
		return fmt.Errorf("inspecting container: %w", err)
	case c.ContainerJSONBase == nil || c.HostConfig == nil || c.HostConfig.Runtime != p.spec.runtime:
		return fmt.Errorf("the engine does not use runtime %q", p.spec.runtime)
	}
	return nil
}

// removeLost removes what the engine may have created without our hearing of it.
func (p *prepared) removeLost(labels map[string]string) {
	ctx, cancel := context.WithTimeout(context.Background(), removeLimit)
	defer cancel()
	var all []string
	for name, value := range labels {
		all = append(all, name+"="+value)
	}
	found, err := containers(ctx, p.engine, all...)
	if err != nil {
		p.logger.Error("looking for a lost container", zap.Any("labels", labels), zap.Error(err))
	}
	for _, c := range found {
		p.remove(c.ID)
	}
}

// end removes a container. One that still runs because ctx has ended may end by itself
// first.
func (p *prepared) end(ctx context.Context, id string) {
	if ctx.Err() != nil && p.spec.grace > 0 {
		p.stop(ctx, id)
	}
	p.remove(id)
}

// stop asks a container to end, kills it after its grace, and returns when it has ended.
func (p *prepared) stop(ctx context.Context, id string) {
	seconds := int(math.Ceil(p.spec.grace.Seconds()))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.spec.grace+connectLimit)
	defer cancel()
	err := p.engine.ContainerStop(ctx, id, container.StopOptions{Timeout: &seconds})
	if err != nil && !cerrdefs.IsNotFound(err) {
		p.logger.Warn("stopping container", zap.String("container", id), zap.Error(err))
	}
}

// remove kills and removes a container. If the engine refuses, the next
// sweep tries again.
func (p *prepared) remove(id string) {
	if err := removeContainer(context.Background(), p.engine, id); err != nil {
		p.logger.Error("removing container", zap.String("container", id), zap.Error(err))
	}
}

// attend starts a container and stays with it to its end. Whatever goes wrong
// on the way ends ctx, with what went wrong as its cause. The goroutines in
// streams end when the container does.
func (p *prepared) attend(ctx context.Context, id string, a *sidecar, task worker.Task, streams *sync.WaitGroup) (worker.Exit, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)

	// Attached, and waiting, before the start: so nothing is missed.
	conn, err := p.attach(ctx, id)
	if err != nil {
		fail(err)
		return worker.Exit{}, context.Cause(ctx)
	}
	defer conn.Close()
	output, delivered := pump(ctx, fail, conn.Reader, task.Output, p.stderr(task.ID), p.spec.limits.output, streams)
	exited, lost := p.engine.ContainerWait(ctx, id, container.WaitConditionNextExit)
	link, err := p.start(ctx, id, a)
	if err != nil {
		fail(err)
	}
	a.release()
	defer link.close()
	if p.spec.prompt == promptStdin {
		streams.Go(func() { feed(conn, task.Prompt) })
	}

	state, err := p.finish(ctx, fail, id, output, delivered, exited, lost)
	if err != nil {
		return worker.Exit{}, err
	}
	return p.spec.exit(state), nil
}

// attach connects to the streams of a container.
func (p *prepared) attach(ctx context.Context, id string) (types.HijackedResponse, error) {
	conn, err := p.engine.ContainerAttach(ctx, id, container.AttachOptions{
		Stream: true, Stdin: p.spec.prompt == promptStdin, Stdout: true, Stderr: true,
	})
	if err != nil {
		return conn, fmt.Errorf("attaching to container: %w", err)
	}
	if p.spec.prompt == promptStdin {
		conn.Reader = bufio.NewReader(endOnReset{conn.Reader})
	}
	return conn, nil
}

// endOnReset ends where the other side has closed the connection without reading all of
// the prompt, because the agent has ended; Podman does so. By then all output has come.
type endOnReset struct{ r io.Reader }

// Read implements io.Reader.
func (e endOnReset) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if errors.Is(err, syscall.ECONNRESET) {
		err = io.EOF
	}
	return n, err
}

// finish waits until a container has exited and its output is delivered, and returns how
// it ended.
func (p *prepared) finish(ctx context.Context, fail context.CancelCauseFunc, id string, output *backlog, delivered <-chan struct{},
	exited <-chan container.WaitResponse, lost <-chan error,
) (*container.State, error) {
	state, err := p.exited(ctx, id, exited, lost)
	if err != nil {
		fail(err)
	} else if finished := finishedAt(state); time.Since(finished) >= engineDrain && output.stalledSince(finished) {
		fail(errOutputLost)
	}
	select { // the last output may come after the exit
	case <-delivered:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return state, nil
}

// pump passes on the output of a container; stderr is for a part of it that is not passed
// on, or nil. The channel closes when all of it
// is delivered, or cannot be: then fail was called, or ctx has ended.
func pump(ctx context.Context, fail context.CancelCauseFunc, r io.Reader, w io.Writer, stderr io.WriteCloser, limit int64, streams *sync.WaitGroup) (*backlog, <-chan struct{}) {
	output := newBacklog()
	streams.Go(func() {
		defer output.end() // after fail: an output cut short is not a whole one
		if err := output.fill(ctx, r, stderr, limit); err != nil {
			fail(fmt.Errorf("reading output: %w", err))
		}
	})
	delivered := make(chan struct{})
	streams.Go(func() {
		defer close(delivered)
		if err := output.deliver(ctx, w); err != nil {
			fail(fmt.Errorf("passing on output: %w", err))
		}
	})
	return output, delivered
}

// exited waits for the exit of a container and returns its state. It does not
// look at ctx: when that ends, lost says so, and the client's goroutine behind
// the two channels does not end before it is heard.
func (p *prepared) exited(ctx context.Context, id string, exited <-chan container.WaitResponse, lost <-chan error) (*container.State, error) {
	select {
	case answer := <-exited:
		if answer.Error != nil {
			return nil, fmt.Errorf("waiting for container: %s", answer.Error.Message)
		}
	case err := <-lost:
		return nil, fmt.Errorf("waiting for container: %w", err)
	}
	c, err := p.engine.ContainerInspect(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("inspecting container: %w", err)
	}
	if c.ContainerJSONBase == nil || c.State == nil {
		return nil, errors.New("inspecting container: the engine does not tell its state")
	}
	return c.State, nil
}

// finishedAt returns when a container exited, or the beginning of time if the
// engine does not say.
func finishedAt(state *container.State) time.Time {
	t, err := time.Parse(time.RFC3339Nano, state.FinishedAt)
	if err != nil {
		return time.Time{}
	}
	return t
}

// exit returns how an agent ended.
func (s *spec) exit(state *container.State) worker.Exit {
	exit := worker.Exit{Code: state.ExitCode}
	limit := units.BytesSize(float64(s.limits.memory))
	switch {
	case state.OOMKilled && exit.Code != 0: // with 0, a child was killed, and the agent coped
		exit.Reason, exit.Cause = fmt.Sprintf("killed: out of memory (limit %s)", limit), wire.CauseOOMKilled
	case exit.Code == codeKilled:
		// The engine hears of the lack of memory apart from the exit, and
		// does not set OOMKilled when it does so a moment later.
		exit.Reason = fmt.Sprintf("killed by signal 9, perhaps out of memory (limit %s)", limit)
	}
	return exit
}

// feed gives a container its standard input. An agent need not read it, so an
// error here means nothing.
func feed(conn types.HijackedResponse, prompt string) {
	_, _ = io.Copy(conn.Conn, strings.NewReader(prompt))
	_ = conn.CloseWrite()
}
