// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// simulated is a result of package simulation.
type simulated struct {
	Policy   string        `json:"policy"`
	Gateways int           `json:"gateways"`
	Service  time.Duration `json:"service_ns"`
	Load     float64       `json:"load"`
	Slots    int           `json:"slots"`
	Mixed    bool          `json:"mixed"`
	OnTick   bool          `json:"on_tick"`
	NoQueue  bool          `json:"no_queue"`
	Tasks    int           `json:"tasks"`
	P50      float64       `json:"p50"`
	P99      float64       `json:"p99"`
	Oracle   float64       `json:"oracle"`
	Ratio    float64       `json:"ratio"`
	Attempts float64       `json:"attempts"`
	Refused  float64       `json:"refused"`
}

// defaultPolicy is that of the gateway.
const defaultPolicy = "least_loaded"

// simulate is B7.
func (r *report) simulate(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "simulation.json")
	env := []string{"AGENTFM_BENCH_SIMULATION=" + path, "AGENTFM_BENCH_TASKS=" + strconv.Itoa(o.tasks)}
	if _, err := goTest(ctx, env, "test", "-count", "1", "-timeout", "60m", "-run", "^TestGrid$", "./bench/simulation"); err != nil {
		return fmt.Errorf("B7: %w", err)
	}
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &r.Simulation)
	}
	if err != nil {
		return fmt.Errorf("B7: %w", err)
	}
	for _, g := range []struct {
		gateways int
		limit    float64
	}{{4, 1.15}, {2, 1.15}, {1, 1.15}, {16, 1.5}} {
		f := finding{Bench: "B7", Text: fmt.Sprintf("p99 of requests, gateways: %d, one value a cell of the simulation", g.gateways), To: "an omniscient gateway", Limit: g.limit}
		for _, s := range r.Simulation {
			if s.Gateways == g.gateways && s.Policy == defaultPolicy && !s.NoQueue {
				f.Values = append(f.Values, s.Ratio)
			}
		}
		r.add(f)
	}
	return nil
}

// printSimulation prints the cells, of all policies side by side.
func (r *report) printSimulation(w io.Writer) {
	if len(r.Simulation) == 0 {
		return
	}
	fmt.Fprintf(w, "\nB7: p99 of requests to 200 workers on virtual time, as a multiple of that of an omniscient gateway; in brackets workers asked for each request\n\n"+
		"| gateways | mean task | load | workers | `least_loaded` | `power_of_two` | `round_robin` | refused by the default |\n"+
		"| --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for i := 0; i+2 < len(r.Simulation); i += 3 {
		s := r.Simulation[i]
		fmt.Fprintf(w, "| %d | %s | %.0f %% | %s |", s.Gateways, s.Service, 100*s.Load, s.workers())
		for _, p := range r.Simulation[i : i+3] {
			fmt.Fprintf(w, " %.2f (%.2f) |", p.Ratio, p.Attempts)
		}
		fmt.Fprintf(w, " %.2f %% |\n", 100*s.Refused)
	}
}

// workers says what the workers of a cell are.
func (s *simulated) workers() string {
	text := fmt.Sprintf("%d slots", s.Slots)
	if s.Slots == 1 {
		text = "1 slot"
	}
	if s.Mixed {
		text += ", fast and slow"
	}
	if s.OnTick {
		text += ", telemetry every 2 s alone"
	}
	if s.NoQueue {
		text += ", no queue"
	}
	return text
}
