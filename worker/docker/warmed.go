// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// errNotWarm says that a container could not be a task's, which has not begun.
var errNotWarm = errors.New("the container that was started ahead cannot be used")

// warmed is a container that runs, and waits for its prompt.
type warmed struct {
	key     liveKey
	id      string
	input   string // the folder of the host that is its inputDir
	output  string // the same of outputDir, until a task has it
	drop    func() // of its files
	conn    *types.HijackedResponse
	link    *link           // to what it may reach
	sidecar *sidecar        // the container that its network comes from
	ctx     context.Context // while we wait for its exit
	cancel  context.CancelFunc

	over   chan struct{} // closed when it has exited, or nobody knows
	exited chan container.WaitResponse
	lost   chan error
	taken  chan struct{} // closed when a task has it

	tooMuch atomic.Pointer[string] // that it has written too much before it had a task; nil if not
}

// startWarm starts a container ahead. ctx is for its start alone.
func (p *prepared) startWarm(ctx context.Context) (*warmed, error) {
	c := &warmed{
		key: liveKey{p.spec.agent.PeerID, "warm_" + rand.Text()}, drop: func() {}, taken: make(chan struct{}),
		over: make(chan struct{}), exited: make(chan container.WaitResponse, 1), lost: make(chan error, 1),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	live.add(c.key)
	if err := p.warmUp(ctx, c); err != nil {
		c.discard(context.Background(), p)
		return nil, err
	}
	return c, nil
}

// warmUp makes and starts the container.
func (p *prepared) warmUp(ctx context.Context, c *warmed) error {
	output := filepath.Join(p.spec.agent.TasksDir, c.key.id)
	if err := os.Mkdir(output, 0o700); err != nil {
		return fmt.Errorf("making the output folder: %w", err)
	}
	c.output = output
	if err := openToAgent(output); err != nil {
		return err
	}
	task := worker.Task{ID: c.key.id, Model: p.spec.agent.Model, OutputDir: output}
	host, config := p.spec.hostConfig(task), p.spec.config(task)
	delete(config.Labels, labelTask)
	config.Labels[labelWarm] = c.key.id
	drop, err := p.place(host, c.key.id, &task)
	if err != nil {
		return err
	}
	c.drop, c.input = drop, filepath.Join(filesHome(c.key.peerID), c.key.id, inputName)
	if p.spec.prompt == promptInFile {
		if err := p.spec.placePipe(filepath.Join(c.input, promptFile)); err != nil {
			return err
		}
	}
	if c.id, c.sidecar, err = p.make(ctx, c.key.id, config, host); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, createLimit)
	defer cancel()
	conn, err := p.attach(ctx, c.id)
	if err != nil {
		return err
	}
	c.conn = &conn
	defer context.AfterFunc(ctx, c.cancel)() // an engine that says nothing
	exited, lost := p.engine.ContainerWait(c.ctx, c.id, container.WaitConditionNextExit)
	go func() {
		defer close(c.over)
		select {
		case answer := <-exited:
			c.exited <- answer
		case err := <-lost:
			c.lost <- err
		}
	}()
	c.link, err = p.start(ctx, c.id, c.sidecar)
	c.sidecar.release()
	return err
}

// discard removes the container, and what was made for it; whatever of it is not there
// is passed over. It may end by itself first where ctx, that of its task, has ended.
func (c *warmed) discard(ctx context.Context, p *prepared) {
	defer live.remove(c.key)
	defer c.sidecar.close()
	defer c.link.close()
	if c.id != "" {
		p.end(ctx, c.id)
	}
	c.cancel()
	if c.conn != nil {
		c.conn.Close() // not before: an agent that waits would take that for an empty prompt
		<-c.over
	}
	c.drop()
	if c.output == "" {
		return
	}
	if err := worker.RemoveFolder(c.output); err != nil {
		p.logger.Warn("removing the folder of a container", zap.Error(err))
	}
}

// guard ends the waiting of a container that fills the disk before it has a task.
func (c *warmed) guard(p *prepared) {
	if p.spec.agent.MaxDisk == 0 {
		return
	}
	ctx, stop := context.WithCancelCause(c.ctx)
	defer stop(nil)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		worker.Guard(ctx, c.output, p.spec.agent.MaxDisk, stop)
	}()
	select {
	case <-c.taken:
	case <-ctx.Done():
		if c.ctx.Err() == nil {
			why := context.Cause(ctx).Error()
			c.tooMuch.Store(&why)
			c.cancel() // then nobody knows how it goes on, and it is removed
		}
	}
	stop(nil)
	<-watched
}

// ended reports whether the container has ended, or nobody knows.
func (c *warmed) ended() bool {
	select {
	case <-c.over:
		return true
	default:
		return false
	}
}

// howEnded says how the container has ended, in words.
func (c *warmed) howEnded(p *prepared) string {
	if why := c.tooMuch.Load(); why != nil {
		return *why
	}
	ctx, cancel := context.WithTimeout(context.Background(), connectLimit)
	defer cancel()
	state, err := p.exited(ctx, c.id, c.exited, c.lost)
	if err != nil {
		return err.Error()
	}
	return p.spec.exit(state).String()
}

// runWarm runs a task in a container that waits for one. With errNotWarm, the task has
// not begun.
func (p *prepared) runWarm(ctx context.Context, c *warmed, task worker.Task) (worker.Exit, error) {
	var streams sync.WaitGroup
	defer streams.Wait() // as in run
	defer c.discard(ctx, p)
	if err := p.handOver(c, task); err != nil {
		return worker.Exit{}, fmt.Errorf("%w: %w", errNotWarm, err)
	}
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	defer context.AfterFunc(ctx, c.cancel)()

	said := &countingWriter{w: task.Output}
	output, delivered := pump(ctx, fail, c.conn.Reader, said, p.stderr(task.ID), p.spec.limits.output, &streams)
	before := c.ended() // as we saw it: the engine may have another clock
	streams.Go(func() {
		if err := p.prompt(ctx, c, task.Prompt); err != nil {
			fail(err)
		}
	})
	state, err := p.finish(ctx, fail, c.id, output, delivered, c.exited, c.lost)
	switch {
	case err != nil:
		return worker.Exit{}, err
	case before && said.n == 0:
		if err := c.takeBack(task); err != nil {
			return worker.Exit{}, err
		}
		return worker.Exit{}, fmt.Errorf("%w: it had ended before", errNotWarm)
	}
	return p.spec.exit(state), nil
}

// handOver gives a container the task, but for the prompt. Its output folder takes the
// place of the task's: a container keeps a folder that gets another name.
func (p *prepared) handOver(c *warmed, task worker.Task) error {
	if err := p.spec.placeRequest(c.input, &task); err != nil {
		return err
	}
	if err := os.Remove(task.OutputDir); err != nil {
		return fmt.Errorf("giving the task its output folder: %w", err)
	}
	if err := os.Rename(c.output, task.OutputDir); err != nil {
		return errors.Join(fmt.Errorf("giving the task its output folder: %w", err), os.Mkdir(task.OutputDir, 0o700))
	}
	return nil
}

// prompt gives a container that waits its prompt.
func (p *prepared) prompt(ctx context.Context, c *warmed, prompt string) error {
	if p.spec.prompt == promptInFile {
		return feedPipe(ctx, filepath.Join(c.input, promptFile), prompt)
	}
	feed(*c.conn, prompt)
	return nil
}

// takeBack gives the task an empty folder again.
func (c *warmed) takeBack(task worker.Task) error {
	if err := os.Rename(task.OutputDir, c.output); err != nil {
		return err
	}
	return os.Mkdir(task.OutputDir, 0o700)
}

// countingWriter counts what is written.
type countingWriter struct {
	w io.Writer
	n int64
}

// Write implements io.Writer.
func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
