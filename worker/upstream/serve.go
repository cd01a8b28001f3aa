// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/openai"
)

// ServeHTTP passes a request on to the server, and its answer back as it comes.
func (r *Runtime) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	v := r.view.Load()
	if v == nil {
		refuse(w, textUnreachable)
		return
	}
	out, status, problem := r.outgoing(v, req)
	if problem != nil {
		if problem.Code == codeNoModel { // another worker may have it
			w.Header().Set(wire.HeaderRefusal, string(wire.RefusalModel))
		}
		answer(w, status, problem)
		return
	}
	r.working.Add(1)
	defer r.working.Add(-1)
	resp, err := r.roundTrip(out)
	if err != nil {
		r.lost(w, req.Context(), err)
		return
	}
	defer resp.Body.Close()
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized || code == http.StatusProxyAuthRequired:
		// The client has no part in it, and the answer may quote the key.
		r.logger.Error("the server does not take the key", zap.Int("status", code))
		refuse(w, "the agent's model server does not let the worker in")
	case code < 200 || redirects(code):
		r.logger.Error("the server sends requests elsewhere", zap.Int("status", code))
		refuse(w, textUnreachable)
	default:
		responseHeader(w.Header(), resp.Header)
		w.WriteHeader(code)
		r.pass(w, req.Context(), resp)
	}
}

// roundTrip sends a request of a client.
func (r *Runtime) roundTrip(out *http.Request) (*http.Response, error) {
	if r.conns != nil && out.ContentLength <= inlineBody {
		return r.conns.roundTrip(out)
	}
	return r.transport.RoundTrip(out)
}

// outgoing returns the request to the server; or what is wrong with the client's,
// and the status that says so.
func (r *Runtime) outgoing(v *view, req *http.Request) (*http.Request, int, *openai.Error) {
	u, exact, ok := r.target(v, req.URL)
	if !ok {
		return nil, http.StatusNotFound, invalid("this agent does not serve this route")
	}
	body, err := readBody(req)
	if err != nil {
		status := http.StatusBadRequest
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			status = http.StatusRequestEntityTooLarge
		}
		return nil, status, invalid("the body could not be read")
	}
	if body, err = withServerName(v, req.Header.Get("Content-Type"), body, exact); err != nil {
		problem, ok := errors.AsType[*openai.Error](err)
		switch {
		case !ok:
			problem = invalid("the body could not be read")
		case problem.Code == codeNoModel:
			return nil, http.StatusNotFound, problem
		}
		return nil, http.StatusBadRequest, problem
	}
	out := &http.Request{
		Method: req.Method, URL: u, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: requestHeader(req.Header),
	}
	if key := r.key.get(); key != "" {
		out.Header["Authorization"] = []string{key}
	}
	setBody(out, body)
	return out.WithContext(req.Context()), 0, nil
}

// target returns where a request goes; false when that is no route of the offer, or
// below one. exact says that it is the route itself.
func (r *Runtime) target(v *view, from *url.URL) (u *url.URL, exact, ok bool) {
	exact = slices.Contains(v.offer.Routes, strings.TrimRight(from.Path, "/"))
	ok = exact || slices.ContainsFunc(v.offer.Routes, func(route string) bool {
		return len(from.Path) > len(route) && from.Path[len(route)] == '/' && strings.HasPrefix(from.Path, route)
	})
	if !ok {
		return nil, false, false
	}
	u, ok = Below(r.base, from)
	return u, exact, ok
}

// Below returns where a request for a path of OpenAI's API goes when the API is at
// base, a URL of [ParseBase]: it begins with /v1, which stands for base. False says
// that the path does not, or that a server might take it for one that is not below.
func Below(base, from *url.URL) (*url.URL, bool) {
	rest, ok := strings.CutPrefix(from.Path, apiPrefix)
	if !ok || rest != "" && rest[0] != '/' || slices.ContainsFunc(strings.FieldsFunc(rest, isSlash), isDots) {
		return nil, false
	}
	u := &url.URL{Scheme: base.Scheme, Host: base.Host, Path: base.Path + rest, RawQuery: from.RawQuery}
	if from.RawPath != "" {
		below, found := strings.CutPrefix(from.RawPath, apiPrefix)
		if !found {
			return nil, false
		}
		u.RawPath = base.EscapedPath() + below
	}
	return u, true
}

// isSlash reports whether c ends a part of a path, to some servers at least.
func isSlash(c rune) bool { return c == '/' || c == '\\' }

// isDots reports whether a part of a path leads elsewhere. Servers differ in what
// they make of it: none may lead out of a route, or to it by another name.
func isDots(part string) bool { return part == "." || part == ".." }

// codeNoModel is OpenAI's for a model that is not there.
const codeNoModel = "model_not_found"

// withServerName changes the model of a request to what the server calls it. Below a
// route, what has one already may not name it.
func withServerName(v *view, contentType string, body []byte, exact bool) ([]byte, error) {
	if len(body) == 0 {
		return body, nil
	}
	head, err := openai.ReadHead(contentType, body)
	if e, ok := errors.AsType[*openai.Error](err); ok && e.Code == openai.CodeModelRequired && !exact {
		return body, nil
	}
	if err != nil {
		return nil, err
	}
	name, ok := v.serverName(head.Model)
	if !ok {
		return nil, &openai.Error{Message: fmt.Sprintf("this worker does not have the model %q", openai.Clip(head.Model, maxDetail)),
			Type: openai.TypeInvalidRequest, Code: codeNoModel, Param: "model"}
	}
	return head.WithModel(body, name)
}

// maxGrow bounds what the announced length of a body is trusted with.
const maxGrow = 4 << 20

// readBody reads all of the client's body, which is bounded already.
func readBody(req *http.Request) ([]byte, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return nil, nil
	}
	var b bytes.Buffer
	b.Grow(int(min(max(req.ContentLength, 0), maxGrow)) + bytes.MinRead)
	_, err := b.ReadFrom(req.Body)
	return b.Bytes(), err
}

// bufferSize is how much of an answer is read at once.
const bufferSize = 64 << 10

// buffers are for answers on their way.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// pass copies an answer, each piece as it comes. One that breaks off is broken off:
// nothing else shows the client that it is not whole.
func (r *Runtime) pass(w http.ResponseWriter, ctx context.Context, resp *http.Response) {
	flush := http.NewResponseController(w).Flush
	if resp.ContentLength < 0 { // it may be long until it begins
		_ = flush()
	}
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	var done int64
	for {
		n, err := resp.Body.Read(buf[:])
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				panic(http.ErrAbortHandler) // the client is gone
			}
			if done += int64(n); done != resp.ContentLength { // its end goes out by itself
				_ = flush()
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return
		case err != nil:
			if ctx.Err() == nil {
				r.logger.Warn("the server broke off its answer", zap.Int64("bytes", done), zap.Error(err))
				r.doubtful()
			}
			panic(http.ErrAbortHandler)
		}
	}
}

// textUnreachable is what clients are told of a server that does not answer.
const textUnreachable = "the agent's model server could not be reached"

// lost answers a request to which the server did not answer. Only the log says
// where the server is.
func (r *Runtime) lost(w http.ResponseWriter, ctx context.Context, err error) {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		answer(w, http.StatusGatewayTimeout, &openai.Error{
			Message: "the agent's model server did not answer in time", Type: openai.TypeServer, Code: "upstream_timeout",
		})
	case ctx.Err() != nil: // the gateway is gone; or it is the worker that goes, and another may stay
		refuse(w, textUnreachable)
	default:
		r.logger.Warn("the server could not be reached", zap.Stringer("base_url", r.base), zap.Error(err))
		r.doubtful()
		refuse(w, textUnreachable)
	}
}

// refuse says that another worker may serve the request.
func refuse(w http.ResponseWriter, message string) {
	w.Header().Set(wire.HeaderRefusal, string(wire.RefusalUnavailable))
	answer(w, http.StatusBadGateway, &openai.Error{Message: message, Type: openai.TypeServer, Code: "upstream_unreachable"})
}

// invalid returns the error for a request that cannot be passed on.
func invalid(message string) *openai.Error {
	return &openai.Error{Message: message, Type: openai.TypeInvalidRequest, Code: openai.CodeInvalidRequest}
}

// answer answers with an error.
func answer(w http.ResponseWriter, status int, e *openai.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(e.Envelope())
}
