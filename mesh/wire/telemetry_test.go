// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"strings"
	"testing"
)

// honest is what an AgentFM 1.3 worker sends.
const honest = `{"peer_id":"12D3KooWA","cpu_cores":8,"cpu_usage_pct":12.5,"ram_free_gb":3.2,"model":"llama3.2",
	"agent_name":"HR","agent_desc":"line\nline","status":"AVAILABLE","has_gpu":false,"gpu_used_gb":0,"gpu_total_gb":0,
	"gpu_usage_pct":0,"current_tasks":1,"max_tasks":4,"author":"me","agent_capability":"hr-policy","new_field":{"a":1}}`

func TestParseTelemetry(t *testing.T) {
	got, err := ParseTelemetry([]byte(honest))
	if err != nil || got.PeerID != "12D3KooWA" || got.CPUPercent != 12.5 || got.MaxTasks != 4 || got.Capability != "hr-policy" {
		t.Errorf("got %+v, %v", got, err)
	}
	if got.PromptLimit() != MaxArgumentPrompt {
		t.Errorf("prompt limit %d", got.PromptLimit())
	}
}

// TestTelemetryFields wants every field that AgentFM 1.3 reads to be there, zero
// or not.
func TestTelemetryFields(t *testing.T) {
	b, _ := json.Marshal(Telemetry{})
	for _, f := range strings.Fields(`peer_id cpu_cores cpu_usage_pct ram_free_gb model agent_name agent_desc status
		has_gpu gpu_used_gb gpu_total_gb gpu_usage_pct current_tasks max_tasks author`) {
		if !strings.Contains(string(b), `"`+f+`":`) {
			t.Errorf("no %s in %s", f, b)
		}
	}
}

func TestParseTelemetryRefuses(t *testing.T) {
	for name, change := range map[string]map[string]any{
		"negative tasks":    {"current_tasks": -1000},
		"CPU -1e9":          {"cpu_usage_pct": -1e9},
		"CPU 1e308":         {"cpu_usage_pct": 1e308},
		"no cores":          {"cpu_cores": 0},
		"max_tasks 0":       {"max_tasks": 0},
		"max_tasks huge":    {"max_tasks": 1 << 40},
		"fractional tasks":  {"current_tasks": 1.5},
		"long description":  {"agent_desc": strings.Repeat("x", 3001)},
		"huge description":  {"agent_desc": strings.Repeat("x", 1<<20)},
		"long name":         {"agent_name": strings.Repeat("x", 129)},
		"terminal escape":   {"agent_name": "\x1b]52;c;aGk=\x07"},
		"status":            {"status": "SLEEPING"},
		"no peer":           {"peer_id": ""},
		"name is a number":  {"agent_name": 7},
		"peer is an object": {"peer_id": map[string]any{}},
		"negative memory":   {"ram_free_gb": -1},
		"prompt limit":      {"max_prompt_bytes": 1 << 30},
		"name of a peer":    {"agent_name": "12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL"},
		"in lower case":     {"model": " 12d3koowqhw8mvqkx17kltnirtbycku2cagcawfflzvjhhmbs5zl"},
		"with a Kelvin":     {"agent_name": "12D3\u212aooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmB\u017f5zL"},
		"of RSA":            {"agent_name": "QmcgpsyWgH8Y8ajJz1Cu72KnS5uo2Aa2LpzU7kinSupNKC"},
	} {
		var m map[string]any
		_ = json.Unmarshal([]byte(honest), &m)
		for k, v := range change {
			m[k] = v
		}
		b, _ := json.Marshal(m)
		if got, err := ParseTelemetry(b); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
	many := make(map[string]int)
	for i := range 10_000 {
		many[strings.Repeat("f", i%50)+string(rune('a'+i%26))+string(rune('0'+i%10))] = i
	}
	fields, _ := json.Marshal(many)
	for name, in := range map[string]string{
		"empty": "", "null": "null", "array": "[]", "cut": honest[:50], "two": honest + honest,
		"not UTF-8": strings.Replace(honest, "llama", "\xff", 1), "NaN": strings.Replace(honest, "12.5", "NaN", 1),
		"1e999": strings.Replace(honest, "12.5", "1e999", 1), "many fields": string(fields) + strings.Repeat(" ", MaxTelemetry),
	} {
		if got, err := ParseTelemetry([]byte(in)); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

func FuzzParseTelemetry(f *testing.F) {
	f.Add([]byte(honest))
	f.Add([]byte(`{"max_tasks":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := ParseTelemetry(b)
		if err == nil && (got.Validate() != nil || got.MaxTasks < 1 || got.PromptLimit() < 1) {
			t.Fatalf("accepted %+v", got)
		}
	})
}
