// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/Agent-FM/caddy-agentfm/handler/auth"
	"github.com/Agent-FM/caddy-agentfm/internal/webhook"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/openai"
	"github.com/Agent-FM/caddy-agentfm/router"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// siteName stands for the settings with which the site runs tasks. It is the same after
// a restart and, for a site that has not changed, after a reload.
func (h *Handler) siteName() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %v %d %d", h.PolicyRaw, h.retries, h.queue, h.FirstByteTimeout, h.TaskTimeout))
	return hex.EncodeToString(sum[:8])
}

// taskRunner runs submitted tasks over the mesh, as the site runs other requests. It
// implements tasks.Runner.
type taskRunner struct{ h *Handler }

// Run implements tasks.Runner.
func (t taskRunner) Run(ctx context.Context, j tasks.Job) (tasks.Attempt, error) {
	l, err := t.h.gateway.Lease()
	if err != nil {
		return nil, t.Failure(err)
	}
	a := &taskAttempt{lease: l, prompt: j.Prompt}
	if lost := j.Record.LostRunID(); lost != "" { // it may have left files
		_ = l.DropArtifact(lost)
	}
	a.run, err = l.Dispatch(ctx, mesh.Call{
		Target:    targetOf(j.Record.Target),
		Prompt:    j.Prompt,
		TaskID:    j.Record.RunID(),
		Selector:  t.h.policy,
		Retries:   t.h.retries,
		FirstByte: time.Duration(t.h.FirstByteTimeout),
		Timeout:   min(t.h.runTime(), cmp.Or(j.Record.Bounds.Run, mesh.MaxTaskTimeout)),
		Queue: mesh.Queue{
			Wait: min(max(time.Duration(t.h.queue.Wait), defaultQueueWait), j.Wait), Size: cmp.Or(t.h.queue.Size, defaultQueueSize),
			Client: "user " + j.Record.Owner,
		},
		Again: true,
		Begin: func(s mesh.Served) error {
			return j.Begin(tasks.Worker{Peer: s.Peer, Agent: s.Agent, Model: s.Model})
		},
	})
	if err != nil {
		l.Release()
		return nil, t.Failure(err)
	}
	return a, nil
}

// Signer implements tasks.Runner.
func (t taskRunner) Signer(owner string) *webhook.Signer {
	if t.h.keys == nil {
		return nil
	}
	return t.h.keys.Signer(owner)
}

// runTime is how long a worker may take for a task of this site.
func (h *Handler) runTime() time.Duration {
	return cmp.Or(time.Duration(h.TaskTimeout), mesh.TaskTimeout)
}

// targetOf says who may run a task that was stored.
func targetOf(t tasks.Target) router.Request {
	req := router.Request{Peer: t.Worker, Model: t.Model, Exclude: t.Exclude}
	if t.Limited || t.Only != "" {
		identity := auth.Unrestricted("")
		if t.Limited {
			identity = auth.Limited(t.Models)
		}
		req.May = func(peer, agent, model string) bool {
			return (t.Only == "" || peer == t.Only) && identity.MayUse(peer, agent, model)
		}
	}
	return req
}

// Failure implements tasks.Runner.
func (taskRunner) Failure(err error) *tasks.Failure {
	is := func(target error) bool { return errors.Is(err, target) }
	f := &tasks.Failure{Err: err}
	switch {
	case is(tasks.ErrEnded), is(tasks.ErrStore): // from Begin
		return f
	case is(router.ErrBusy), is(router.ErrQueueFull), is(router.ErrCrowdedOut), is(wire.ErrCapacity):
		f.Kind = tasks.Busy
		return f
	case is(router.ErrNoMatch), is(router.ErrExcluded), is(router.ErrNoRoute), is(mesh.ErrNotRunning):
		f.Kind = tasks.Away
		return f
	case is(router.ErrPromptTooLong), is(wire.ErrFrameTooLarge):
		f.Reason, f.Message = "context_length_exceeded", "the prompt is larger than any worker takes that matches"
		return f
	case is(wire.ErrRefused), is(mesh.ErrUnreachable), is(mesh.ErrUnavailable): // no agent ran
		f.Kind = tasks.Away
	case stopped(err):
		f.Kind = tasks.Broken
	case is(wire.ErrAgentFailed), is(os.ErrDeadlineExceeded), is(mesh.ErrNoRoom), is(mesh.ErrArtifactSize):
	case is(mesh.ErrStream), is(wire.ErrTruncated), is(mesh.ErrArtifact), is(mesh.ErrTaskID):
		f.Kind = tasks.Broken
	}
	p := problemOf(err)
	f.Reason, f.Message = cmp.Or(string(p.ended), p.code), p.message
	if f.Kind == tasks.Final && is(os.ErrDeadlineExceeded) {
		f.Reason = string(wire.CauseDeadline)
	}
	return f
}

// stopped reports whether an agent was stopped, by a worker that ends: its task did not end
// so by itself.
func stopped(err error) bool {
	e, ok := errors.AsType[*wire.AgentError](err)
	return ok && e.Cause == wire.CauseCancelled
}

// Keep implements tasks.Runner.
func (t taskRunner) Keep(r *tasks.Record) error {
	l, err := t.h.gateway.Lease()
	if err != nil {
		return err
	}
	defer l.Release()
	if err := l.KeepArtifact(r.RunID(), r.ID); !errors.Is(err, fs.ErrNotExist) { // it was done, or they are removed
		return err
	}
	return nil
}

// taskAttempt is a task that a worker runs.
type taskAttempt struct {
	countedRun
	lease  lease
	prompt string
	once   sync.Once
}

// countedRun is a run whose output is counted.
type countedRun struct {
	run
	begin []byte // of the output, whose tokens are counted
	size  int64  // of the output
	end   error  // once it has come
}

// maxCounted is how much of an output has its tokens counted.
const maxCounted = 8 << 10

// Read implements run.
func (c *countedRun) Read(p []byte) (int, error) {
	n, err := c.run.Read(p)
	c.begin = append(c.begin, p[:min(n, maxCounted-len(c.begin))]...)
	c.size += int64(n)
	c.end = err
	return n, err
}

// result says what the task has left, as far as its worker says.
func (c *countedRun) result() tasks.Result {
	var result tasks.Result
	if files := c.Artifact(); files != nil {
		result.Artifact = &tasks.Artifact{Bytes: files.Size, SHA256: strings.ToLower(files.SHA256), Files: files.Files}
	}
	if u := c.Usage(); u != nil {
		result.Usage = &tasks.Usage{Prompt: u.Prompt, Completion: u.Completion}
	}
	return result
}

// Close implements tasks.Attempt.
func (a *taskAttempt) Close() error {
	defer a.once.Do(a.lease.Release)
	return a.run.Close()
}

// Result implements tasks.Attempt. What the agent's model has not counted is estimated.
func (a *taskAttempt) Result() tasks.Result {
	result := a.result()
	if result.Usage == nil {
		u := &tasks.Usage{Prompt: openai.CountTokens(a.prompt), Completion: openai.CountTokens(string(a.begin)), Estimated: true}
		if n := int64(len(a.begin)); a.size > n {
			u.Completion = int(float64(u.Completion) / float64(n) * float64(a.size))
		}
		result.Usage = u
	}
	return result
}
