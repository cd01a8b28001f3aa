// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// textAnswer is the answer to a task of mesh protocol 1.
type textAnswer struct {
	network.Stream
	out   *wire.OutputReader
	files *wire.Artifact // that it has left
	task  *task
	ctx   context.Context
	stop  func() bool // of the watch over ctx
}

// writeTask sends the task's frame by mesh protocol 1.
func (r *Run) writeTask(d *dispatch, id peer.ID) error {
	dialCtx, cancel := context.WithDeadline(network.WithAllowLimitedConn(r.attempt, "agentfm"), within(DialTimeout, d.first))
	defer cancel()
	stream, err := r.node.host.NewStream(dialCtx, id, wire.TaskProtocol)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	a := &textAnswer{Stream: stream, out: wire.NewOutputReader(stream, ReadSize), task: r.task, ctx: r.ctx}
	a.out.EagerNewline = d.EagerNewline
	a.stop = context.AfterFunc(r.attempt, func() { _ = stream.Reset() })
	r.answer = a
	r.task.assign(id)

	_ = stream.SetReadDeadline(d.first)
	_ = stream.SetWriteDeadline(within(FrameTimeout, d.deadline))
	_, err = stream.Write(d.frame)
	if err == nil && !r.slot.Worker.Duplex {
		err = stream.CloseWrite()
	}
	return err
}

// Read implements answer.
func (a *textAnswer) Read(p []byte) (int, error) {
	n, err := a.out.Read(p)
	if errors.Is(err, io.EOF) && a.out.Files() {
		var waitErr error
		if a.files, waitErr = a.task.waitForFiles(a.ctx); waitErr != nil {
			return n, waitErr
		}
	}
	return n, err
}

func (a *textAnswer) limit(t time.Time) { _ = a.SetReadDeadline(t) }

func (a *textAnswer) left() *wire.Artifact { return a.files }

func (a *textAnswer) usage() *wire.Usage { return nil }

func (a *textAnswer) end(whole bool) {
	a.stop()
	if whole {
		_ = a.Close()
	} else {
		_ = a.Reset()
	}
}

// httpAnswer is the answer of a worker that serves the request itself.
type httpAnswer struct {
	*exchange
	head Response
}

// sendRequest sends the request of the call as it is.
func (r *Run) sendRequest(d *dispatch, id peer.ID) error {
	return r.exchange(d, id, &httpRequest{
		method: d.Request.Method, target: d.Request.Target, header: d.Request.Header, body: d.Request.Body,
		idempotent: d.Request.Method == http.MethodGet || d.Request.Method == http.MethodHead,
	}, func(x *exchange) {
		r.answer = &httpAnswer{x, Response{Status: x.resp.StatusCode, Header: x.resp.Header, Length: x.resp.ContentLength}}
	})
}

// exchange sends a request to the worker. What it says of its load is news to the
// router. take keeps the answer, unless the worker refused.
func (r *Run) exchange(d *dispatch, id peer.ID, req *httpRequest, take func(*exchange)) error {
	x, err := r.node.streams.exchange(r.attempt, id, req, d.first)
	if err != nil {
		return err
	}
	running, refused := x.load(), x.refusal()
	switch {
	case running < 0: // it does not say
	case refused != nil:
		r.slot.Report(running + 1) // the slot's is not among them
	default:
		r.slot.Report(running)
	}
	if refused != nil {
		return refused
	}
	take(x)
	return nil
}

func (a *httpAnswer) left() *wire.Artifact { return nil }

func (a *httpAnswer) usage() *wire.Usage { return nil }

// taskAnswer is the answer to a task of mesh protocol 2.
type taskAnswer struct {
	*exchange
	events *wire.EventReader
	fetch  func(*wire.Artifact) error
	// newline says that one is to come after the output, as workers of protocol 1
	// write it before their last line.
	newline bool
	whole   bool // nothing is left of the answer
	err     error
}

// sendTask sends the task by mesh protocol 2.
func (r *Run) sendTask(d *dispatch, id peer.ID) error {
	r.task.assign(id)
	return r.exchange(d, id, &httpRequest{
		method: http.MethodPost, target: wire.PathTasks, header: jsonHeader, body: d.wholeFrame(),
	}, func(x *exchange) {
		r.answer = &taskAnswer{
			exchange: x, events: wire.NewEventReader(x), newline: d.EagerNewline,
			fetch: func(a *wire.Artifact) error { return r.fetchArtifact(id, a) },
		}
	})
}

// jsonHeader is that of a body of JSON. It is not changed.
var jsonHeader = http.Header{"Content-Type": {"application/json"}}

// Read implements answer.
func (a *taskAnswer) Read(p []byte) (int, error) {
	if a.err != nil {
		return 0, a.err
	}
	if a.resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(a.exchange, maxRefusal))
		a.err = fmt.Errorf("%w: status %d: %s", wire.ErrRefused, a.resp.StatusCode, wire.ErrorMessage(body))
		return 0, a.err
	}
	n, err := a.events.Read(p)
	if errors.Is(err, io.EOF) {
		if files := a.events.Artifact(); files != nil {
			if fetchErr := a.fetch(files); fetchErr != nil {
				err = fmt.Errorf("%w: %w", ErrArtifact, fetchErr)
			}
		}
		// The end of the body is to be read before the stream serves the next request.
		a.limit(time.Now().Add(restTimeout))
		n, restErr := io.Copy(io.Discard, io.LimitReader(a.exchange, maxRefusal+1))
		a.whole = restErr == nil && n <= maxRefusal
	}
	a.err = err
	if err == io.EOF && a.newline && len(p) > 0 {
		p[0] = '\n'
		return 1, nil
	}
	return n, err
}

func (a *taskAnswer) end(whole bool) { a.exchange.end(whole && a.whole) }

func (a *taskAnswer) left() *wire.Artifact { return a.events.Artifact() }

func (a *taskAnswer) usage() *wire.Usage { return a.events.Usage() }
