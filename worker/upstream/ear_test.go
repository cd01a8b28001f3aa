// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// TestHangs wants a server that takes requests and sends nothing not to be there, however
// many it has; and one that still sends something to be.
func TestHangs(t *testing.T) {
	for name, sends := range map[string]bool{"silent": false, "slow": true} {
		t.Run(name, func(t *testing.T) { testHangs(t, sends) })
	}
}

// testHangs is TestHangs for one server.
func testHangs(t *testing.T, sends bool) {
	f := newFake(t)
	f.on("/v1/chat/completions", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if sends {
				_, _ = io.WriteString(w, "data: 1\n\n")
				w.(http.Flusher).Flush()
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	r, _ := provision(t, f.URL, often)
	r.askTimeout, r.maxSilence = 100*time.Millisecond, time.Second
	c := prepare(t, r, "")
	f.set(func(f *fake) { f.list = func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() } })
	ctx, cancel := context.WithCancel(context.Background())
	var requests sync.WaitGroup
	defer requests.Wait()
	defer cancel()
	for range 3 { // all the time, each for a while
		requests.Go(func() {
			for ctx.Err() == nil {
				ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
				ask(ctx, r)
				cancel()
			}
		})
		requests.Go(func() { ask(ctx, r) })
	}
	begun := time.Now()
	if sends {
		await.Until(t, "more time than a silence may last", func() bool { return time.Since(begun) > 3*r.maxSilence/2 })
		if c.Load() != 0 {
			t.Errorf("told %d times, offers %s", c.Load(), offers(r))
		}
	} else {
		await.Until(t, "nothing is offered", func() bool { return offers(r) == "nothing" && c.Load() == 1 })
		f.set(func(f *fake) { f.list = nil })
		await.Until(t, "all is offered", func() bool { return offers(r) == "first second"+chats })
	}
}

// ask has a runtime serve a request, whatever becomes of it.
func ask(ctx context.Context, r *Runtime) {
	defer func() {
		if p := recover(); p != nil && p != http.ErrAbortHandler {
			panic(p)
		}
	}()
	r.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(`{"model":"first"}`)).WithContext(ctx))
}
