// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// testWorkers are one worker with everything, one with little, and one that is
// offline.
func testWorkers() []mesh.WorkerInfo {
	full := worker(peerA, "HR Assistant", "meta/llama-3")
	full.HasGPU, full.GPUUsedGB, full.GPUTotalGB, full.GPUPercent = true, 3.14159, 24, 13
	full.ImageRef, full.ImageDigest, full.Capability = "hr:v1", "sha256:ab", "hr-questions"
	full.Status = wire.StatusBusy
	full.Preparing, full.PreparingPercent = "pulling image", 42
	plain := worker(peerB, "Legal", "llama3.2")
	plain.Description, plain.Author, plain.LastSeen = "", "", time.Time{}
	off := worker("12D3off", "Old", "old")
	off.Online = false
	return []mesh.WorkerInfo{full, plain, off}
}

// TestLongList wants a long list to serve for a moment, but no other client than those who
// see all of it.
func TestLongList(t *testing.T) {
	var many []*mesh.WorkerInfo
	for i := range longList {
		w := worker(fmt.Sprint("12D3worker", i), fmt.Sprint("Agent ", i), "llama3.2")
		many = append(many, &w)
	}
	f := &fakeMesh{listed: many}
	const all, one = "the-key-of-all-123", "the-key-of-one-123"
	g := serve(t, f, withKeyFile(t, "all "+all+"\none "+one+" models=\"Agent 7\"\n"))
	count := func(query, key string) (n int) {
		var list struct {
			Agents []struct{} `json:"agents"`
		}
		if err := json.Unmarshal([]byte(g.do(t, "GET", "/api/workers"+query, "", "Authorization", "Bearer "+key).body), &list); err != nil {
			t.Fatal(err)
		}
		return len(list.Agents)
	}
	many[longList-1].Online = false
	for range 2 {
		if a, b, c := count("?include_offline=1", all), count("", all), count("", one); a != longList || b != longList-1 || c != 1 {
			t.Fatal(a, b, c)
		}
	}
	f.listed = many[:longList-1] // in short lists everything counts at once
	await.Until(t, "the list is made anew", func() bool { return count("?include_offline=1", all) == longList-1 })
	f.listed = many[:7]
	if n := count("?include_offline=1", all); n != 7 {
		t.Errorf("%d workers of a short list", n)
	}
}

func TestWorkers(t *testing.T) {
	g := serve(t, &fakeMesh{workers: testWorkers()})
	const full = `{"peer_id":"` + peerA + `","author":"ann","name":"HR Assistant","status":"BUSY",` +
		`"hardware":"meta/llama-3 (GPU VRAM: 3.1/24.0 GB)","description":"d","cpu_usage_pct":12.5,"ram_free_gb":3.25,"current_tasks":1,"max_tasks":4,` +
		`"has_gpu":true,"gpu_used_gb":3.14159,"gpu_total_gb":24,"gpu_usage_pct":13,` +
		`"preparing":"pulling image","preparing_pct":42,"agent_image_ref":"hr:v1","agent_image_digest":"sha256:ab","agent_capability":"hr-questions",` +
		`"last_seen":"2023-11-14T22:15:00Z","honesty_score":0,"is_equivocator":false,"dispatch_allowed":true,"on_probation":false,"online":true}`
	const plain = `{"peer_id":"` + peerB + `","author":"","name":"Legal","status":"AVAILABLE",` +
		`"hardware":"llama3.2 (CPU: 8 Cores)","description":"","cpu_usage_pct":12.5,"ram_free_gb":3.25,"current_tasks":1,"max_tasks":4,` +
		`"has_gpu":false,"gpu_used_gb":0,"gpu_total_gb":0,"gpu_usage_pct":0,` +
		`"honesty_score":0,"is_equivocator":false,"dispatch_allowed":true,"on_probation":false,"online":true}`
	const off = `{"peer_id":"12D3off","author":"ann","name":"Old","status":"AVAILABLE",` +
		`"hardware":"old (CPU: 8 Cores)","description":"d","cpu_usage_pct":12.5,"ram_free_gb":3.25,"current_tasks":1,"max_tasks":4,` +
		`"has_gpu":false,"gpu_used_gb":0,"gpu_total_gb":0,"gpu_usage_pct":0,` +
		`"last_seen":"2023-11-14T22:15:00Z","honesty_score":0,"is_equivocator":false,"dispatch_allowed":true,"on_probation":false,"online":false}`
	const head = `{"success":true,"online_count":2,"offline_count":1,"agents":[`
	for query, want := range map[string]string{
		"":                       head + full + "," + plain + "]}",
		"?include_offline=false": head + full + "," + plain + "]}",
		"?include_offline=true":  head + full + "," + plain + "," + off + "]}",
		"?include_offline=1&x=y": head + full + "," + plain + "," + off + "]}",
	} {
		a := g.do(t, "GET", "/api/workers"+query, "")
		if a.status != 200 || a.body != want || a.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: got %d\n%s\nwant\n%s", query, a.status, a.body, want)
		}
		a.hasRequestID(t)
	}
	g.do(t, "GET", "/api/workers?include_offline=perhaps", "").failed(t, 400, invalidRequest)
	if a := g.do(t, "HEAD", "/api/workers", ""); a.status != 200 || a.body != "" || a.header.Get("Content-Length") == "" {
		t.Errorf("HEAD: got %d %v", a.status, a.header)
	}
}

func TestEmptyLists(t *testing.T) {
	g := serve(t, &fakeMesh{})
	for path, want := range map[string]string{
		"/api/workers": `{"success":true,"online_count":0,"offline_count":0,"agents":[]}`,
		"/v1/models":   `{"object":"list","data":[]}`,
		"/health":      `{"status":"ok","online_workers":0}`,
	} {
		if a := g.do(t, "GET", path, ""); a.status != 200 || a.body != want {
			t.Errorf("%s: got %d %s", path, a.status, a.body)
		}
	}
}

func TestHealth(t *testing.T) {
	g := serve(t, &fakeMesh{workers: testWorkers()}, withKeys(keyOne))
	a := g.do(t, "GET", "/health", "", "Authorization", "nonsense", "Origin", "https://example.com")
	if a.status != 200 || a.body != `{"status":"ok","online_workers":2}` {
		t.Errorf("got %d %s", a.status, a.body)
	}
	a.hasRequestID(t)
}

// modelA and modelB are the entries of the online testWorkers.
const (
	modelA = `{"id":"` + peerA + `","object":"model","created":1700000000,"owned_by":"ann","description":"d",` + modelTailA
	modelB = `{"id":"` + peerB + `","object":"model","created":1700000000,"owned_by":"",` + modelTailB

	modelTailA = `"agentfm_name":"HR Assistant","agentfm_engine":"meta/llama-3","agentfm_status":"BUSY",` +
		`"agentfm_hardware":"meta/llama-3 (GPU VRAM: 3.1/24.0 GB)","agentfm_current_tasks":1,"agentfm_max_tasks":4,` +
		`"agentfm_cpu_usage_pct":12.5,"agentfm_ram_free_gb":3.25,"agentfm_has_gpu":true,"agentfm_gpu_used_gb":3.14159,` +
		`"agentfm_gpu_total_gb":24,"agentfm_gpu_usage_pct":13,"agentfm_preparing":"pulling image","agentfm_preparing_pct":42,"agentfm_image_ref":"hr:v1","agentfm_image_digest":"sha256:ab",` +
		`"agentfm_capability":"hr-questions","agentfm_honesty_score":0,"agentfm_is_equivocator":false,` +
		`"agentfm_dispatch_allowed":true,"agentfm_on_probation":false,"agentfm_online":true,"agentfm_last_seen":"2023-11-14T22:15:00Z"}`
	modelTailB = `"agentfm_name":"Legal","agentfm_engine":"llama3.2","agentfm_status":"AVAILABLE",` +
		`"agentfm_hardware":"llama3.2 (CPU: 8 Cores)","agentfm_current_tasks":1,"agentfm_max_tasks":4,` +
		`"agentfm_cpu_usage_pct":12.5,"agentfm_ram_free_gb":3.25,"agentfm_has_gpu":false,"agentfm_gpu_used_gb":0,` +
		`"agentfm_gpu_total_gb":0,"agentfm_gpu_usage_pct":0,"agentfm_honesty_score":0,"agentfm_is_equivocator":false,` +
		`"agentfm_dispatch_allowed":true,"agentfm_on_probation":false,"agentfm_online":true}`
)

func TestModels(t *testing.T) {
	g := serve(t, &fakeMesh{workers: testWorkers()})
	want := `{"object":"list","data":[` + modelA + `,` + modelB + `]}`
	if a := g.do(t, "GET", "/v1/models", ""); a.status != 200 || a.body != want {
		t.Errorf("got %d\n%s\nwant\n%s", a.status, a.body, want)
	}
	named := func(id string) string {
		return `{"id":"` + id + `","object":"model","created":1700000000,"owned_by":"ann","description":"d","agentfm_peer_id":"` + peerA + `",` + modelTailA
	}
	for id, want := range map[string]string{
		peerA:               modelA,
		peerB:               modelB,
		"meta/llama-3":      named("meta/llama-3"),
		"META%2fLlama-3":    named("META/Llama-3"),
		"meta%2Fllama%2D3":  named("meta/llama-3"),
		"hr%20assistant":    named("hr assistant"),
		"HR%20Assistant%20": named("HR Assistant"),
	} {
		if a := g.do(t, "GET", "/v1/models/"+id, ""); a.status != 200 || a.body != want {
			t.Errorf("%s: got %d\n%s\nwant\n%s", id, a.status, a.body, want)
		}
	}
	for _, id := range []string{"old", "12D3off", "gpt-4", "..", "%2e%2e%2f..", "hr", "%20", "meta/llama-3/", strings.ToLower(peerA), strings.Repeat("x", 5000)} {
		a := g.do(t, "GET", "/v1/models/"+id, "")
		a.failed(t, 404, "model_not_found")
		if len(a.body) > 1000 {
			t.Errorf("an answer of %d bytes", len(a.body))
		}
	}
}

// The tiers of the matcher: peer id, agent name, model engine.
func TestMatching(t *testing.T) {
	f := &fakeMesh{workers: []mesh.WorkerInfo{
		worker("p1", "shared", "engine"), worker("p2", "p1", "shared"), worker("p3", "Shared", "other"), worker("p4", "x", "engine"),
	}}
	workers := (&fakeLease{f: f}).Workers(true)
	for _, r := range []struct {
		target router.Request
		want   string
	}{
		{router.Request{Model: "p1"}, "p1"},
		{router.Request{Model: " shared "}, "p1,p3"},
		{router.Request{Model: "ENGINE"}, "p1,p4"},
		{router.Request{Model: "none"}, ""},
		{router.Request{Peer: "p2"}, "p2"},
		{router.Request{Peer: "shared"}, ""},
		{router.Request{Peer: "p4", Model: "shared"}, "p4"},
	} {
		var got []string
		for _, w := range new(Handler).matching(workers, r.target) {
			got = append(got, w.PeerID)
		}
		if strings.Join(got, ",") != r.want {
			t.Errorf("%+v: got %v, want %s", r.target, got, r.want)
		}
	}
}
