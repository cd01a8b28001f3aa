// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// A body must arrive within bodyGrace, and a second more for each bodyRate bytes
// that have come. So a slow line may send a large body, and nobody can hold a
// connection by announcing one. Where the server has a limit for whole requests,
// which is Caddy's read_body, a body has no longer than that.
const (
	bodyGrace = 30 * time.Second
	bodyRate  = 16 << 10
)

// limitBodyTime sets the time for a body's first bytes. It also holds for a body
// that is not read: the server reads some of it before it answers.
func (x *exchange) limitBodyTime() {
	if x.r.ContentLength != 0 {
		_ = x.rc.SetReadDeadline(time.Now().Add(x.bodyTime(0)))
	}
}

// bodyTime returns how long a body may take of which n bytes have come.
func (x *exchange) bodyTime(n int64) time.Duration {
	d := bodyGrace + time.Duration(n/bodyRate)*time.Second
	if s := server(x.r); s != nil && s.ReadTimeout > 0 {
		return min(d, s.ReadTimeout)
	}
	return d
}

// server returns the server of a request; nil for one of HTTP/3, which has no
// limits of its own.
func server(r *http.Request) *http.Server {
	s, _ := r.Context().Value(http.ServerContextKey).(*http.Server)
	return s
}

// body reads the whole body, which is JSON.
func (x *exchange) body() ([]byte, error) { return x.bodyUpTo(x.h.bodyLimit) }

// bodyUpTo reads the whole body, which is JSON of limit bytes at most.
func (x *exchange) bodyUpTo(limit int64) ([]byte, error) {
	if err := checkBodyHeaders(x.r.Header); err != nil {
		return nil, err
	}
	return x.readBody(limit)
}

// maxGrow bounds what the announced length of a body is trusted with.
const maxGrow = 64 << 10

// readBody reads the whole body, which may have limit bytes.
func (x *exchange) readBody(limit int64) ([]byte, error) {
	if b := x.work.body; b != nil {
		if int64(len(b)) > limit {
			return nil, tooLarge(limit)
		}
		return b, nil
	}
	if x.r.ContentLength > limit {
		return nil, x.tooLarge(limit)
	}
	r := &pacedReader{x: x, r: http.MaxBytesReader(x.w, x.r.Body, limit), begun: time.Now()}
	b, err := wire.ReadBody(r, x.r.ContentLength, maxGrow)
	if err != nil {
		return nil, x.bodyError(err)
	}
	// The server watches the connection for the client's going away, without end.
	_ = x.rc.SetReadDeadline(time.Time{})
	return b, nil
}

// checkBodyHeaders refuses bodies that are not plain JSON. Types that clients
// send without meaning them are JSON, too: text/plain, and the form type, which
// is curl's default.
func checkBodyHeaders(h http.Header) error {
	for _, coding := range h.Values("Content-Encoding") {
		if !strings.EqualFold(strings.TrimSpace(coding), "identity") {
			return badRequest("", "the body is encoded; send it without Content-Encoding")
		}
	}
	value := h.Get("Content-Type")
	if value == "" || value == "application/json" {
		return nil
	}
	mediaType, _, err := mime.ParseMediaType(value)
	if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) {
		return badRequest("", "the Content-Type is malformed; want application/json")
	}
	switch {
	case mediaType == "application/json",
		mediaType == "text/plain",
		mediaType == "application/x-www-form-urlencoded",
		strings.HasPrefix(mediaType, "application/") && strings.HasSuffix(mediaType, "+json"):
		return nil
	}
	return badRequest("", "the Content-Type is not that of JSON; want application/json")
}

// bodyError says why a body could not be read.
func (x *exchange) bodyError(err error) error {
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return x.tooLarge(tooLarge.Limit)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return badRequest("", "the body did not arrive in time")
	}
	return badRequest("", "the body ended early")
}

// tooLarge is the error for a body over the limit. What is left of the body must
// not be read as the next request.
func (x *exchange) tooLarge(limit int64) error {
	if x.r.ProtoMajor == 1 {
		x.w.Header().Set("Connection", "close")
	}
	return tooLarge(limit)
}

// pacedReader reads a body as long as it keeps coming.
type pacedReader struct {
	x     *exchange
	r     io.Reader
	begun time.Time
	n     int64
}

// Read implements io.Reader.
func (p *pacedReader) Read(b []byte) (int, error) {
	if p.n > 0 { // for the first bytes it is set
		_ = p.x.rc.SetReadDeadline(p.begun.Add(p.x.bodyTime(p.n)))
	}
	n, err := p.r.Read(b)
	p.n += int64(n)
	return n, err
}
