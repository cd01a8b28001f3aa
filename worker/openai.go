// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// offered is an Offer with what tells it from another.
type offered struct {
	Offer
	tag string
}

// available reports whether the back-end of the agent answers, where it has one.
func (g *generation) available() bool {
	s := serverOf(g.runtime)
	if s == nil || !g.ready.Load() {
		return true
	}
	_, up := s.Offer()
	return up
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

// routeOf returns the route that a path is, or lies below.
func (o *offered) routeOf(path string) (string, bool) {
	for _, r := range o.Routes {
		if rest, ok := strings.CutPrefix(path, r); ok && (rest == "" || rest[0] == '/') {
			return r, true
		}
	}
	return "", false
}

// openAI serves a request of OpenAI's API, where the agent's runtime can.
func (c *call) openAI() {
	switch g, route := c.target(); {
	case g == nil:
	case c.r.Method == http.MethodPost && c.r.URL.Path == route:
		c.create()
	default: // what is there already costs no slot
		c.serve(g, c.r.Context())
	}
}

// target returns who serves the request now, and by which route; nil when it was
// refused.
func (c *call) target() (*generation, string) {
	g := c.a.active.Load()
	if g == nil {
		c.refuse(notReady)
		return nil, ""
	}
	o := g.offered()
	if o == nil {
		c.refuse(&refusal{wire.RefusalRoute, "The agent of this worker takes a text, and serves nothing of OpenAI's API."})
		return nil, ""
	}
	route, ok := o.routeOf(c.r.URL.Path)
	switch {
	case !ok:
		c.refuse(&refusal{wire.RefusalRoute, fmt.Sprintf("This worker does not serve %.100s.", c.r.URL.Path)})
		return nil, ""
	case !g.available():
		c.refuse(&refusal{wire.RefusalUnavailable, "The model server of this worker does not answer."})
		return nil, ""
	}
	return g, route
}

// create serves a request that is work for the back-end, and takes a slot.
func (c *call) create() {
	body, refused := c.readBody()
	if refused != nil {
		c.refuse(refused)
		return
	}
	g, _ := c.target() // as the body came, another configuration may have taken over
	if g == nil {
		return
	}
	id := wire.NewTaskID()
	t, refused := c.a.take(g, id, c.gateway, nil)
	if refused != nil {
		c.refuse(refused)
		return
	}
	began := time.Now()
	stop := context.AfterFunc(c.r.Context(), func() { t.stop(errGatewayGone) })
	defer func() { // also when the runtime panics to break the answer off
		stop()
		cause := context.Cause(t.ctx)
		c.a.free(id)
		c.a.conns.whenRead(c.stream, c.a.done)
		c.a.log().Debug("request ended", zap.Stringer("gateway", c.gateway), zap.String("path", c.r.URL.Path),
			zap.Duration("took", time.Since(began)), zap.NamedError("cause", cause))
	}()
	c.showLoad()
	c.r.Body, c.r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	ctx, cancel := context.WithDeadline(t.ctx, t.end)
	defer cancel()
	c.serve(g, ctx)
}

// serve has the runtime answer.
func (c *call) serve(g *generation, ctx context.Context) {
	// The agent is silent for as long as it likes; its pieces get their time.
	_ = c.rc.SetWriteDeadline(time.Time{})
	serverOf(g.runtime).ServeHTTP(&pacedWriter{c.w, c.rc}, c.r.WithContext(ctx))
}

// pacedWriter bounds the time of each write.
type pacedWriter struct {
	http.ResponseWriter
	rc *http.ResponseController
}

// Write implements io.Writer.
func (w *pacedWriter) Write(p []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	n, err := w.ResponseWriter.Write(p)
	_ = w.rc.SetWriteDeadline(time.Time{})
	return n, err
}

// Unwrap is for http.ResponseController.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
