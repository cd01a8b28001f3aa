// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"net/http"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// task serves a task: it is read, gets a slot, and answers with events.
func (c *call) task() {
	a := c.a
	body, refused := c.readBody(wire.MaxTaskFrame)
	if refused != nil {
		c.refuse(refused)
		return
	}
	req, err := wire.DecodeTask(body)
	if err != nil {
		c.refuse(unfit("The task is malformed: " + err.Error()))
		return
	}
	t, g, refused := a.admit(c.gateway, c.stream.Conn(), req)
	if refused != nil {
		c.refuse(refused)
		return
	}
	c.end = t.end
	began := time.Now()
	stop := context.AfterFunc(c.r.Context(), func() { t.stop(errGatewayGone) })
	c.working = true
	c.w.Header().Set("Content-Type", "text/event-stream")
	events := wire.NewEventWriter(c)
	e, keeping := c.run(g, t, req, events)
	c.update() // with this task, whose slot the gateway still holds
	// The slot is free before the gateway sees the end: its next task comes at once.
	a.vacate(req.TaskID)
	t.stop(nil)
	stop()
	if err := c.exit(events, e); err != nil {
		if e.err == nil {
			e.how, e.cause, e.err = cancelled, wire.CauseCancelled, err
		}
		a.dropKept(req.TaskID, c.gateway)
	}
	if !keeping {
		c.stream.whenRead(a.done)
	}
	a.log().Info("task ended", zap.Stringer("gateway", c.gateway), zap.String("task", req.TaskID),
		zap.String("how", e.how), zap.String("cause", string(e.cause)), zap.Duration("took", time.Since(began)), zap.Error(e.err))
}

// run runs the task. What it has left is kept, and the task not done, until its
// gateway has it.
func (c *call) run(g *generation, t *running, req wire.TaskRequest, events *wire.EventWriter) (e ending, keeping bool) {
	dir, err := os.MkdirTemp(c.a.tasksDir, req.TaskID+"-")
	if err != nil {
		return ending{how: failed, cause: wire.CauseRuntimeError, words: "the worker has no folder for it", err: err}, false
	}
	defer func() {
		if !keeping {
			c.a.remove(dir)
		}
	}()
	e = c.a.execute(g, t, req, dir, &pipe{events, t})
	switch {
	case e.zip == nil:
		return e, false
	case c.a.keep(req.TaskID, c.gateway, e.zip, dir):
		return e, true
	}
	e.zip.free()
	return ending{how: failed, cause: wire.CauseRuntimeError, words: errTooManyKept.Error(), err: errTooManyKept}, false
}

// exit writes how the task ended.
func (c *call) exit(events *wire.EventWriter, e ending) error {
	switch {
	case e.how == cancelled:
		return nil
	case e.zip != nil:
		if err := events.Artifact(e.zip.artifact()); err != nil {
			return err
		}
	}
	status := wire.ExitOK
	switch e.how {
	case failed:
		status = wire.ExitFailed
	case stopped:
		status = wire.ExitStopped
	}
	return events.Exit(wire.Exit{Status: status, Cause: e.cause, Code: e.code, Reason: e.words, Usage: e.usage})
}

// pipe is the events as a task's output. A gateway that does not take it ends the
// task.
type pipe struct {
	events *wire.EventWriter
	t      *running
}

// Write implements io.Writer.
func (p *pipe) Write(b []byte) (int, error) {
	n, err := p.events.Write(b)
	if err != nil {
		p.t.stop(errGatewayGone)
	}
	return n, err
}

// forget stops a task of the gateway, or drops what it has left.
func (c *call) forget(id string) {
	a := c.a
	a.mu.Lock()
	t := a.tasks[id]
	a.mu.Unlock()
	switch {
	case t != nil && t.gateway == c.gateway:
		t.stop(errGatewayGone)
	case !a.dropKept(id, c.gateway):
		c.fail(http.StatusNotFound, "task_not_found", "There is no such task.")
		return
	}
	c.w.WriteHeader(http.StatusNoContent)
}
