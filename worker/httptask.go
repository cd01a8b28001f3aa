// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Files that a task has left wait for its gateway.
const (
	keepTime = 10 * time.Minute // without being asked for
	maxKept  = 256              // of one agent
)

// kept is the zip of a task that is waiting for its gateway.
type kept struct {
	*zipped
	gateway peer.ID
	since   time.Time
	fetched bool          // the gateway has asked; under the agent's mutex
	asked   chan struct{} // gets a value when it does
	drop    chan struct{} // closed when it has all, or wants none
}

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
	c.showLoad()
	c.w.Header().Set("Content-Type", "text/event-stream")
	events := wire.NewEventWriter(c)
	e, keeping := c.run(g, t, req, events)
	// The slot is free before the gateway sees the end: its next task comes at once.
	a.free(req.TaskID)
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
	_ = e.zip.Close()
	return ending{how: failed, cause: wire.CauseRuntimeError, words: errTooManyKept.Error(), err: errTooManyKept}, false
}

// errTooManyKept says that the files of a task found no place.
var errTooManyKept = errors.New("the files of too many tasks wait for their gateways")

// exit writes how the task ended.
func (c *call) exit(events *wire.EventWriter, e ending) error {
	switch {
	case e.how == cancelled:
		return nil
	case e.zip != nil:
		if err := events.Artifact(wire.Artifact{Size: e.zip.size, SHA256: hex.EncodeToString(e.zip.sum[:]), Skipped: e.zip.skipped}); err != nil {
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
	return events.Exit(wire.Exit{Status: status, Cause: e.cause, Code: e.code, Reason: e.words})
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

// keep keeps a zip for the gateway of its task, and its folder. When too many wait,
// the oldest that its gateway has not asked for makes room; false when there is none.
// An agent that is leaving waits until the gateway has it.
func (a *agent) keep(id string, gateway peer.ID, z *zipped, dir string) bool {
	k := &kept{zipped: z, gateway: gateway, since: time.Now(), asked: make(chan struct{}, 1), drop: make(chan struct{})}
	a.mu.Lock()
	if _, taken := a.kept[id]; taken || len(a.kept) >= maxKept && !a.evictKept() {
		a.mu.Unlock()
		return false
	}
	a.kept[id] = k
	a.mu.Unlock()
	metrics.ArtifactBuilt()
	go func() {
		defer a.done()
		defer a.remove(dir)
		defer z.Close()
		defer func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.kept[id] == k { // and not the next of that id
				delete(a.kept, id)
			}
		}()
		for wait := keepTime; ; wait = mesh.ArtifactTimeout {
			select {
			case <-k.asked:
			case <-k.drop:
				return
			case <-a.base.Done():
				return
			case <-time.After(wait):
				return
			}
		}
	}()
	return true
}

// evictKept drops the zip that has waited the longest without being asked for. The
// caller holds a.mu.
func (a *agent) evictKept() bool {
	oldest := ""
	for id, k := range a.kept {
		if !k.fetched && (oldest == "" || k.since.Before(a.kept[oldest].since)) {
			oldest = id
		}
	}
	if oldest == "" {
		return false
	}
	close(a.kept[oldest].drop)
	delete(a.kept, oldest)
	return true
}

// dropKept drops the zip of a task of a gateway; false when there is none.
func (a *agent) dropKept(id string, gateway peer.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	k := a.kept[id]
	if k == nil || k.gateway != gateway {
		return false
	}
	delete(a.kept, id)
	close(k.drop)
	return true
}

// artifact serves the zip of a task to the gateway of that task, in parts as well.
func (c *call) artifact(id string) {
	k := c.a.keptFor(id, c.gateway)
	if k == nil {
		c.fail(http.StatusNotFound, "task_not_found", "There are no files of this task.")
		return
	}
	select {
	case k.asked <- struct{}{}:
	default:
	}
	h := c.w.Header()
	h.Set("Content-Type", "application/zip")
	h.Set("ETag", wire.ArtifactTag(hex.EncodeToString(k.sum[:])))
	http.ServeContent(&fileWriter{c.w, c.rc}, c.r, "", time.Time{}, io.NewSectionReader(k.File, 0, k.size))
}

// fileWriter writes a zip, each piece in its time.
type fileWriter struct {
	http.ResponseWriter
	rc *http.ResponseController
}

// Write implements io.Writer.
func (w *fileWriter) Write(p []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	n, err := w.ResponseWriter.Write(p)
	metrics.ArtifactSent(int64(n))
	return n, err
}

// keptFor returns the zip of a task of a gateway; nil when there is none.
func (a *agent) keptFor(id string, gateway peer.ID) *kept {
	a.mu.Lock()
	defer a.mu.Unlock()
	if k := a.kept[id]; k != nil && k.gateway == gateway {
		k.fetched = true
		return k
	}
	return nil
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
