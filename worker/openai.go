// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// offered is an Offer with what tells it from another.
type offered struct {
	Offer
	tag string
}

// away returns why the runtime can begin no task, if that is so.
func (g *generation) away() wire.Cause {
	if m, ok := g.runtime.(MayBeAway); ok && g.ready.Load() {
		return m.Away()
	}
	return ""
}

// available reports whether the back-end of the agent answers, where it has one.
func (g *generation) available() bool {
	if g.away() != "" {
		return false
	}
	s := serverOf(g.runtime)
	if s == nil || !g.ready.Load() {
		return true
	}
	_, up := s.Offer()
	return up
}

// fault says why the back-end is not available.
func (g *generation) fault() string {
	now, _ := serverOf(g.runtime).Offer()
	return cmp.Or(now.Fault, "does not answer")
}

// offered returns what the agent's back-end serves, or served before it was gone;
// nil where there is none.
func (g *generation) offered() *offered {
	s := serverOf(g.runtime)
	if s == nil || !g.ready.Load() {
		return nil
	}
	now, up := s.Offer()
	last := g.lastOffer.Load()
	if !up || len(now.Models) == 0 {
		return last
	}
	if last != nil && slices.Equal(last.Models, now.Models) && slices.Equal(last.Routes, now.Routes) {
		return last
	}
	text, _ := json.Marshal(now)
	sum := sha256.Sum256(text)
	o := &offered{now, hex.EncodeToString(sum[:8])}
	g.lastOffer.Store(o)
	return o
}

// serves reports whether a path is a route, or lies below one. Servers differ in
// what they make of other spellings of a path.
func (o *offered) serves(p string) bool {
	return path.Clean(p) == p && !strings.Contains(p, `\`) && slices.ContainsFunc(o.Routes, func(route string) bool {
		rest, ok := strings.CutPrefix(p, route)
		return ok && (rest == "" || rest[0] == '/')
	})
}

// maxAside is the largest body of a request that is no work, in bytes.
const maxAside = 64 << 10

// openAI serves a request of OpenAI's API, where the agent's runtime can.
func (c *call) openAI() {
	if c.target() != nil {
		c.pass()
	}
}

// target returns who serves the request now; nil when it was refused.
func (c *call) target() *generation {
	g := c.a.active.Load()
	if g == nil {
		c.refuse(c.a.notReady())
		return nil
	}
	o := g.offered()
	if o == nil {
		c.refuse(&refusal{wire.RefusalRoute, "The agent of this worker takes a text, and serves nothing of OpenAI's API."})
		return nil
	}
	switch {
	case !o.serves(c.r.URL.Path):
		c.refuse(&refusal{wire.RefusalRoute, fmt.Sprintf("This worker does not serve %.100s.", c.r.URL.Path)})
		return nil
	case !g.available():
		c.refuse(&refusal{wire.RefusalUnavailable, "The model server of this worker " + g.fault() + "."})
		return nil
	}
	return g
}

// pass has the body, and a slot where the request is work for the back-end.
func (c *call) pass() {
	limit := int64(maxAside)
	if isWork(c.r) {
		limit = maxBody
	}
	body, refused := c.readBody(limit)
	if refused != nil {
		c.refuse(refused)
		return
	}
	g := c.target() // as the body came, another configuration may have taken over
	if g == nil {
		return
	}
	if len(body) > 0 || c.r.Body != http.NoBody {
		c.r.Body, c.r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		c.r.TransferEncoding = nil
	}
	if isWork(c.r) {
		c.create(g)
		return
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), time.Duration(g.config.Timeout))
	defer cancel()
	c.serve(g, ctx, nil)
}

// isWork reports whether a request may have the back-end work. To look at what is
// there, to delete it and to cancel is none.
func isWork(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodDelete:
		return false
	default:
		return !strings.HasSuffix(r.URL.Path, "/cancel")
	}
}

// create serves a request in a slot.
func (c *call) create(g *generation) {
	id := wire.NewTaskID()
	t, refused := c.a.take(g, id, c.gateway, c.stream.Conn())
	if refused != nil {
		c.refuse(refused)
		return
	}
	c.end = t.end
	began := time.Now()
	stop := context.AfterFunc(c.r.Context(), func() { t.stop(errGatewayGone) })
	vacate := sync.OnceFunc(func() { c.a.vacate(id) })
	defer func() { // also when the runtime panics to break the answer off
		stop()
		cause := context.Cause(t.ctx)
		vacate()
		t.stop(nil)
		c.stream.whenRead(c.a.done)
		c.a.log().Debug("request ended", zap.Stringer("gateway", c.gateway), zap.String("path", c.r.URL.Path),
			zap.Duration("took", time.Since(began)), zap.NamedError("cause", cause))
	}()
	ctx, cancel := context.WithDeadline(t.ctx, t.end)
	defer cancel()
	c.serve(g, ctx, vacate)
}

// serve has the runtime answer; for last, see paced.
func (c *call) serve(g *generation, ctx context.Context, last func()) {
	w := c.paced(last)
	w.limited = c.begun
	serverOf(g.runtime).ServeHTTP(w, c.r.WithContext(ctx))
	w.begin()
	w.limit() // for the end of the answer
}

// pacedWriter bounds the time of each write: the agent may be silent for as long as
// it likes, and its pieces get their time.
type pacedWriter struct {
	http.ResponseWriter
	c       *call
	limited time.Time // when the deadline was set
	begun   bool      // the head is written
	left    int64     // of the answer; -1 where it has no length
	last    func()    // may be nil
}

// paced returns a writer for the answer. Before the last bytes of one that has a length, it
// calls last, if there is that.
func (c *call) paced(last func()) *pacedWriter {
	return &pacedWriter{ResponseWriter: c.w, c: c, last: last, left: -1}
}

// WriteHeader writes the head, with the load of this moment: when the request came is
// long ago for a model that thinks.
func (w *pacedWriter) WriteHeader(status int) {
	if !w.begun && status >= http.StatusOK {
		w.begun = true
		w.c.showLoad()
		if n, err := strconv.ParseInt(w.Header().Get("Content-Length"), 10, 64); err == nil {
			w.left = n
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

// begin writes the head of an answer that has no status.
func (w *pacedWriter) begin() {
	if !w.begun {
		w.WriteHeader(http.StatusOK)
	}
}

// limit gives the next write its time, or almost: not every one sets the deadline anew.
func (w *pacedWriter) limit() {
	if now := time.Now(); now.Sub(w.limited) > writeTimeout/8 {
		_ = w.c.rc.SetWriteDeadline(w.c.writeDeadline())
		w.limited = now
	}
}

// Write implements io.Writer.
func (w *pacedWriter) Write(p []byte) (int, error) {
	w.limit()
	w.begin()
	if w.left >= 0 && w.last != nil {
		if w.left -= int64(len(p)); w.left <= 0 {
			w.last() // the gateway takes that for the end, and its next request comes at once
		}
	}
	return w.ResponseWriter.Write(p)
}

// FlushError is for http.ResponseController. What was written may go out only now.
func (w *pacedWriter) FlushError() error {
	w.limit()
	w.begin()
	return w.c.rc.Flush()
}

// Unwrap is for http.ResponseController.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
