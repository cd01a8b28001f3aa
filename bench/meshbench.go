// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// meshResult is a line of the benchmarks in package mesh.
type meshResult struct {
	Name string    `json:"name"`
	CPU  []float64 `json:"cpu_us"` // of both ends, for each operation, one a round
}

// flightResult is whether 10,000 requests to one worker were answered.
type flightResult struct {
	OK   bool   `json:"ok"`
	Text string `json:"text,omitempty"`
}

// runMesh is B5: the benchmarks of package mesh, which have all ends in one process.
func runMesh(ctx context.Context, rep *report) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkDispatch", "-benchtime", "2s", "-count", strconv.Itoa(rep.wanted), "./mesh")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		if name, us, ok := benchLine(lines.Text()); ok {
			rep.mesh(name, us)
		}
	}
	cmd = exec.CommandContext(ctx, "go", "test", "-count", "1", "-run", "^TestManyInFlight$", "./mesh")
	cmd.Env = append(os.Environ(), "AGENTFM_TEST_NIGHTLY=1")
	out, err = cmd.CombinedOutput()
	rep.Flight = &flightResult{OK: err == nil}
	if err != nil {
		rep.Flight.Text = string(out)
	}
	return ctx.Err()
}

// benchLine reads a line such as "BenchmarkDispatch/pooled-2 100 12345 ns/op 12.3 cpu-us/op".
func benchLine(line string) (name string, us float64, ok bool) {
	fields := strings.Fields(line)
	for i, unit := range fields {
		if unit == "cpu-us/op" && strings.HasPrefix(fields[0], "BenchmarkDispatch/") {
			name, _, _ = strings.Cut(strings.TrimPrefix(fields[0], "BenchmarkDispatch/"), "-")
			us, err := strconv.ParseFloat(fields[i-1], 64)
			return name, us, err == nil
		}
	}
	return "", 0, false
}

// mesh adds a number.
func (r *report) mesh(name string, us float64) {
	for i := range r.Mesh {
		if r.Mesh[i].Name == name {
			r.Mesh[i].CPU = append(r.Mesh[i].CPU, us)
			return
		}
	}
	r.Mesh = append(r.Mesh, meshResult{name, []float64{us}})
}

// printMesh prints B5.
func (r *report) printMesh(w io.Writer) {
	if len(r.Mesh) == 0 {
		return
	}
	fmt.Fprint(w, "\nB5: a request to a worker, both ends in one process\n\n| way | CPU-us | to pooled |\n| --- | --- | --- |\n")
	for _, m := range r.Mesh {
		var ratios []float64
		for i, us := range m.CPU {
			if i < len(r.Mesh[0].CPU) {
				ratios = append(ratios, us/r.Mesh[0].CPU[i])
			}
		}
		fmt.Fprintf(w, "| %s | %.1f | %s |\n", m.Name, medianOf(m.CPU), spread(ratios))
	}
	answer := "no"
	if r.Flight.OK {
		answer = "yes"
	}
	fmt.Fprintf(w, "\n10,000 requests in flight to one worker, all answered, no stream reset: %s\n", answer)
}
