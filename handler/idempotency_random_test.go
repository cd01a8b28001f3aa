// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// TestKeysAtRandom has clients ask again, at the same time and after hanging up: no agent
// may run twice for one key, and who gets an answer gets the one that it gave.
func TestKeysAtRandom(t *testing.T) {
	trials := 2000
	if os.Getenv("AGENTFM_TEST_NIGHTLY") == "1" {
		trials = 100_000
	}
	const clients = 16
	var runs sync.Map // by prompt: the number of runs
	f := new(fakeMesh)
	f.dispatch = func(ctx context.Context, c mesh.Call) (run, error) {
		switch rand.N(6) {
		case 0:
			return nil, router.ErrBusy
		case 1:
			return nil, &mesh.AttemptError{Err: wire.ErrRefused}
		}
		n, _ := runs.LoadOrStore(c.Prompt, new(atomic.Int32))
		k := n.(*atomic.Int32).Add(1)
		if rand.N(6) == 0 {
			return nil, &mesh.AttemptError{Err: mesh.ErrStream}
		}
		sc := script{output: []string{fmt.Sprintf("%s run %d", c.Prompt, k), " end"}, pause: rand.N(time.Millisecond), hang: rand.N(6) == 0}
		return answers(sc)(ctx, c)
	}
	g := serveTasks(t, f, tasks.Options{}, func(g *gate, _ *serverSettings) { g.repl = make(chan *caddy.Replacer, trials) })
	var next atomic.Int64
	var statuses [600]atomic.Int64
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for range trials / clients {
				key := fmt.Sprintf("k%d", next.Add(1)/6-rand.Int64N(20))
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(300*time.Millisecond))
				req, err := http.NewRequestWithContext(ctx, "POST", g.URL+"/api/execute", strings.NewReader(`{"worker_id":"`+peerA+`","prompt":"`+key+`"}`))
				if err != nil {
					t.Error(err)
				}
				req.Header.Set("Idempotency-Key", key)
				resp, err := g.Client().Do(req)
				if err == nil {
					statuses[resp.StatusCode].Add(1)
					b, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if want := key + " run 1 end\n[AGENTFM: NO_FILES]\n"; err == nil && resp.StatusCode == 200 && string(b) != want {
						t.Errorf("got %q, want %q", b, want)
					}
				} else if !errors.Is(err, context.DeadlineExceeded) {
					t.Error(err)
				}
				cancel()
			}
		})
	}
	all.Wait()
	keys := 0
	runs.Range(func(key, n any) bool {
		keys++
		if n := n.(*atomic.Int32).Load(); n > 1 {
			t.Errorf("key %s was run %d times", key, n)
		}
		return true
	})
	for status := range statuses {
		if n := statuses[status].Load(); n > 0 {
			t.Logf("status %d: %d", status, n)
		}
	}
	t.Logf("%d keys were run", keys)
}

// FuzzKey wants a key to be taken or refused, and one that is taken to be one that is safe
// to log.
func FuzzKey(f *testing.F) {
	for _, s := range []string{"", "k", "a b", "é", "\x00", strings.Repeat("k", 256)} {
		f.Add(s, "multipart/form-data; boundary=x", []byte("--x"), "q=1")
	}
	f.Fuzz(func(t *testing.T, name, contentType string, body []byte, query string) {
		if validKey([]string{name}) && (name == "" || len(name) > 255 || headerText(strings.ReplaceAll(name, "%", "")) != strings.ReplaceAll(name, "%", "")) {
			t.Errorf("%q is taken", name)
		}
		r := &http.Request{Header: http.Header{"Content-Type": {contentType}}, URL: &url.URL{RawQuery: query}}
		if fingerprint(r, body) == fingerprint(r, append(body[:len(body):len(body)], 'x')) {
			t.Errorf("%q: the hash does not tell bodies apart", body)
		}
	})
}
