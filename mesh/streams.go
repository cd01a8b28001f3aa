// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Streams of the HTTP protocol that are kept open for the next request: a new one
// costs two to three times what a request on an open one does.
const (
	maxIdleStreams     = 4096 // of all workers
	maxIdlePeerStreams = 256  // of one
	// idleStreamTime is how long one is kept. Workers keep it longer, so that it
	// does not end while a request is on its way.
	idleStreamTime = time.Minute
)

// streamPool holds the idle streams to workers.
type streamPool struct {
	host    host.Host
	closing sync.WaitGroup // of streams

	mu     sync.Mutex
	idle   map[peer.ID][]*httpStream // the one that was used last is the last
	count  int
	closed bool
}

func newStreamPool(h host.Host) *streamPool {
	return &streamPool{host: h, idle: make(map[peer.ID][]*httpStream)}
}

// httpStream is a stream of the HTTP protocol to a worker.
type httpStream struct {
	network.Stream
	r      *bufio.Reader
	w      *bufio.Writer
	sent   int  // bytes of the request under way
	budget int  // bytes that may still be read of the head of its answer; -1 for no limit
	reused bool // it has served a request
	since  time.Time
	host   string // the worker, as the header of a request has it

	// timer resets the stream at the deadline. One timer is cheaper than the
	// deadlines of the stream itself, which are made anew each time.
	timer *time.Timer
	late  atomic.Bool // it has
}

func newHTTPStream(raw network.Stream, id peer.ID) *httpStream {
	s := &httpStream{Stream: raw, budget: -1, host: id.String()}
	s.r, s.w = bufio.NewReaderSize(s, 4<<10), bufio.NewWriterSize(s, 4<<10)
	s.timer = time.AfterFunc(time.Hour, func() {
		s.late.Store(true)
		_ = s.Reset()
	})
	s.timer.Stop()
	return s
}

// limit sets the deadline for what is read and written, at which the stream is
// reset.
func (s *httpStream) limit(t time.Time) { s.timer.Reset(time.Until(t)) }

// unlimited takes the deadline away; false when it has come.
func (s *httpStream) unlimited() bool { return s.timer.Stop() && !s.late.Load() }

// failure is the error of reading or writing.
func (s *httpStream) failure(err error) error {
	if err != nil && err != io.EOF && s.late.Load() {
		return os.ErrDeadlineExceeded
	}
	return err
}

// errHeadTooLarge says that the head of an answer is over its limit.
var errHeadTooLarge = errors.New("the head of the answer is too large")

// Read implements io.Reader.
func (s *httpStream) Read(p []byte) (int, error) {
	if s.budget < 0 {
		n, err := s.Stream.Read(p)
		return n, s.failure(err)
	}
	if s.budget == 0 {
		return 0, errHeadTooLarge
	}
	n, err := s.Stream.Read(p[:min(len(p), s.budget)])
	s.budget -= n
	return n, s.failure(err)
}

// Write implements io.Writer.
func (s *httpStream) Write(p []byte) (int, error) {
	n, err := s.Stream.Write(p)
	s.sent += n
	return n, s.failure(err)
}

// get returns a stream to a worker: one that should be open, or else a new one, which
// must be open by the deadline.
func (p *streamPool) get(ctx context.Context, id peer.ID, deadline time.Time, fresh bool) (*httpStream, error) {
	for !fresh {
		s := p.pop(id)
		if s == nil {
			break
		}
		// One that was used a moment ago is not asked: to ask costs.
		if time.Since(s.since) < sweepInterval || s.alive() {
			s.reused, s.sent = true, 0
			return s, nil
		}
		_ = s.Reset()
	}
	ctx, cancel := context.WithDeadline(network.WithAllowLimitedConn(ctx, "agentfm"), within(DialTimeout, deadline))
	defer cancel()
	raw, err := p.host.NewStream(ctx, id, wire.HTTPProtocol)
	if err != nil {
		return nil, err
	}
	return newHTTPStream(raw, id), nil
}

// pop takes the stream to a worker that was used last.
func (p *streamPool) pop(id peer.ID) *httpStream {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[id]
	if len(list) == 0 {
		return nil
	}
	s := list[len(list)-1]
	list[len(list)-1] = nil
	p.keep(id, list[:len(list)-1])
	p.count--
	return s
}

// keep notes which streams to a worker are idle.
func (p *streamPool) keep(id peer.ID, list []*httpStream) {
	if len(list) == 0 {
		delete(p.idle, id)
		return
	}
	p.idle[id] = list
}

// alive reports whether the worker has kept its side open and has sent nothing
// that was not asked for. It does not wait.
func (s *httpStream) alive() bool {
	_ = s.SetReadDeadline(time.Unix(1, 0))
	_, err := s.r.Peek(1)
	_ = s.SetReadDeadline(time.Time{})
	return timedOut(err)
}

func timedOut(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// put keeps a stream, whose request has been answered to the last byte, for the next.
func (p *streamPool) put(s *httpStream) {
	s.since = time.Now()
	if !p.add(s.Conn().RemotePeer(), s) {
		_ = s.Close()
	}
}

// add adds an idle stream; false when there are enough.
func (p *streamPool) add(id peer.ID, s *httpStream) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.count >= maxIdleStreams || len(p.idle[id]) >= maxIdlePeerStreams {
		return false
	}
	p.idle[id] = append(p.idle[id], s)
	p.count++
	return true
}

// sweepInterval is how often idle streams are looked at. A worker that leaves waits
// for the end of those whose end it has asked for.
const sweepInterval = 250 * time.Millisecond

// sweep closes the streams that nobody has used for long, and those that the worker
// has closed, until ctx ends.
func (p *streamPool) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			p.end(func(*httpStream) bool { return true })
			return
		case now := <-tick.C:
			p.end(func(s *httpStream) bool { return now.Sub(s.since) > idleStreamTime || !s.alive() })
		}
	}
}

// end closes the idle streams that are not wanted any more. To close one can take
// long, when its worker reads nothing: nobody waits for that.
func (p *streamPool) end(unwanted func(*httpStream) bool) {
	for _, list := range p.remove(unwanted) {
		p.closing.Go(func() {
			for _, s := range list {
				_ = s.Close()
			}
		})
	}
}

// remove takes out the idle streams that are not wanted, by their workers.
func (p *streamPool) remove(unwanted func(*httpStream) bool) map[peer.ID][]*httpStream {
	removed := make(map[peer.ID][]*httpStream)
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, list := range p.idle {
		kept := list[:0]
		for _, s := range list {
			if unwanted(s) {
				removed[id] = append(removed[id], s)
				p.count--
				continue
			}
			kept = append(kept, s)
		}
		clear(list[len(kept):])
		p.keep(id, kept)
	}
	return removed
}

// close has no more streams kept.
func (p *streamPool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.end(func(*httpStream) bool { return true })
	p.closing.Wait()
}
