// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// report is what a run has measured.
type report struct {
	Date    time.Time `json:"date"`
	Form    form      `json:"form"`
	Go      string    `json:"go"`
	CPUs    int       `json:"cpus"`
	Model   string    `json:"processor"`
	Load    string    `json:"load_before"`
	Command string    `json:"command"`

	Findings   []finding   `json:"findings"`
	Tables     []*table    `json:"tables,omitempty"`
	Micro      micro       `json:"go_benchmarks,omitempty"`
	Simulation []simulated `json:"simulation,omitempty"`
	Failures   []failed    `json:"failures,omitempty"`
}

// table is one measurement, round by round.
type table struct {
	Name    string              `json:"name"`
	Title   string              `json:"title"`
	Sides   []string            `json:"sides"`
	Missing map[string]string   `json:"missing,omitempty"`
	Rounds  []map[string]sample `json:"rounds"`
	Void    []map[string]sample `json:"void,omitempty"`
}

func newReport(o options) *report {
	load, _ := os.ReadFile("/proc/loadavg")
	return &report{
		Date: time.Now().UTC(), Form: o.form, Go: runtime.Version(), CPUs: runtime.NumCPU(), Model: processor(),
		Load: strings.TrimSpace(string(load)), Command: "go run ./bench " + strings.Join(os.Args[1:], " "), Micro: make(micro),
	}
}

// processor names the machine's processor.
func processor() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// load reads a report.
func load(path string) (*report, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(report)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// sort puts the findings in the order of the benchmarks.
func (r *report) sort() {
	slices.SortStableFunc(r.Findings, func(a, b finding) int { return order(a.Bench) - order(b.Bench) })
}

func order(bench string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(bench, "B"))
	return n
}

// table adds a table of sides.
func (r *report) table(name, title string, l *lab, sides []*side) *table {
	t := &table{Name: name, Title: title, Missing: l.missing}
	for _, s := range sides {
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

// ratios are those of ours to another side, round by round, less the rounds in which the
// other was no slower than the mock alone: these are noise.
func (t *table) ratios(to string, v value) (list []float64) {
	a, b := t.values(ours, v), t.values(to, v)
	for i := range a {
		if b[i] > 0 {
			list = append(list, a[i]/b[i])
		}
	}
	return list
}

// named returns a table; nil where there is none.
func (r *report) named(name string) *table {
	for _, t := range r.Tables {
		if t.Name == name {
			return t
		}
	}
	return nil
}

func medianOf(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	list = slices.Sorted(slices.Values(list))
	return (list[(len(list)-1)/2] + list[len(list)/2]) / 2
}

// print prints everything as Markdown.
func (r *report) print(w io.Writer) {
	r.printFindings(w)
	for _, t := range r.Tables {
		t.print(w)
	}
	r.printSimulation(w)
	r.printFailures(w)
	r.printMicro(w)
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
	for _, side := range slices.Sorted(maps.Keys(t.Missing)) {
		fmt.Fprintf(w, "| %s | n/a: %s | | | | | | |\n", side, t.Missing[side])
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
