// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// runChoices runs the task of each choice and hands it to serve, which reads it.
// Tasks of several choices run at the same time, as far as there are slots. The
// first failure ends them all; where an agent has run by then, the request must not
// be sent again by itself.
func (x *exchange) runChoices(c completion, serve func(ctx context.Context, i int, task run) error) error {
	if _, err := x.takeLease(); err != nil {
		return err
	}
	if c.choices == 1 {
		return x.runChoice(x.r.Context(), c, 0, serve)
	}
	ctx, cancel := context.WithCancelCause(x.r.Context())
	defer cancel(nil)
	var f family
	f.ended = make(chan struct{})
	var ran atomic.Bool
	serving := func(ctx context.Context, i int, task run) error {
		ran.Store(true)
		return serve(ctx, i, task)
	}
	var all sync.WaitGroup
	panics := make(chan any, c.choices)
	for i := range c.choices {
		f.join()
		all.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					panics <- p
					cancel(nil)
				}
			}()
			if err := f.run(ctx, func() error { return x.runChoice(ctx, c, i, serving) }); err != nil {
				cancel(err)
			}
		})
	}
	all.Wait()
	if len(panics) > 0 {
		panic(<-panics) // the server survives a request's, but not that of a goroutine
	}
	err := context.Cause(ctx)
	if noRoom(err) {
		metrics.TaskEnded(metrics.Rejected, time.Since(x.begun))
	}
	if err == nil || !ran.Load() || x.r.Context().Err() != nil {
		return err
	}
	p := *problemOf(err)
	p.final = true
	return &p
}

// runChoice runs the task of one choice.
func (x *exchange) runChoice(ctx context.Context, c completion, i int, serve func(ctx context.Context, i int, task run) error) error {
	task, err := x.dispatch(ctx, x.call(c), c.param)
	if err != nil {
		return err
	}
	defer task.Close()
	return serve(ctx, i, task)
}

// family is the tasks of one request. One that finds every worker full waits for
// another of them to end, for that gives its slot back.
type family struct {
	mu      sync.Mutex
	running int           // not ended, and not waiting
	ended   chan struct{} // closed with the next end
}

// join counts a task.
func (f *family) join() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running++
}

// run runs a task until it finds a slot and has ended.
func (f *family) run(ctx context.Context, task func() error) error {
	for {
		err := task()
		if !noRoom(err) {
			f.leave()
			return err
		}
		next := f.wait()
		if next == nil {
			return err
		}
		select {
		case <-next:
			f.join()
		case <-ctx.Done():
			return err
		}
	}
}

// noRoom reports whether a task found no slot, nor a place in the queue for one.
func noRoom(err error) bool {
	for _, target := range []error{router.ErrBusy, router.ErrQueueFull, router.ErrCrowdedOut, wire.ErrCapacity} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// leave says that a task has ended.
func (f *family) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running--
	close(f.ended)
	f.ended = make(chan struct{})
}

// wait says that a task waits for the end of another, and returns the channel
// that is closed then; nil when no other runs.
func (f *family) wait() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running--; f.running == 0 {
		return nil
	}
	return f.ended
}
