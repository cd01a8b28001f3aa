// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Agent-FM/caddy-agentfm/router"
)

// policies are those of package router/policy, less sticky, which without sessions is
// least_loaded.
var policies = map[string]router.Selector{
	"least_loaded": router.LeastLoaded{}, "power_of_two": router.PowerOfTwo{}, "round_robin": router.RoundRobin{},
}

// result is what a cell has shown.
type result struct {
	cell
	P50      float64 `json:"p50"`      // in mean times of a task
	P99      float64 `json:"p99"`      // the same
	Oracle   float64 `json:"oracle"`   // its p99
	Ratio    float64 `json:"ratio"`    // of P99 to it
	Attempts float64 `json:"attempts"` // workers asked, for each request
	Refused  float64 `json:"refused"`  // requests that were to come again, as a share
}

// limit is what the default policy may take, in times of the oracle, with up to four gateways.
const limit = 1.15

// TestSimulation wants the default policy to be near to an omniscient one. It does not
// depend on how fast the machine is.
func TestSimulation(t *testing.T) {
	for _, c := range []cell{
		{Gateways: 1, Service: time.Second, Load: 0.9, Slots: 1},
		{Gateways: 4, Service: time.Second / 10, Load: 0.9, Slots: 1},
		{Gateways: 4, Service: time.Second, Load: 0.8, Slots: 1, NoQueue: true},
		{Gateways: 4, Service: time.Second, Load: 0.9, Slots: 8, OnTick: true},
		{Gateways: 4, Service: 10 * time.Second, Load: 0.8, Slots: 1, OnTick: true},
	} {
		c.Policy, c.Tasks = "least_loaded", 5000
		r := simulate(t, c, oracle99(t, c))
		t.Logf("%+v", r)
		if r.Ratio > limit {
			t.Errorf("%+v: the slowest hundredth takes %.2f times as long as with an oracle, want %.2f", c, r.Ratio, limit)
		}
		if r.Refused > 0 && !c.NoQueue {
			t.Errorf("%+v: a share of %.4f was refused, though there was a queue", c, r.Refused)
		}
	}
}

// TestGrid simulates everything and writes it down, when the suite asks for it.
func TestGrid(t *testing.T) {
	path := os.Getenv("AGENTFM_BENCH_SIMULATION")
	if path == "" {
		return
	}
	tasks, err := strconv.Atoi(os.Getenv("AGENTFM_BENCH_TASKS"))
	if err != nil {
		t.Fatal(err)
	}
	var results []result
	for _, c := range grid() {
		c.Tasks = tasks * c.Slots
		ideal := oracle99(t, c)
		for _, name := range []string{"least_loaded", "power_of_two", "round_robin"} {
			c.Policy = name
			results = append(results, simulate(t, c, ideal))
		}
	}
	b, err := json.MarshalIndent(results, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// grid returns the cells, without policy and size.
func grid() (cells []cell) {
	for _, gateways := range []int{1, 2, 4, 16} {
		for _, service := range []time.Duration{time.Second / 10, time.Second, 10 * time.Second} {
			for _, load := range []float64{0.8, 0.9} {
				c := cell{Gateways: gateways, Service: service, Load: load, Slots: 1}
				mixed := c
				mixed.Mixed = true
				cells = append(cells, c, mixed)
			}
		}
	}
	c := cell{Gateways: 4, Service: time.Second, Load: 0.9, Slots: 8, Mixed: true}
	late, unqueued := c, c
	late.OnTick, unqueued.NoQueue = true, true
	cells = append(cells, c, late, unqueued)
	late.Slots, unqueued.Slots = 1, 1
	return append(cells, late, unqueued)
}

// simulate runs a cell.
func simulate(t *testing.T, c cell, ideal time.Duration) result {
	t.Helper()
	var w *world
	synctest.Test(t, func(*testing.T) {
		w = newWorld(c, policies[c.Policy])
		w.run()
	})
	p50, p99 := quantiles(w.took)
	return result{
		cell: c, P50: p50.Seconds() / c.Service.Seconds(), P99: p99.Seconds() / c.Service.Seconds(),
		Oracle: ideal.Seconds() / c.Service.Seconds(), Ratio: p99.Seconds() / ideal.Seconds(),
		Attempts: float64(w.attempts.Load()) / float64(c.Tasks), Refused: float64(w.refused.Load()) / float64(c.Tasks),
	}
}

// oracle99 is what the slowest hundredth takes with an oracle.
func oracle99(t *testing.T, c cell) (p99 time.Duration) {
	t.Helper()
	synctest.Test(t, func(*testing.T) { _, p99 = quantiles(newOracle(c).run()) })
	return p99
}

func quantiles(took []time.Duration) (p50, p99 time.Duration) {
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100]
}
