// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// writeTimeout is how long a gateway may take to accept a piece of output. A
// variable for tests.
var writeTimeout = time.Minute

const (
	// finishTimeout is how long it may take to read the last of it when Caddy exits.
	finishTimeout = 10 * time.Second
	// finishHalfTime is what it gets when it cannot tell that it has.
	finishHalfTime = time.Second
)

// running is a task that has a slot.
type running struct {
	gateway peer.ID
	end     time.Time // when its time is up
	conn    network.Conn
	ctx     context.Context
	stop    context.CancelCauseFunc
	watched chan struct{} // closed when the gateway's side of the stream has ended
}

// serve handles a stream of the task protocol.
func (a *agent) serve(s network.Stream) {
	log := a.log().With(zap.Stringer("gateway", s.Conn().RemotePeer()))
	if !a.allows(s.Conn().RemotePeer()) {
		log.Debug("task refused: the gateway is not in allow_peers")
		refuse(s, wire.Refuse("This gateway is not on the worker's list."))
		return
	}
	req, err := a.readTask(s)
	if err != nil {
		log.Debug("task stream refused", zap.Error(err))
		metrics.StreamError(metrics.Task, mesh.StreamFailure(err))
		_ = s.Reset()
		return
	}
	log = log.With(zap.String("task", req.TaskID))
	t, g, refused := a.admit(s.Conn().RemotePeer(), s.Conn(), req)
	if refused != nil {
		log.Debug("task refused", zap.String("reason", refused.line))
		refuse(s, refused.line)
		return
	}
	began := time.Now()
	how, cause, err := a.run(s, g, t, req)
	// The slot is free before the gateway sees the end: its next task comes at once.
	a.vacate(req.TaskID)
	t.stop(nil)
	if how == cancelled {
		_ = s.Reset()
	} else {
		a.finish(s, t)
	}
	a.done()
	log.Info("task ended", zap.String("how", how), zap.String("cause", string(cause)), zap.Duration("took", time.Since(began)), zap.Error(err))
}

// allows reports whether a gateway may send tasks. The list of the newest
// configuration holds at once, also while its runtime is not ready.
func (a *agent) allows(gateway peer.ID) bool {
	g, ok := a.Newest()
	if !ok {
		g = a.active.Load() // the agent is leaving, or coming back
	}
	return g != nil && (len(g.allow) == 0 || slices.Contains(g.allow, gateway))
}

// refuse answers a task that is not run.
func refuse(s network.Stream, refusal string) {
	_ = answer(s, refusal+"\n")
	_ = s.Close()
}

// readTask reads the task frame. A stream that withholds it holds a little of
// the peer's budget of memory and no slot.
func (a *agent) readTask(s network.Stream) (wire.TaskRequest, error) {
	budget := &budgetReader{r: s, scope: s.Scope()}
	defer budget.release()
	_ = s.SetReadDeadline(time.Now().Add(mesh.FrameTimeout))
	req, err := wire.ReadTask(budget)
	_ = s.SetReadDeadline(time.Time{})
	return req, err
}

// budgetReader takes the memory that is read from the budget of the peer.
type budgetReader struct {
	r        io.Reader
	scope    network.ResourceScope
	read     int
	reserved int
}

// Memory is reserved in steps that double: thousands of small requests at one time
// take little, and a large one takes few steps.
const (
	minBudgetStep = 2 << 10
	maxBudgetStep = 32 << 10
)

// Read implements io.Reader.
func (b *budgetReader) Read(p []byte) (int, error) {
	if b.read >= b.reserved {
		step := min(max(b.reserved, minBudgetStep), maxBudgetStep)
		if err := b.scope.ReserveMemory(step, network.ReservationPriorityMedium); err != nil {
			return 0, err
		}
		b.reserved += step
	}
	n, err := b.r.Read(p[:min(len(p), b.reserved-b.read)])
	b.read += n
	return n, err
}

func (b *budgetReader) release() { b.scope.ReleaseMemory(b.reserved) }

// vacate gives the slot of a task back.
func (a *agent) vacate(id string) {
	a.mu.Lock()
	delete(a.tasks, id)
	a.mu.Unlock()
	a.touch()
}

// finish closes the stream of an answer and waits, for a while, until the gateway
// has it all: an agent that is leaving closes its host with its last task, and
// the rest of the answer would go with it.
func (a *agent) finish(s network.Stream, t *running) {
	_ = s.CloseWrite()
	half := false // the gateway closed its side before: it does not tell when it is done
	select {
	case <-t.watched:
		half = true
	default:
	}
	a.mu.Lock()
	leaving := a.leaving
	a.mu.Unlock()
	patience := writeTimeout
	if caddy.Exiting() {
		patience = finishTimeout
	}
	wait := time.NewTimer(patience)
	defer wait.Stop()
	switch {
	case !half:
		select {
		case <-t.watched:
		case <-wait.C:
		}
	case leaving:
		wait.Reset(finishHalfTime)
		<-wait.C
	default:
		a.mu.Lock()
		a.lastHalf = time.Now()
		a.mu.Unlock()
	}
	_ = s.Close()
}

// disconnected stops the tasks whose connection has ended.
func (a *agent) disconnected(_ network.Network, c network.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.tasks {
		if t.conn.ID() == c.ID() {
			t.stop(errGatewayGone)
		}
	}
}

// How tasks end, for the log.
const (
	succeeded = "ok"
	failed    = "failed"
	stopped   = "stopped"
	cancelled = "cancelled"
)

// ending is how a task ended.
type ending struct {
	how     string
	cause   wire.Cause
	words   string // for the gateway, where the agent did not succeed
	code    int    // the agent's exit status
	started bool   // the agent ran
	usage   *wire.Usage
	zip     *zipped
	err     error // what the operator should know
}

// stoppedBy returns how a task ended whose context has ended.
func (e ending) stoppedBy(cause error) ending {
	if errors.Is(cause, errGatewayGone) {
		return ending{how: cancelled, cause: wire.CauseCancelled}
	}
	e.how, e.words, e.err, e.started = stopped, cause.Error(), cause, true
	e.cause = causeOf(cause, wire.CauseCancelled)
	return e
}

// execute runs the agent, and collects its files in dir.
func (a *agent) execute(g *generation, t *running, req wire.TaskRequest, dir string, out io.Writer) ending {
	ctx, cancel := context.WithDeadlineCause(t.ctx, t.end, &Failure{wire.CauseDeadline, fmt.Errorf("timed out after %s", time.Duration(g.config.Timeout))})
	defer cancel()
	left := filepath.Join(dir, "output")
	if err := os.Mkdir(left, 0o700); err != nil {
		return ending{how: failed, cause: wire.CauseRuntimeError, words: "the worker has no folder for it", err: err}
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	said := &noting{w: out}
	exit, err := g.guarded(ctx, stop, Task{ID: req.TaskID, Prompt: req.Data, Request: string(req.Request), Model: g.config.Model, Output: said, OutputDir: left})
	e := ending{started: err == nil, code: exit.Code, cause: exit.cause(), usage: exit.Usage}
	if cause := context.Cause(ctx); cause != nil {
		return e.stoppedBy(cause)
	}
	switch {
	case err != nil:
		e.how, e.cause, e.err = failed, causeOf(err, wire.CauseRuntimeError), err
		e.words = told(e.cause)
		if e.cause == wire.CauseOutputLimit {
			e.how, e.started = stopped, true
		}
		return e
	case exit.Code != 0 || exit.Reason != "":
		e.how, e.words, e.err = failed, exit.String(), errors.New(exit.String())
		return e
	}
	if e.zip, err = a.collect(ctx, g, req.TaskID, left); err != nil {
		if cause := context.Cause(ctx); cause != nil { // its time was over meanwhile, or its gateway has gone
			return e.stoppedBy(cause)
		}
		e.how, e.cause, e.words, e.err = failed, wire.CauseRuntimeError, "its files could not be collected", err
		return e
	}
	if e.zip == nil && !said.any.Load() {
		e.how, e.cause, e.words = failed, wire.CauseEmpty, "it said nothing and left no files"
		e.err = errors.New(e.words)
		return e
	}
	e.how = succeeded
	return e
}

// noting notes whether anything is written.
type noting struct {
	w   io.Writer
	any atomic.Bool
}

// Write implements io.Writer.
func (n *noting) Write(p []byte) (int, error) {
	if len(p) > 0 {
		n.any.Store(true)
	}
	return n.w.Write(p)
}

// run runs a task and answers on its stream, which it leaves open. It returns how
// the task ended, and what the operator should know of it.
func (a *agent) run(s network.Stream, g *generation, t *running, req wire.TaskRequest) (string, wire.Cause, error) {
	go func() {
		defer close(t.watched)
		watch(s, t.stop)
	}()
	if s.Conn().IsClosed() { // before there was a task to stop
		t.stop(errGatewayGone)
	}
	dir, err := os.MkdirTemp(a.tasksDir, req.TaskID+"-")
	if err != nil {
		return failed, wire.CauseRuntimeError, errors.Join(err, answerFailure(s, wire.StartFailed(errors.New("the worker has no folder for it"))))
	}
	defer a.remove(dir)
	e := a.execute(g, t, req, dir, &output{s, t.stop})
	switch {
	case e.how == cancelled:
		return e.how, e.cause, nil
	case e.words != "" && !e.started:
		return e.how, e.cause, errors.Join(e.err, answerFailure(s, wire.StartFailed(errors.New(e.words))))
	case e.words != "":
		return e.how, e.cause, errors.Join(e.err, answerFailure(s, wire.Exited(e.words)))
	}
	if err := answerFiles(t.ctx, a.host, s, req.TaskID, e.zip); err != nil {
		return cancelled, wire.CauseCancelled, fmt.Errorf("sending files: %w", err) // announced, and not come: no clean end
	}
	return succeeded, e.cause, nil
}

// watch stops the task when its gateway resets the stream. A gateway that closed
// its side, as AgentFM 1.3 does, cannot be watched: it is noticed with the next
// output, or when its connection ends.
func watch(s network.Stream, stop context.CancelCauseFunc) {
	var b [1]byte
	for range maxTrailing {
		n, err := s.Read(b[:])
		if n == 1 && err == nil && strings.IndexByte(" \t\r\n", b[0]) >= 0 {
			continue // after the object, as encoders write it
		}
		if n > 0 || !errors.Is(err, io.EOF) {
			stop(errGatewayGone)
		}
		return
	}
	stop(errGatewayGone)
}

// maxTrailing is how much white space may follow a frame, in bytes.
const maxTrailing = 1 << 10

// output is the stream as a task's output. A gateway that does not take it ends
// the task.
type output struct {
	stream network.Stream
	stop   context.CancelCauseFunc
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	_ = o.stream.SetWriteDeadline(time.Now().Add(writeTimeout))
	n, err := o.stream.Write(p)
	if err != nil {
		o.stop(errGatewayGone)
	}
	return n, err
}

// answerFailure ends the answer of a task that failed. Protocol 1 has no status:
// the line says it.
func answerFailure(s network.Stream, line string) error {
	return answer(s, "\n"+line+"\n\n"+wire.MarkerNoFiles+"\n")
}

// answer writes the end of an answer.
func answer(s network.Stream, text string) error {
	_ = s.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := io.WriteString(s, text)
	return err
}
