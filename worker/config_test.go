// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// TestConfigRefuses wants an error that names the setting, and nothing opened.
func TestConfigRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		key, agent string
		want       string
	}{
		"no settings":     {"a", `null`, "no settings"},
		"key":             {"a b", `{"model":"m","runtime":{"runtime":"test"}}`, "the key must be"},
		"path as key":     {"..", `{"model":"m","runtime":{"runtime":"test"}}`, "the key must be"},
		"no model":        {"a", `{"runtime":{"runtime":"test"}}`, "model: required"},
		"no runtime":      {"a", `{"model":"m"}`, "runtime: required"},
		"unknown runtime": {"a", `{"model":"m","runtime":{"runtime":"vm"}}`, "agentfm.runtimes.vm"},
		"unknown field":   {"a", `{"model":"m","modell":"n","runtime":{"runtime":"test"}}`, "modell"},
		"long name":       {"a", `{"model":"m","name":"` + strings.Repeat("x", 21) + `","runtime":{"runtime":"test"}}`, "name: 21 characters"},
		"control":         {"a", `{"model":"m\u001b[2J","runtime":{"runtime":"test"}}`, "control characters"},
		"capability":      {"a", `{"model":"m","capability":"Text Report","runtime":{"runtime":"test"}}`, "kebab"},
		"max_tasks":       {"a", `{"model":"m","max_tasks":-1,"runtime":{"runtime":"test"}}`, "max_tasks"},
		"max_cpu":         {"a", `{"model":"m","max_cpu":101,"runtime":{"runtime":"test"}}`, "max_cpu"},
		"max_gpu":         {"a", `{"model":"m","max_gpu":-2,"runtime":{"runtime":"test"}}`, "max_gpu"},
		"timeout":         {"a", `{"model":"m","timeout":-5,"runtime":{"runtime":"test"}}`, "timeout"},
		"max_files":       {"a", `{"model":"m","max_files":100001,"runtime":{"runtime":"test"}}`, "max_files"},
		"max_files_size":  {"a", `{"model":"m","max_files_size":-1,"runtime":{"runtime":"test"}}`, "max_files_size"},
		"allow_peers":     {"a", `{"model":"m","allow_peers":["me"],"runtime":{"runtime":"test"}}`, "not a peer id"},
		"listen":          {"a", `{"model":"m","listen":["here"],"runtime":{"runtime":"test"}}`, "listen"},
	} {
		cfg := `{"admin":{"disabled":true},"logging":{"logs":{"default":{"writer":{"output":"discard"}}}},
			"apps":{"agentfm":{"mesh":{"bootstrap":["off"]}},"agentfm_worker":{"agents":{"` + c.key + `":` + c.agent + `}}}}`
		var parsed caddy.Config
		if err := json.Unmarshal([]byte(cfg), &parsed); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		err := caddy.Validate(&parsed)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want …%s…", name, err, c.want)
		}
	}
	live.Lock()
	defer live.Unlock()
	if len(live.byKey) != 0 {
		t.Error("validating opened an agent")
	}
}

func TestOverloaded(t *testing.T) {
	for name, c := range map[string]struct {
		cpu, gpu float64
		load     load
		want     string
	}{
		"idle":        {80, 80, load{cpuPercent: 79, hasGPU: true, gpuPercent: 80}, ""},
		"CPU":         {80, 80, load{cpuPercent: 80}, "❌ ERROR: Worker is under heavy load (CPU 80.0%). Try again later."},
		"CPU off":     {-1, 80, load{cpuPercent: 100}, ""},
		"GPU":         {80, 80, load{hasGPU: true, gpuPercent: 80.5}, "❌ ERROR: Worker GPU is busy (80.5% VRAM used). Try another worker."},
		"GPU off":     {80, -1, load{hasGPU: true, gpuPercent: 100}, ""},
		"GPU missing": {80, 80, load{gpuPercent: 100}, ""},
	} {
		g := &generation{config: Config{MaxCPU: c.cpu, MaxGPU: c.gpu}}
		if got := g.overloaded(c.load); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestParseGPUs(t *testing.T) {
	used, total, ok := parseGPUs([]byte("1024, 8192\n512, 24576\n"))
	if !ok || used != 1.5 || total != 32 {
		t.Errorf("got %v, %v, %v", used, total, ok)
	}
	for _, in := range []string{"", "[N/A], [N/A]\n", "1\n", "1, 2, 3\n", "-1, 5\n", "9, 5\n", "NVIDIA-SMI has failed\n", "1, 0\n"} {
		if _, _, ok := parseGPUs([]byte(in)); ok {
			t.Errorf("%q: accepted", in)
		}
	}
}

func TestSample(t *testing.T) {
	l := (&sampler{smi: func() string { return "" }}).sample(t.Context())
	if l.cores < 1 || l.ramFreeGB <= 0 || l.cpuPercent < 0 || l.cpuPercent > 100 || math.IsNaN(l.cpuPercent) {
		t.Errorf("got %+v", l)
	}
}
