// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

const (
	// maxHead is the largest head of a worker's answer, in bytes. In memory it can be
	// sixteen times that.
	maxHead = 64 << 10
	// inlineBody is how large a body may be to be written before the answer is
	// read. A larger one may not fit the window of a worker that answers first.
	inlineBody = 128 << 10
)

// httpRequest is a request to a worker.
type httpRequest struct {
	method string
	target string // path, and query
	header http.Header
	body   []byte
	// idempotent says that it may be sent twice.
	idempotent bool
	// stream, when set, writes the whole request, whose body comes as it may.
	stream  func(w *bufio.Writer) error
	hasBody bool
}

// exchange is one request to a worker and its answer. The request and the body of
// the answer are written and read on the stream itself: http.Transport would cost
// two goroutines a stream.
type exchange struct {
	pool    *streamPool
	stream  *httpStream
	resp    *http.Response
	stop    func() bool // of the watch over the context
	writing chan error  // where the body is written beside the reading
}

// exchange sends a request and returns when the head of its answer is there,
// which must be by the deadline. The end of ctx resets the stream. The error is
// [ErrUnreachable] when nothing of the request was sent.
func (p *streamPool) exchange(ctx context.Context, id peer.ID, req *httpRequest, deadline time.Time) (*exchange, error) {
	x, err := p.attempt(ctx, id, req, deadline, false)
	if x == nil || err == nil {
		return x, err
	}
	x.end(false)
	// A stream that was idle can have ended in this very moment.
	if x.stream.reused && !req.hasBody && (x.stream.sent == 0 || req.idempotent || x.closed(err)) && ctx.Err() == nil && time.Now().Before(deadline) {
		if x, err = p.attempt(ctx, id, req, deadline, true); x == nil || err == nil {
			return x, err
		}
		x.end(false)
	}
	if x.stream.sent == 0 {
		err = fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return nil, err
}

// closed reports whether the worker had closed its side of the stream: then it has
// begun nothing of the request. One that breaks off work resets the stream.
func (x *exchange) closed(err error) bool {
	return x.resp == nil && x.stream.budget == maxHead && errors.Is(err, io.ErrUnexpectedEOF)
}

// attempt is exchange on one stream, which is to be ended also when it fails; nil
// when none could be opened.
func (p *streamPool) attempt(ctx context.Context, id peer.ID, req *httpRequest, deadline time.Time, fresh bool) (*exchange, error) {
	s, err := p.get(ctx, id, deadline, fresh)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	x := &exchange{pool: p, stream: s}
	x.stop = context.AfterFunc(ctx, func() { _ = s.Reset() })
	if len(req.body) <= inlineBody && !req.hasBody {
		s.limit(req.writeDeadline(deadline))
		err = req.write(s)
	} else {
		_ = s.SetWriteDeadline(req.writeDeadline(deadline))
		x.writing = make(chan error, 1)
		go func() {
			err := req.write(s)
			_ = s.SetWriteDeadline(time.Time{})
			if timedOut(err) {
				_ = s.Reset() // or the answer would be waited for
			}
			x.writing <- err
		}()
	}
	if err == nil {
		err = x.readHead(req.method, deadline)
	}
	return x, err
}

// writeDeadline returns until when the request must be written.
func (q *httpRequest) writeDeadline(deadline time.Time) time.Time {
	if q.stream != nil { // it comes as it may
		return deadline
	}
	return within(BodyTimeout(int64(len(q.body))), deadline)
}

// write writes the request.
func (q *httpRequest) write(s *httpStream) error {
	w := s.w
	w.Reset(s) // after an error it would give that again
	if q.stream != nil {
		return errors.Join(q.stream(w), w.Flush())
	}
	for _, text := range []string{q.method, " ", q.target, " HTTP/1.1\r\nHost: ", s.host, "\r\n"} {
		_, _ = w.WriteString(text) // Flush tells of any error
	}
	_ = q.header.Write(w)
	if len(q.body) > 0 || q.method == http.MethodPost || q.method == http.MethodPut {
		_, _ = w.WriteString("Content-Length: ")
		_, _ = w.Write(strconv.AppendInt(w.AvailableBuffer(), int64(len(q.body)), 10))
		_, _ = w.WriteString("\r\n")
	}
	_, _ = w.WriteString("\r\n")
	_, _ = w.Write(q.body)
	return w.Flush()
}

// readHead reads the head of the answer.
func (x *exchange) readHead(method string, deadline time.Time) error {
	s := x.stream
	s.limit(deadline)
	s.budget = maxHead
	for range 8 { // of status 1xx
		resp, err := http.ReadResponse(s.r, &http.Request{Method: method})
		if err != nil {
			return err
		}
		if resp.StatusCode >= 200 {
			s.budget, x.resp = -1, resp
			return nil
		}
	}
	return fmt.Errorf("%w: no end of interim answers", wire.ErrBadFrame)
}

// Read reads the body of the answer. What ended early is not io.EOF.
func (x *exchange) Read(p []byte) (int, error) { return x.resp.Body.Read(p) }

// limit bounds the reading of the body.
func (x *exchange) limit(t time.Time) { x.stream.limit(t) }

// end gives the stream back when its answer was read to the end, and breaks it off
// when not.
func (x *exchange) end(whole bool) {
	inTime := x.stream.unlimited()
	inTime = x.stop() && inTime
	if x.writing != nil {
		select {
		case err := <-x.writing:
			whole = whole && err == nil
		default: // the worker has not read it all
			whole = false
			_ = x.stream.Reset()
			<-x.writing
		}
	}
	switch {
	case whole && inTime && !x.resp.Close && x.stream.r.Buffered() == 0:
		x.pool.put(x.stream)
	case whole:
		_ = x.stream.Close()
	default:
		_ = x.stream.Reset()
	}
}

// maxLoad bounds what a worker can say of its load.
const maxLoad = 100_000

// load returns how many tasks the worker runs by its own word; -1 for none.
func (x *exchange) load() int {
	running, _, ok := strings.Cut(x.resp.Header.Get(wire.HeaderLoad), "/")
	n, err := strconv.Atoi(running)
	if !ok || err != nil || n < 0 {
		return -1
	}
	return min(n, maxLoad)
}

const (
	// maxRefusal is how much of the body of a refusal is read.
	maxRefusal = 16 << 10
	// restTimeout is for the rest of an answer whose sense is known.
	restTimeout = 5 * time.Second
)

// rest reads what is left of a body of which little is expected, and ends the
// exchange. A stream with some of it left would give that to the next request.
func (x *exchange) rest() []byte {
	body, err := io.ReadAll(io.LimitReader(x, maxRefusal+1)) // as much of it as there is
	x.end(err == nil && len(body) <= maxRefusal)
	return body
}

// refusal returns the error of an answer with which the worker began no work, and
// ends the exchange; nil for any other answer.
func (x *exchange) refusal() error {
	reason := wire.Refusal(x.resp.Header.Get(wire.HeaderRefusal))
	if reason == "" {
		return nil
	}
	x.limit(time.Now().Add(restTimeout))
	body := x.rest()
	kind := wire.ErrRefused
	switch reason {
	case wire.RefusalCapacity:
		kind = wire.ErrCapacity
	case wire.RefusalUnavailable:
		kind = ErrUnavailable
	case wire.RefusalModel:
		kind = ErrNoModel
	}
	return fmt.Errorf("%w: %s", kind, wire.ErrorMessage(body))
}
