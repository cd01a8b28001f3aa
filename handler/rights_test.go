// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// TestRights wants a key to see and use the workers that are its own, and to learn
// nothing of others.
func TestRights(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	const all, some, none = "key-for-everything", "key-for-one-model!", "key-for-no-worker!"
	keys := "all " + all + "\nsome " + some + " models=LLAMA3.2\nnone " + none + " models=other\n"
	if err := os.WriteFile(file, []byte(keys), 0o600); err != nil {
		t.Fatal(err)
	}
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2"), worker(peerB, "Legal", "big")}, dispatch: answers(script{})}
	g := serve(t, f, func(g *gate, _ *serverSettings) { g.h.APIKeysFile = file })
	for key, want := range map[string][]string{all: {peerA, peerB}, some: {peerA}, none: nil} {
		bearer := []string{"Authorization", "Bearer " + key}
		for _, peer := range []string{peerA, peerB} {
			sees := len(want) > 0 && strings.Contains(strings.Join(want, " "), peer)
			for _, list := range []string{"/v1/models", "/api/workers"} {
				if got := strings.Contains(g.do(t, "GET", list, "", bearer...).body, peer); got != sees {
					t.Errorf("%s: %s has %s: %t", key, list, peer, got)
				}
			}
			a := g.do(t, "GET", "/v1/models/"+peer, "", bearer...)
			if sees != (a.status == 200) {
				t.Errorf("%s: model %s: %d", key, peer, a.status)
			}
			if !sees {
				a.failed(t, 404, "model_not_found")
			}
		}
		for _, r := range []struct{ route, body string }{{"/v1/chat/completions", chatBody}, {"/api/execute", executeBody}} {
			g.do(t, "POST", r.route, r.body, bearer...)
			calls := f.seen()
			if may := calls[len(calls)-1].Target.May; key == all && may != nil {
				t.Errorf("%s: %s is restricted", key, r.route)
			} else if key != all {
				allowed := router.Match(slices.Values(f.workers), calls[len(calls)-1].Target, func(w mesh.WorkerInfo) router.Worker {
					return router.Worker{Peer: w.PeerID, Agent: w.AgentName, Model: w.Model}
				})
				if (len(allowed) > 0) != (key == some) {
					t.Errorf("%s: %s may go to %d workers", key, r.route, len(allowed))
				}
			}
			if got := calls[len(calls)-1].Queue.Client; !strings.HasPrefix(key, "key-for-") || got == "" {
				t.Errorf("%s: the client is %q", key, got)
			}
		}
	}
}
