// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"sync"
	"time"

	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// eventWriter writes an answer of server-sent events, which begins with the first
// write.
type eventWriter struct {
	x *exchange

	mu     sync.Mutex
	begun  bool
	failed bool // the client did not take it
	known  bool // who serves the task
	last   time.Time
}

// Write implements io.Writer.
func (w *eventWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = time.Now()
	if !w.begun {
		w.begun = true
		w.x.begin("text/event-stream; charset=utf-8")
	}
	n, err := sender{w.x}.Write(p)
	w.failed = err != nil
	return n, err
}

// hasFailed reports whether the client did not take what was written last.
func (w *eventWriter) hasFailed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// served says who serves the task; of several, the first. When a heartbeat came
// before, it is too late for the headers.
func (w *eventWriter) served(s mesh.Served) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.known {
		w.known = true
		w.x.served(s)
	}
}

// head has set set headers, unless they are on their way.
func (w *eventWriter) head(set func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.begun {
		set()
	}
}

// keepAlive pings whenever nothing was written for the interval, until stop is
// called, which may be more than once. A negative interval switches it off.
func (w *eventWriter) keepAlive(interval time.Duration, ping func() error) (stop func()) {
	if interval < 0 {
		return func() {}
	}
	w.last = time.Now()
	end := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		timer := time.NewTimer(interval)
		defer timer.Stop()
		for {
			select {
			case <-end:
				return
			case <-timer.C:
			}
			rest := w.silence(interval)
			if rest <= 0 {
				if ping() != nil {
					return
				}
				rest = interval
			}
			timer.Reset(rest)
		}
	})
	return sync.OnceFunc(func() {
		close(end)
		running.Wait()
	})
}

// silence returns how much longer the answer may be silent.
func (w *eventWriter) silence(interval time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return interval - time.Since(w.last)
}
