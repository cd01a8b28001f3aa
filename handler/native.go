// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"go.opentelemetry.io/otel/propagation"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/openai"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// codeUnknownURL is that of OpenAI for a route that is not there.
const codeUnknownURL = "unknown_url"

// serveModel serves a POST of OpenAI's API, whose body is JSON where the content
// type is empty. Workers that serve the route get the request as it is. Where those
// that match take a text, asText answers, when it is there.
func (x *exchange) serveModel(body []byte, contentType string, affinity func() string, asText func() error) error {
	head, err := openai.ReadHead(contentType, body)
	x.seen.asks(x.r.URL.Path, head.Stream)
	if err != nil {
		return err
	}
	l, err := x.takeLease()
	if err != nil {
		return err
	}
	if head.Previous != "" && x.r.URL.Path == pathResponses { // no other model server has that
		x.keeper, _ = l.ResponseOf(head.Previous, x.client())
	}
	target := router.Request{Model: head.Model, Routes: mesh.Route(x.r.URL.Path)}
	if err := x.target(&target); err != nil {
		return err
	}
	routes, text := l.Serves(&target)
	if routes&target.Routes == 0 && asText != nil && x.keeper == "" {
		return asText()
	}
	err = x.passOn(mesh.Call{
		Target:  router.Request{Model: head.Model, Routes: target.Routes, Affinity: x.affinity(affinity)},
		Request: &mesh.Request{Method: http.MethodPost, Target: x.r.URL.RequestURI(), Header: x.forwarded(cmp.Or(contentType, "application/json")), Body: body},
		Again:   text && asText != nil,
	}, head.Stream)
	if text && asText != nil && noRoom(err) {
		return asText()
	}
	return err
}

// forwardedHeaders are the headers of a client that its worker gets. Of who it is,
// the worker learns nothing.
var forwardedHeaders = []string{"Accept", "Openai-Beta", "Traceparent", "Tracestate"}

// forwarded returns the headers for the worker.
func (x *exchange) forwarded(contentType string) http.Header {
	h := make(http.Header, len(forwardedHeaders)+2)
	h["Content-Type"] = []string{contentType}
	for _, name := range forwardedHeaders {
		if v := x.r.Header[name]; len(v) > 0 {
			h[name] = v[:1]
		}
	}
	propagation.TraceContext{}.Inject(x.r.Context(), propagation.HeaderCarrier(h)) // where Caddy traces
	h["X-Request-Id"] = []string{x.id}
	return h
}

// passOn sends a request to a worker that serves it, and passes the answer back.
func (x *exchange) passOn(call mesh.Call, stream bool) error {
	p := &passage{x: x, out: eventWriter{x: x}, stop: func() {}}
	if stream {
		p.stop = p.out.keepAlive(x.h.heartbeat, p.ping)
	}
	defer p.stop() // also when a worker's answer makes us panic
	err := p.run(call)
	p.stop()
	x.attempted(err)
	switch {
	case err == nil:
		return nil
	case !p.out.begun:
		return err
	case p.out.failed || x.r.Context().Err() != nil:
		x.gone(err)
		return nil
	}
	problem := problemOf(err)
	x.logProblem(problem)
	x.seen.broken = true
	if p.raw {
		panic(http.ErrAbortHandler) // so that the client sees an answer that is not whole
	}
	if err := p.fail(problem); err != nil {
		x.gone(err)
	}
	return nil
}

// passage is the answer of a worker on its way to the client.
type passage struct {
	x    *exchange
	out  eventWriter
	stop func() // ends the heartbeat
	raw  bool   // what the client gets is not events

	noted   bool // of which response it is, or that it has no id
	unnamed int  // bytes in which its id was not found
}

// ping writes a comment: what was written before is whole events.
func (p *passage) ping() error {
	_, err := p.out.Write([]byte(": ping\n"))
	return err
}

// run runs the call.
func (p *passage) run(call mesh.Call) error {
	task, err := p.x.dispatch(p.x.r.Context(), call, "model")
	if err != nil {
		return err
	}
	defer task.Close()
	p.out.served(task.Served())
	resp := task.Response()
	if resp == nil {
		return errors.New("the mesh answered a request with a task")
	}
	if resp.Status == http.StatusTooManyRequests {
		p.x.work.ran.Store(false) // the server has begun nothing
	}
	if err := refusedWorker(resp.Status); err != nil {
		return err
	}
	mediaType, _ := mediaTypeOf(resp.Header.Get("Content-Type"))
	if mediaType == "text/event-stream" && resp.Status == http.StatusOK {
		return p.copyEvents(task)
	}
	if p.stop(); p.out.begun { // by a heartbeat: the status is 200, and the form that of events
		return tooLate(task, resp.Status)
	}
	return p.copyBody(task, resp)
}

// refusedWorker is the error for statuses with which a model server refuses its
// worker, or sends it elsewhere: a client would take them to be about itself.
func refusedWorker(status int) error {
	if mesh.RefusesWorker(status) {
		return streamFailed(fmt.Errorf("the worker's model server answered with status %d", status),
			"the worker's model server refuses the worker")
	}
	return nil
}

// maxLateError is how much is read of an answer that comes too late to be one.
const maxLateError = 64 << 10

// tooLate is the error for an answer that is not one of events, when the client has
// been told to expect these.
func tooLate(task run, status int) error {
	body, err := io.ReadAll(io.LimitReader(task, maxLateError))
	if err != nil {
		return err
	}
	return streamFailed(fmt.Errorf("status %d after the first heartbeat", status), wire.ErrorMessage(body))
}

// maxHalf bounds the part of an event that is held until the rest of it is there.
const maxHalf = 64 << 10

// copyEvents passes events on as they come, each of them whole: what follows one
// may be a heartbeat, or an error.
func (p *passage) copyEvents(task run) error {
	p.out.head(func() { p.x.passHeaders(task.Response()) })
	kept := buffers.Get().(*buffer)
	defer p.putBack(kept)
	buf := kept[:mesh.ReadSize]
	var held []byte // with half an event at its end
	for {
		n, err := task.Read(buf)
		held = append(held, buf[:n]...)
		if err == io.EOF && len(held) == 0 && !p.out.begun {
			return streamFailed(nil, "the worker's model server sent a stream without any event")
		}
		end := eventsEnd(held)
		if err == io.EOF || len(held)-end > maxHalf {
			end = len(held)
		}
		if end > 0 {
			p.noteResponse(held[:end])
			p.x.seen.noteUsage(held[:end])
			if _, err := p.out.Write(held[:end]); err != nil {
				return err
			}
			held = append(held[:0], held[end:]...)
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// eventsEnd returns where the last whole event in b ends: after an empty line.
func eventsEnd(b []byte) int {
	if bytes.HasSuffix(b, []byte("\n\n")) { // as almost always
		return len(b)
	}
	end := 0
	for _, sep := range []string{"\n\n", "\n\r\n", "\r\r"} {
		if i := bytes.LastIndex(b, []byte(sep)); i >= 0 {
			end = max(end, i+len(sep))
		}
	}
	return end
}

// buffer is for answers on their way.
type buffer [maxLateError]byte

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// putBack gives a buffer back. One of which a write failed may still be under way.
func (p *passage) putBack(b *buffer) {
	if !p.out.hasFailed() { // of a heartbeat, perhaps, which may go on meanwhile
		buffers.Put(b)
	}
}

// copyBody passes on an answer that is not one of events. What fits in memory is
// passed on when it is whole.
func (p *passage) copyBody(task run, resp *mesh.Response) error {
	buf := buffers.Get().(*buffer)
	defer p.putBack(buf)
	first := buf[:0]
	var err error
	for err == nil && len(first) < cap(first) {
		var n int
		n, err = task.Read(first[len(first):cap(first)])
		first = first[:len(first)+n]
	}
	if err != nil && err != io.EOF {
		return err
	}
	p.noteResponse(first)
	p.x.seen.noteUsage(first)
	h := p.x.w.Header()
	p.x.passHeaders(resp)
	if err == io.EOF && p.x.r.Method != http.MethodHead {
		h.Set("Content-Length", strconv.Itoa(len(first)))
	} else if resp.Length >= 0 {
		h.Set("Content-Length", strconv.FormatInt(resp.Length, 10))
	}
	p.out.begun, p.raw = true, true
	p.x.writeHeader(resp.Status)
	if p.x.r.Method == http.MethodHead {
		task.Enough()
		return nil
	}
	if _, werr := p.out.Write(first); werr != nil || err == io.EOF {
		return werr
	}
	_, err = io.CopyBuffer(&p.out, readerOnly{task}, buf[:32<<10])
	return err
}

// readerOnly hides other methods of a reader.
type readerOnly struct{ io.Reader }

// fail ends the events with an error.
func (p *passage) fail(problem *problem) error {
	_, err := fmt.Fprintf(&p.out, "data: %s\n\n", problem.openAI().Envelope())
	return err
}

// modelRoute serves POST of the routes that only workers serve. Some take a form.
func (x *exchange) modelRoute() error {
	contentType := ""
	read := x.body
	if value := x.r.Header.Get("Content-Type"); strings.HasPrefix(strings.ToLower(value), "multipart/") {
		contentType = value
		read = func() ([]byte, error) { return x.readBody(x.h.bodyLimit) }
	}
	body, err := read()
	if err != nil {
		return err
	}
	return x.serveModel(body, contentType, func() string { return string(body[:min(len(body), maxAffinity)]) }, nil)
}

// noRoute is the error for a route that no worker serves of those that match.
func (x *exchange) noRoute(target router.Request) *problem {
	return &problem{status: http.StatusNotFound, code: codeUnknownURL, param: "model",
		message: fmt.Sprintf("no worker that %q names serves %s %s", openai.Clip(target.Model, maxQuote), x.r.Method, x.r.URL.Path)}
}
