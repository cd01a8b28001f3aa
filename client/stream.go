// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"iter"
	"net/http"
	"sync"
)

// Stream is an answer that comes piece by piece. Read it with [Stream.All], once, and close
// it: who closes a stream before its end stops the agent.
type Stream[T any] struct {
	// Served says who serves. The attempts and the task are known before the first piece
	// where the gateway names them.
	Served Served

	ctx    context.Context
	cancel context.CancelFunc
	resp   *http.Response
	pieces iter.Seq2[T, error]
	close  sync.Once
}

// newStream returns a stream of the pieces that read finds in an answer.
func newStream[T any](ctx context.Context, cancel context.CancelFunc, resp *http.Response, read func(s *Stream[T], yield func(T, error) bool)) *Stream[T] {
	s := &Stream[T]{Served: servedBy(resp.Header), ctx: ctx, cancel: cancel, resp: resp}
	s.pieces = func(yield func(T, error) bool) { read(s, yield) }
	return s
}

// openStream sends a request and returns its answer as a stream.
func openStream[T any](ctx context.Context, c *Client, r request, read func(s *Stream[T], yield func(T, error) bool)) (*Stream[T], error) {
	ctx, cancel := context.WithCancel(ctx)
	resp, err := c.open(ctx, r)
	if err != nil {
		cancel()
		return nil, err
	}
	return newStream(ctx, cancel, resp, read), nil
}

// All returns the pieces as they come. An error is the last: what came before it is not the
// whole answer. The stream is closed when the loop ends, also by break.
func (s *Stream[T]) All() iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		defer s.Close()
		s.pieces(yield)
	}
}

// Close ends the stream. It may be called more than once, and from another goroutine. The
// error is always nil.
func (s *Stream[T]) Close() error {
	s.close.Do(func() {
		s.cancel()
		s.resp.Body.Close() // what was not read is given up
	})
	return nil
}

// failed makes an error of what broke the stream.
func (s *Stream[T]) failed(err error, doing string) *Error {
	return withID(transportError(s.ctx, err, doing), s.resp)
}
