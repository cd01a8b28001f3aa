// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is what a run has measured.
type report struct {
	Date    time.Time     `json:"date"`
	Go      string        `json:"go"`
	CPUs    int           `json:"cpus"`
	Load    string        `json:"load_before"`
	Command string        `json:"command"`
	Tables  []*table      `json:"tables"`
	Mesh    []meshResult  `json:"mesh,omitempty"`
	Flight  *flightResult `json:"in_flight,omitempty"`

	wanted int // rounds
}

// table is one measurement, round by round.
type table struct {
	Name    string              `json:"name"`
	Title   string              `json:"title"`
	Sides   []string            `json:"sides"`
	Missing []string            `json:"missing,omitempty"`
	Rounds  []map[string]sample `json:"rounds"`
	Void    []map[string]sample `json:"void,omitempty"`
}

func newReport(o options) *report {
	load, _ := os.ReadFile("/proc/loadavg")
	return &report{
		wanted: o.rounds,
		Date:   time.Now().UTC(), Go: runtime.Version(), CPUs: runtime.NumCPU(), Load: strings.TrimSpace(string(load)),
		Command: fmt.Sprintf("go run ./bench -only %s -rounds %d -time %s", strings.Join(o.only, ","), o.rounds, o.round),
	}
}

// table adds a table.
func (r *report) table(name, title string, l *lab) *table {
	t := &table{Name: name, Title: title, Missing: l.missing}
	for _, s := range l.sides {
		t.Sides = append(t.Sides, s.name)
	}
	r.Tables = append(r.Tables, t)
	return t
}

// value reads one number of a round.
type value func(row map[string]sample, side string) float64

func rateOf(row map[string]sample, side string) float64    { return row[side].Rate }
func gatewayOf(row map[string]sample, side string) float64 { return row[side].Gateway }
func allOf(row map[string]sample, side string) float64     { return row[side].All }
func mockOf(row map[string]sample, side string) float64    { return row[side].Mock }
func p50Of(row map[string]sample, side string) float64     { return row[side].P50 - row[direct].P50 }
func p99Of(row map[string]sample, side string) float64     { return row[side].P99 - row[direct].P99 }
func gapOf(row map[string]sample, side string) float64     { return row[side].Gap99 - row[direct].Gap99 }

// values returns the numbers of a side, one a round.
func (t *table) values(side string, v value) []float64 {
	var list []float64
	for _, row := range t.Rounds {
		list = append(list, v(row, side))
	}
	return list
}

// ratios are those of ours to another side, round by round.
func (t *table) ratios(to string, v value) []float64 {
	a, b := t.values(ours, v), t.values(to, v)
	for i := range a {
		a[i] /= b[i]
	}
	return a
}

// median returns the median of a side in a table.
func (r *report) median(name, side string, v value) float64 {
	for _, t := range r.Tables {
		if t.Name == name {
			return medianOf(t.values(side, v))
		}
	}
	return 0
}

func medianOf(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	list = slices.Sorted(slices.Values(list))
	return (list[(len(list)-1)/2] + list[len(list)/2]) / 2
}

// spread is the median, and the least and the most.
func spread(list []float64) string {
	if len(list) == 0 {
		return "n/a"
	}
	return fmt.Sprintf("%.2f (%.2f-%.2f)", medianOf(list), slices.Min(list), slices.Max(list))
}

// target is what a ratio of ours to another side should be.
type target struct {
	table, text, side string
	v                 value
	limit             float64
	least             bool // the limit is the least, not the most
}

var targets = []target{
	{"c32", "B1: gateway CPU a request, 32 connections", caddy, gatewayOf, 0.5, false},
	{"c1", "B1: gateway CPU a request, 1 connection", caddy, gatewayOf, 0.5, false},
	{"c32", "B1: gateway CPU a request, 32 connections", nginx, gatewayOf, 2.2, false},
	{"c32", "B2: capacity, one hop", caddy, rateOf, 1.2, true},
	{"c32", "B2: capacity, two hops", caddy2, rateOf, 1.2, true},
	{"latency", "B3: added p50", caddy, p50Of, 0.8, false},
	{"latency", "B3: added p99", caddy, p99Of, 1, false},
	{"sse20ms", "B4: gateway CPU a chunk, every 20 ms", caddy, gatewayOf, 0.7, false},
	{"sse2ms", "B4: gateway CPU a chunk, every 2 ms", caddy, gatewayOf, 0.7, false},
	{"sse20ms", "B4: gateway CPU a chunk, every 20 ms", nginx, gatewayOf, 0.7, false},
	{"sse20ms", "B4: added time to the first chunk, every 20 ms", caddy, p50Of, 1, false},
}

// verdict says whether all of the rounds are within the limit, or the median alone.
func (t target) verdict(ratios []float64) string {
	within := func(x float64) bool { return x <= t.limit && !t.least || x >= t.limit && t.least }
	switch {
	case len(ratios) == 0:
		return "n/a"
	case !slices.ContainsFunc(ratios, func(x float64) bool { return !within(x) }):
		return "met"
	case within(medianOf(ratios)):
		return "by the median, not in every round"
	}
	return "not met"
}

// print prints the tables as Markdown.
func (r *report) print(w io.Writer) {
	fmt.Fprint(w, "| agentfm to another, round by round | to | target | median (min-max) | |\n| --- | --- | --- | --- | --- |\n")
	for _, g := range targets {
		for _, t := range r.Tables {
			if t.Name != g.table {
				continue
			}
			var ratios []float64
			if slices.Contains(t.Sides, g.side) {
				ratios = t.ratios(g.side, g.v)
			}
			sign := "<="
			if g.least {
				sign = ">="
			}
			fmt.Fprintf(w, "| %s | %s | %s %.2f | %s | %s |\n", g.text, g.side, sign, g.limit, spread(ratios), g.verdict(ratios))
		}
	}
	for _, t := range r.Tables {
		t.print(w)
	}
	r.printMesh(w)
}

// print prints what each side did.
func (t *table) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s (%d rounds, %d void)\n\n", t.Title, len(t.Rounds), len(t.Void))
	fmt.Fprint(w, "| side | gateway CPU-us | all but the mock | mock | a second | added p50, us | added p99, us | added gap p99, us |\n")
	fmt.Fprint(w, "| --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, side := range t.Sides {
		fmt.Fprintf(w, "| %s |", side)
		for _, v := range []value{gatewayOf, allOf, mockOf, rateOf, p50Of, p99Of, gapOf} {
			if m := medianOf(t.values(side, v)); m == 0 {
				fmt.Fprint(w, " |")
			} else {
				fmt.Fprintf(w, " %.1f |", m)
			}
		}
		fmt.Fprintln(w)
	}
	for _, side := range t.Missing {
		fmt.Fprintf(w, "| %s | n/a | n/a | n/a | n/a | n/a | n/a | n/a |\n", side)
	}
}

// save writes all of it as JSON.
func (r *report) save(path string) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
