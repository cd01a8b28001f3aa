// SPDX-License-Identifier: Apache-2.0

package tasks_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/Agent-FM/caddy-agentfm"
	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/internal/freeport"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// gateway is a Caddy of this process, with an agent that repeats its prompt. A client's key
// is its name, and "-with-a-long-key".
type gateway struct{ url string }

// startGateway starts one.
func startGateway(t *testing.T) *gateway {
	t.Helper()
	dir, port := t.TempDir(), freeport.Get(t)
	config := fmt.Sprintf(`{
	admin off
	persist_config off
	storage file_system %[1]s/storage
	log {
		output discard
	}
	agentfm {
		mesh {
			listen /ip4/127.0.0.1/tcp/0
			bootstrap off
			discovery off
		}
		artifacts %[1]s/artifacts
		tasks {
			store %[1]s/tasks
			in_flight 10000
		}
	}
	agentfm_worker {
		agent echo {
			model echo
			max_tasks 8
			max_cpu off
			runtime process {
				command cat
				prompt stdin
			}
		}
	}
}
http://:%[2]d {
	bind 127.0.0.1
	agentfm {
		api_keys_file %[1]s/keys
	}
}
`, dir, port)
	keys := "alice alice-with-a-long-key\nbob bob-with-a-long-key\n"
	if err := os.WriteFile(filepath.Join(dir, "keys"), []byte(keys), 0o600); err != nil {
		t.Fatal(err)
	}
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(config), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
		await.Until(t, "the end of the node and of the agent", func() bool {
			stacks := make([]byte, 4<<20)
			stacks = stacks[:runtime.Stack(stacks, true)]
			return !slices.ContainsFunc(strings.Split(string(stacks), "\n\n"), func(stack string) bool {
				return strings.Contains(stack, "caddy-agentfm/mesh.") || strings.Contains(stack, "caddy-agentfm/worker.")
			})
		})
	})
	if err := caddy.Load(adapted, false); err != nil {
		t.Fatal(err)
	}
	g := &gateway{fmt.Sprintf("http://127.0.0.1:%d", port)}
	await.Until(t, "the agent", func() bool {
		_, body := g.ask(t, "alice", "GET", "/v1/models", "")
		return strings.Contains(body, "echo")
	})
	return g
}

// ask sends a request of a client, and returns the answer and its body.
func (g *gateway) ask(t *testing.T, client, method, path, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, g.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+client+"-with-a-long-key")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(got)
}

// heldMessage is part of what the client reads that has more than its share.
const heldMessage = "too many of your tasks that have ended must be kept"

// submit submits a task of a client. It reports whether it was accepted, and whether it was
// not because the client has more than its share.
func (g *gateway) submit(t *testing.T, client, webhook string) (id string, held bool) {
	t.Helper()
	body, err := json.Marshal(map[string]string{"model": "echo", "prompt": "x", "webhook_url": webhook})
	if err != nil {
		t.Fatal(err)
	}
	resp, got := g.ask(t, client, "POST", "/api/execute/async", string(body))
	var v struct {
		TaskID string `json:"task_id"`
		Error  struct{ Code, Message string }
	}
	if err := json.Unmarshal([]byte(got), &v); err != nil {
		t.Fatalf("%d %s: %v", resp.StatusCode, got, err)
	}
	if resp.StatusCode == http.StatusAccepted {
		return v.TaskID, false
	}
	held = strings.Contains(v.Error.Message, heldMessage)
	wait := "5" // all of the room is taken, for a moment
	if held {
		wait = "60"
	}
	if resp.StatusCode != http.StatusServiceUnavailable || v.Error.Code != "async_capacity_exhausted" || resp.Header.Get("Retry-After") != wait {
		t.Fatalf("got %d %v %s", resp.StatusCode, resp.Header, got)
	}
	return "", held
}

// TestHeldOverHTTP wants a client to be told that its webhooks, which cannot be delivered,
// have more than its share of the store, while another is served, and to be served again
// when they are delivered.
func TestHeldOverHTTP(t *testing.T) {
	t.Setenv("AGENTFM_WEBHOOK_ALLOW_PRIVATE", "1")
	var later atomic.Int64
	tasks.Tight(t, 128<<10, func() time.Time { return time.Now().Add(time.Duration(later.Load())) })
	var healed atomic.Bool
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !healed.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer receiver.Close()
	g := startGateway(t)

	await.Until(t, "more than its share", func() bool {
		_, held := g.submit(t, "bob", receiver.URL)
		return held
	})
	if _, held := g.submit(t, "bob", ""); !held {
		t.Error("a task without a webhook was accepted")
	}
	for range 20 {
		await.Until(t, "room for another client", func() bool {
			id, held := g.submit(t, "alice", "")
			if held {
				t.Fatal("it is told of the share of another")
			}
			return id != ""
		})
	}
	if _, held := g.submit(t, "bob", ""); !held {
		t.Error("it was accepted before its webhooks were delivered")
	}
	if resp, got := g.ask(t, "alice", "GET", "/health", ""); resp.StatusCode != http.StatusOK {
		t.Errorf("got %d %s", resp.StatusCode, got)
	}

	healed.Store(true)
	later.Store(int64(72 * time.Hour)) // the next attempts are due
	var id string
	await.Until(t, "a task that is accepted again", func() bool {
		id, _ = g.submit(t, "bob", receiver.URL)
		return id != ""
	})
	await.Until(t, "its webhook", func() bool {
		_, got := g.ask(t, "bob", "GET", "/api/tasks/"+id, "")
		return strings.Contains(got, `"status":"delivered"`)
	})
}
