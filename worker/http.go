// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/gostream"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Limits of mesh protocol 2.
const (
	// idleTimeout is how long a gateway may keep a stream open without a request.
	// Gateways close theirs earlier.
	idleTimeout = 5 * time.Minute
	// maxHeader is the largest head of a request in bytes.
	maxHeader = 64 << 10
	// maxBody is the largest body in bytes.
	maxBody = 32 << 20
	// restTimeout is for the rest of a body that nobody wants.
	restTimeout = 5 * time.Second
)

// bodyTimeout is how long a body of so many bytes may take. A variable for tests.
var bodyTimeout = mesh.BodyTimeout

// listen begins to serve mesh protocol 2, until the server that it returns is closed.
func (a *agent) listen() (*http.Server, error) {
	l, err := gostream.Listen(a.host, wire.HTTPProtocol)
	if err != nil {
		return nil, err
	}
	srv := &http.Server{
		Handler:           a,
		ReadHeaderTimeout: mesh.FrameTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, streamKey{}, c)
		},
		ConnState: a.conns.state,
		ErrorLog:  errorLog(a.log()),
	}
	a.services.Go(func() { _ = srv.Serve(listener{l, a.conns}) })
	return srv, nil
}

// errorLog is where net/http writes what it does not like of its peers: any stranger
// can have it written.
func errorLog(to *zap.Logger) *log.Logger {
	l, err := zap.NewStdLogAt(to, zap.DebugLevel)
	if err != nil { // of a level that there is not
		return log.New(io.Discard, "", 0)
	}
	return l
}

// streamKey is where the context of a request has its stream.
type streamKey struct{}

// call is one request of mesh protocol 2.
type call struct {
	a       *agent
	w       http.ResponseWriter
	r       *http.Request
	rc      *http.ResponseController
	stream  *conn
	gateway peer.ID
	budget  *budgetReader
	begun   time.Time
	end     time.Time // of the task's time, once there is a task
	working bool      // on a task, of whose answer nothing is written
}

// ServeHTTP serves mesh protocol 2. The peer at the other end of the stream is who
// calls.
func (a *agent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := r.Context().Value(streamKey{}).(*conn)
	if !s.begin() { // the gateway will see that our side is closed
		panic(http.ErrAbortHandler)
	}
	c := &call{a: a, w: w, r: r, rc: http.NewResponseController(w), stream: s, gateway: s.Conn().RemotePeer(), begun: time.Now()}
	defer c.release()
	_ = c.rc.SetWriteDeadline(c.begun.Add(writeTimeout))
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p != http.ErrAbortHandler {
			a.log().Error("panic while serving a request", zap.String("path", r.URL.Path), zap.Any("panic", p), zap.Stack("stack"))
		}
		panic(http.ErrAbortHandler)
	}()
	c.route()
	s.answered() // not when it was broken off
}

// route serves the request by its path.
func (c *call) route() {
	a, r := c.a, c.r
	c.showLoad()
	if !a.allows(c.gateway) {
		c.refuse(&refusal{wire.RefusalForbidden, "This gateway is not on the worker's list."})
		return
	}
	rest, isTask := strings.CutPrefix(r.URL.Path, wire.PathTasks+"/")
	switch {
	case r.URL.Path == wire.PathProtocols && r.Method == http.MethodGet:
		c.answer(protocols)
	case r.URL.Path == wire.PathProfile && r.Method == http.MethodGet:
		c.profile()
	case r.URL.Path == wire.PathTasks && r.Method == http.MethodPost:
		c.task()
	case isTask && r.Method == http.MethodDelete && wire.ValidTaskID(rest):
		c.forget(rest)
	case isTask && r.Method == http.MethodGet && strings.HasSuffix(rest, "/artifacts"):
		c.artifact(strings.TrimSuffix(rest, "/artifacts"))
	case strings.HasPrefix(r.URL.Path, "/v1/"):
		c.openAI()
	default:
		c.exposed()
	}
}

// protocols is what is served where, as the HTTP specification of libp2p has it.
var protocols = map[string]any{
	"/agentfm/2": map[string]string{"path": "/agentfm/v2/"},
	"/openai/1":  map[string]string{"path": "/v1/"},
}

// showLoad says in a header how many tasks run.
func (c *call) showLoad() {
	g := c.a.active.Load()
	if g == nil {
		return
	}
	c.a.mu.Lock()
	running := len(c.a.tasks)
	c.a.mu.Unlock()
	c.w.Header().Set(wire.HeaderLoad, strconv.Itoa(running)+"/"+strconv.Itoa(g.config.MaxTasks))
}

// update has the head of a task's answer say what the load is now: when the task began
// may be long ago.
func (c *call) update() {
	if c.working {
		c.working = false
		c.showLoad()
	}
}

// statuses are those of refusals.
var statuses = map[wire.Refusal]int{
	wire.RefusalCapacity:    http.StatusServiceUnavailable,
	wire.RefusalUnavailable: http.StatusServiceUnavailable,
	wire.RefusalForbidden:   http.StatusForbidden,
	wire.RefusalRoute:       http.StatusNotFound,
	wire.RefusalRequest:     http.StatusBadRequest,
}

// refuse answers a request with which no work was begun.
func (c *call) refuse(why *refusal) {
	message := why.words()
	c.a.log().Debug("request refused", zap.Stringer("gateway", c.gateway), zap.String("path", c.r.URL.Path), zap.String("reason", message))
	c.w.Header().Set(wire.HeaderRefusal, string(why.reason))
	if why.reason == wire.RefusalCapacity {
		c.w.Header().Set("Retry-After", "1")
	}
	c.fail(statuses[why.reason], string(why.reason), message)
}

// fail answers with an error in the form of OpenAI's.
func (c *call) fail(status int, code, message string) {
	kind := "invalid_request_error"
	if status >= http.StatusInternalServerError {
		kind = "server_error"
	}
	body, _ := json.Marshal(map[string]any{"error": map[string]any{"message": message, "type": kind, "code": code, "param": nil}})
	c.write(status, body)
}

// answer answers with JSON.
func (c *call) answer(v any) {
	body, err := json.Marshal(v)
	if err != nil {
		c.fail(http.StatusInternalServerError, "internal_error", "internal error")
		return
	}
	c.write(http.StatusOK, body)
}

func (c *call) write(status int, body []byte) {
	// The server reads what is left of a body before it answers.
	_ = c.rc.SetReadDeadline(time.Now().Add(min(bodyTimeout(0), restTimeout)))
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	c.w.WriteHeader(status)
	_, _ = c.w.Write(body) // a gateway that has gone needs no answer
}

// profile serves what the agent says of itself.
func (c *call) profile() {
	p, ok := c.a.profile(c.r.Context())
	if !ok {
		c.refuse(c.a.notReady())
		return
	}
	c.answer(p)
}

// readBody reads the whole body. It takes the memory from the budget of the peer,
// and comes before any slot is taken: who withholds a body holds nothing else.
func (c *call) readBody(limit int64) ([]byte, *refusal) {
	if c.r.ContentLength > limit {
		return nil, unfit(fmt.Sprintf("The body has %d bytes; this worker takes at most %d.", c.r.ContentLength, limit))
	}
	c.budget = &budgetReader{r: http.MaxBytesReader(c.w, c.r.Body, limit), scope: c.stream.Scope()}
	_ = c.rc.SetReadDeadline(time.Now().Add(bodyTimeout(max(c.r.ContentLength, 0))))
	body, err := wire.ReadBody(c.budget, c.r.ContentLength, maxBudgetStep)
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, unfit(fmt.Sprintf("The body is over %d bytes.", limit))
	}
	switch {
	case errors.Is(err, network.ErrResourceLimitExceeded):
		return nil, busy(wire.Refuse("Worker has no memory for the body now: busy. Try another worker."))
	case err != nil:
		return nil, unfit("The body did not arrive.")
	}
	_ = c.rc.SetReadDeadline(time.Time{})
	return body, nil
}

// release gives the memory of the body back.
func (c *call) release() {
	if c.budget != nil {
		c.budget.release()
	}
}

// lateTime is how long the end of an answer may take to be read when the time of the
// task is over.
const lateTime = 5 * time.Second

// writeDeadline returns until when a piece of the answer must be taken: a gateway that
// does not read must not hold a slot for longer than the task may.
func (c *call) writeDeadline() time.Time {
	now := time.Now()
	deadline := now.Add(writeTimeout)
	if c.end.IsZero() {
		return deadline
	}
	late := c.end.Add(lateTime)
	if soon := now.Add(lateTime); late.Before(soon) {
		late = soon
	}
	if late.Before(deadline) {
		return late
	}
	return deadline
}

// Write writes a piece of the answer, and sends it: each gets its time.
func (c *call) Write(p []byte) (int, error) {
	_ = c.rc.SetWriteDeadline(c.writeDeadline())
	c.update()
	n, err := c.w.Write(p)
	if err == nil {
		err = c.rc.Flush()
	}
	return n, err
}

// Interface guards
var (
	_ http.Handler = (*agent)(nil)
	_ io.Writer    = (*call)(nil)
)
