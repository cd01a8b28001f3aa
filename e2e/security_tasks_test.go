// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

const bobKey = "bob-has-a-key-of-his-own-for-this"

// tenantScript is an agent that leaves a file, and waits for a prompt that says so.
const tenantScript = `prompt=$(cat)
printf 'said %s\n' "$prompt"
printf '%s' "$prompt" >"$AGENTFM_OUTPUT/marked.txt"
case $prompt in *wait*) until [ -e "$GATE" ]; do sleep 0.05; done ;; esac
`

// taskView is a task as its owner sees it.
type taskView struct {
	ID       string `json:"task_id"`
	Status   string `json:"status"`
	Reason   string `json:"reason"`
	Attempts int    `json:"attempts"`
	Files    bool   `json:"has_files"`
	Webhook  struct {
		Status   string `json:"status"`
		Attempts int    `json:"attempts"`
	} `json:"webhook"`
}

// askAs sends a request with a key; empty for none.
func (p *process) askAs(t *testing.T, key, method, path, body string, headers ...string) received {
	t.Helper()
	if key != "" {
		headers = append(headers, bearer(key)...)
	}
	return wantAsk(t, httpClient, method, p.url+path, body, headers...)
}

// taskAs returns a task of a key.
func (p *process) taskAs(t *testing.T, key, id string) taskView {
	t.Helper()
	var v taskView
	a := p.askAs(t, key, http.MethodGet, "/api/tasks/"+id, "")
	if err := json.Unmarshal([]byte(a.body), &v); err != nil || v.ID != id {
		t.Fatalf("got %d %s", a.status, a.body)
	}
	return v
}

// submitAs submits a task with a key.
func (p *process) submitAs(t *testing.T, key string, request map[string]string, headers ...string) string {
	t.Helper()
	body, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	var v taskView
	a := p.askAs(t, key, http.MethodPost, "/api/execute/async", string(body), headers...)
	if err := json.Unmarshal([]byte(a.body), &v); err != nil || a.status != http.StatusAccepted {
		t.Fatalf("got %d %s", a.status, a.body)
	}
	return v.ID
}

// A7: what belongs to one client is not there for another, by no route and no method.
func TestA7OtherTenants(t *testing.T) {
	t.Parallel()
	const marker = "marked-2f9c"
	var posts atomic.Int64
	sink := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { posts.Add(1) }))
	t.Cleanup(sink.Close)
	dir := home(t)
	gate := filepath.Join(dir, "gate")
	writeFile(t, dir, "keys", keyFile+"bob "+bobKey+"\n")
	p := startWith(t, dir, caddyfile(localMesh, "agentfm {\n\t\tapi_keys "+testKey+"\n\t\tapi_keys_file "+dir+"/keys\n\t}",
		agent("tenant", "Tenant", "tenant", command(writeScript(t, tenantScript), "GATE", gate))), []string{"AGENTFM_WEBHOOK_ALLOW_PRIVATE=1"})
	p.awaitWorkers(1)
	worker := p.workerID("Tenant")
	done := p.submitAs(t, aliceKey, map[string]string{"worker_id": worker, "prompt": marker, "webhook_url": sink.URL + "/" + marker})
	runs := p.submitAs(t, aliceKey, map[string]string{"worker_id": worker, "prompt": marker + " wait", "webhook_url": sink.URL + "/" + marker})
	p.await("the tasks of alice", func() bool {
		return p.taskAs(t, aliceKey, done).Webhook.Status == "delivered" && p.taskAs(t, aliceKey, runs).Status == "running"
	})
	zip := p.askAs(t, aliceKey, http.MethodGet, "/api/tasks/"+done+"/artifacts", "")
	if zip.status != http.StatusOK || !strings.Contains(p.askAs(t, aliceKey, http.MethodGet, "/api/tasks/"+done+"/output", "").body, marker) {
		t.Fatal("alice does not get her own")
	}

	roles := []struct {
		name, key   string
		read, write int // statuses
	}{
		{"bob", bobKey, http.StatusNotFound, http.StatusNotFound},
		{"runner", runnerKey, http.StatusNotFound, http.StatusNotFound},
		{"the gateway's own key", testKey, http.StatusNotFound, http.StatusNotFound},
		{"reader", readerKey, http.StatusNotFound, http.StatusForbidden},
		{"nobody", "", http.StatusUnauthorized, http.StatusUnauthorized},
	}
	var below []string
	for _, id := range []string{done, runs, done + ".1", strings.ToUpper(done)} {
		for _, what := range []string{"", "/output", "/output?follow=true", "/events", "/events?last_event_id=0", "/artifacts", "/webhook"} {
			below = append(below, "/api/tasks/"+id+what)
		}
	}
	for _, role := range roles {
		for _, path := range below {
			for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodDelete, http.MethodPost, http.MethodPut, http.MethodPatch} {
				a := p.askAs(t, role.key, method, path, "")
				want := role.write
				if method == http.MethodGet || method == http.MethodHead {
					want = role.read
				}
				// A route that does not have the method tells everyone so, whosever the task is.
				if a.status != want && a.status != http.StatusMethodNotAllowed && !(a.status == http.StatusBadRequest && strings.Contains(path, "TASK_")) {
					t.Errorf("%s: %s %s: got %d %s, want %d", role.name, method, path, a.status, a.body, want)
				}
				if strings.Contains(a.body, marker) || a.header.Get("X-AgentFM-Task-Status") != "" || a.header.Get("ETag") != "" {
					t.Errorf("%s: %s %s tells of what is alice's: %s", role.name, method, path, a.body)
				}
			}
		}
		for _, query := range []string{"", "?status=completed", "?webhook=delivered", "?limit=200", "?before=" + done, "?owner=alice"} {
			a := p.askAs(t, role.key, http.MethodGet, "/api/tasks"+query, "")
			if a.status != http.StatusOK && role.read == http.StatusNotFound || strings.Contains(a.body, "task_0") {
				t.Errorf("%s: list %s: got %d %s", role.name, query, a.status, a.body)
			}
		}
		// Nor does another's word replace what she has.
		for _, route := range []string{"/api/execute", "/api/execute/async"} {
			body, _ := json.Marshal(map[string]string{"worker_id": worker, "prompt": "other", "task_id": done})
			if a := p.askAs(t, role.key, http.MethodPost, route, string(body)); route == "/api/execute" && a.status < 400 {
				t.Errorf("%s: took the id of alice's task: %d %s", role.name, a.status, a.body)
			}
		}
	}
	// Nor is what she names by a key of her own known to another who names the same.
	request, again := map[string]string{"worker_id": worker, "prompt": marker + " once"}, []string{"Idempotency-Key", "the-same-for-both"}
	hers := p.submitAs(t, aliceKey, request, again...)
	if id := p.submitAs(t, bobKey, request, again...); id == hers || p.taskAs(t, bobKey, id).ID != id {
		t.Errorf("bob got %s with the key of alice's request, which is %s", id, hers)
	}
	if id := p.submitAs(t, aliceKey, request, again...); id != hers {
		t.Errorf("alice got %s and not %s", id, hers)
	}
	if v := p.taskAs(t, aliceKey, runs); v.Status != "running" || v.Attempts != 1 {
		t.Errorf("the task that ran: %+v", v)
	}
	if v := p.taskAs(t, aliceKey, done); v.Status != "completed" || v.Webhook.Attempts != 1 || posts.Load() != 1 {
		t.Errorf("the task that was done: %+v, and %d webhooks", v, posts.Load())
	}
	if again := p.askAs(t, aliceKey, http.MethodGet, "/api/tasks/"+done+"/artifacts", ""); again.body != zip.body {
		t.Error("the files of alice are others now")
	}
	writeFile(t, dir, "gate", "")
	p.await("the end of the task that ran", func() bool { return p.taskAs(t, aliceKey, runs).Webhook.Status == "delivered" })
}

// A webhook is signed with the secret of the task's owner, and with the one before it as
// long as the key file says so. No log and no route of the admin API has a secret.
func TestWebhookSecrets(t *testing.T) {
	t.Parallel()
	const own, fresh, global = "the-secret-of-alice-and-her-receiver", "the-secret-of-alice-that-comes-after", "the-secret-of-all-the-others-here"
	var mu sync.Mutex
	got := make(map[string]http.Header) // by the path
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		got[r.URL.Path] = r.Header
	}))
	t.Cleanup(sink.Close)
	dir := home(t)
	keys := func(secrets string) {
		writeFile(t, dir, "next", "alice "+aliceKey+" webhook_secret="+secrets+"\nbob "+bobKey+"\n")
		if err := os.Rename(filepath.Join(dir, "next"), filepath.Join(dir, "keys")); err != nil {
			t.Fatal(err)
		}
	}
	keys(own)
	config := strings.Replace(caddyfile(localMesh, "agentfm {\n\t\tapi_keys "+testKey+"\n\t\tapi_keys_file "+dir+"/keys\n\t}",
		agent("report", "Text report", "text-report", command(reportScript))),
		"\t\tartifacts artifacts\n", "\t\tartifacts artifacts\n\t\ttasks {\n\t\t\twebhook_secret {env.WEBHOOK_SECRET} {env.OLD_WEBHOOK_SECRET}\n\t\t}\n", 1)
	p := startWith(t, dir, config, []string{"AGENTFM_WEBHOOK_ALLOW_PRIVATE=1", "WEBHOOK_SECRET=" + global})
	p.awaitWorkers(1)
	worker := p.workerID("Text report")
	deliver := func(key, path string) http.Header {
		id := p.submitAs(t, key, map[string]string{"worker_id": worker, "prompt": "One.", "webhook_url": sink.URL + path})
		p.await("a delivery", func() bool { return p.taskAs(t, key, id).Webhook.Status == "delivered" })
		mu.Lock()
		defer mu.Unlock()
		return got[path]
	}
	signatures := func(h http.Header) int { return len(strings.Fields(h.Get("Webhook-Signature"))) }
	if n := signatures(deliver(aliceKey, "/alice")); n != 1 {
		t.Errorf("%d signatures", n)
	}
	if n := signatures(deliver(bobKey, "/bob")); n != 1 {
		t.Errorf("%d signatures", n)
	}
	keys(fresh + "," + own)
	p.await("the new secret", func() bool { return signatures(deliver(aliceKey, "/alice")) == 2 })
	for _, path := range []string{"/config/", "/agentfm/about", "/agentfm/workers", "/metrics"} {
		a := wantAsk(t, httpClient, http.MethodGet, p.admin+path, "")
		if a.status != http.StatusOK || slices.ContainsFunc([]string{own, fresh, global}, func(s string) bool { return strings.Contains(a.body, s) }) {
			t.Errorf("%s: got %d, or a secret", path, a.status)
		}
	}
	for _, secret := range []string{own, fresh, global} {
		if strings.Contains(p.log.String(), secret) {
			t.Errorf("the log has the secret %s", secret)
		}
	}
	records := p.askAs(t, aliceKey, http.MethodGet, "/api/tasks", "").body
	if strings.Contains(records, own) {
		t.Error("a task has the secret")
	}
	if found := grep(t, filepath.Join(dir, "caddy", "agentfm", "task-store"), own, fresh, global); found != "" {
		t.Errorf("%s has a secret", found)
	}
}

// grep returns a file below a folder that holds one of the texts; empty for none.
func grep(t *testing.T, dir string, texts ...string) (found string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, text := range texts {
			if strings.Contains(string(b), text) {
				found = path
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
