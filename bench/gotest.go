// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// micro is what a benchmark of `go test` has reported: by name and unit, one a round.
type micro map[string]map[string][]float64

// suite is benchmarks of a package.
type suite struct {
	bench, pkg, run string
	times           string // of the option -benchtime; empty for that of the form, as in smoke
	env             []string
	find            func(r *report)
}

var suites = []suite{
	{bench: "B5", pkg: "./mesh", run: "^BenchmarkDispatch$", find: findDispatch},
	{bench: "B6", pkg: "./router", run: "^BenchmarkDecide$|^BenchmarkPickScan$|^BenchmarkPickUpdated$|^BenchmarkPick$/^100000$", find: findPick},
	{bench: "B8", pkg: "./mesh", run: "^BenchmarkTelemetry$", times: "200x", find: findTelemetry},
	{bench: "B10", pkg: "./worker", run: "^BenchmarkZip$/^(text|small)$", times: "1x", find: findZip},
}

// runSuite runs benchmarks, and says what they mean.
func (r *report) runSuite(ctx context.Context, o options, s suite) error {
	times := o.micro.String()
	if s.times != "" && o.form != smoke {
		times = s.times
	}
	args := []string{"test", "-run", "^$", "-bench", s.run, "-benchtime", times, "-count", strconv.Itoa(o.rounds), "-timeout", "30m"}
	if o.profile != "" {
		for _, kind := range []string{"cpu", "mem", "block", "mutex"} {
			args = append(args, "-"+kind+"profile", filepath.Join(o.profile, s.bench+"."+kind))
		}
		args = append(args, "-o", filepath.Join(o.profile, s.bench+".test")) // or it would lie about
	}
	args = append(args, s.pkg)
	out, err := goTest(ctx, s.env, args...)
	if err != nil {
		return fmt.Errorf("%s: %w", s.bench, err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		name, units := benchLine(lines.Text())
		for unit, x := range units {
			if r.Micro[name] == nil {
				r.Micro[name] = make(map[string][]float64)
			}
			r.Micro[name][unit] = append(r.Micro[name][unit], x)
		}
	}
	s.find(r)
	return nil
}

// goTest runs the command go.
func goTest(ctx context.Context, env []string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return out, fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return out, nil
}

// benchLine reads a line such as "BenchmarkPick/100/model-2 100 12345 ns/op 12.3 B/op".
func benchLine(line string) (name string, units map[string]float64) {
	fields := strings.Fields(line)
	if len(fields) < 4 || len(fields)%2 != 0 || !strings.HasPrefix(fields[0], "Benchmark") {
		return "", nil
	}
	units = make(map[string]float64)
	for i := 2; i < len(fields); i += 2 {
		if x, err := strconv.ParseFloat(fields[i], 64); err == nil {
			units[fields[i+1]] = x
		}
	}
	return procs.ReplaceAllString(strings.TrimPrefix(fields[0], "Benchmark"), ""), units
}

// procs is the number of processors at the end of a benchmark's name.
var procs = regexp.MustCompile(`-\d+$`)

// ratio returns the numbers of one benchmark as shares of those of another.
func (m micro) ratio(a, b, unit string) (list []float64) {
	x, y := m[a][unit], m[b][unit]
	for i := range min(len(x), len(y)) {
		if y[i] > 0 {
			list = append(list, x[i]/y[i])
		}
	}
	return list
}

func findDispatch(r *report) {
	const cpu = "cpu-us/op"
	r.add(finding{Bench: "B5", Text: "CPU of a request to a worker, both ends", To: "raw TCP", Limit: 1.6, Values: r.Micro.ratio("Dispatch/pooled", "Dispatch/raw_tcp", cpu)})
	r.add(finding{Bench: "B5", Text: "a stream for each request, to ours", Limit: 3.5, Least: true, Values: r.Micro.ratio("Dispatch/new_stream", "Dispatch/pooled", cpu)})
	r.add(finding{Bench: "B5", Text: "`p2p/http` of libp2p, to ours", Limit: 6, Least: true, Values: r.Micro.ratio("Dispatch/p2p_http", "Dispatch/pooled", cpu)})
}

func findPick(r *report) {
	const decide, few, pick = "Decide/100000", "Decide/1000", "Pick/100000/model/least_loaded"
	r.add(finding{Bench: "B6", Text: "a routing decision among 100,000 workers", Unit: " ns", Limit: 200, Values: r.Micro[decide]["ns/op"]})
	r.add(finding{Bench: "B6", Text: "allocations of it", Limit: 0, Values: r.Micro[decide]["allocs/op"]})
	r.add(finding{Bench: "B6", Text: "time of it", Limit: 1.5, To: "1,000 workers", Values: r.Micro.ratio(decide, few, "ns/op")})
	r.add(finding{Bench: "B6", Text: "a look at every worker, to a decision with the slot taken and given back", Limit: 500, Least: true, Values: r.Micro.ratio("PickScan", pick, "ns/op")})
}

func findTelemetry(r *report) {
	const each, all = "cpu-us/delivery", "cpu-us/op"
	r.add(finding{Bench: "B8", Text: "CPU of an announcement, worker and gateway together", To: "a delivery of stock GossipSub", Limit: 0.2,
		Values: r.Micro.ratio("Telemetry/ours", "Telemetry/stock", each)})
	r.add(finding{Bench: "B8", Text: "CPU of an announcement, 50 workers", To: "50 nodes of stock GossipSub", Limit: 0.05,
		Values: r.Micro.ratio("Telemetry/ours", "Telemetry/stock", all)})
}

func findZip(r *report) {
	const cpu = "cpu-us/op"
	r.add(finding{Bench: "B10", Text: "CPU of `archive/zip`, to that of ours with the hashes: 256 MiB of text", Limit: 3, Least: true,
		Values: r.Micro.ratio("Zip/text/standard", "Zip/text/both-passes", cpu)})
	r.add(finding{Bench: "B10", Text: "the same: 16 MiB of text", Limit: 3, Least: true, Values: r.Micro.ratio("Zip/small/standard", "Zip/small/both-passes", cpu)})
}

// inFlight is the rest of B5: 10,000 requests to one worker.
func (r *report) inFlight(ctx context.Context) {
	_, err := goTest(ctx, []string{"AGENTFM_TEST_NIGHTLY=1"}, "test", "-count", "1", "-run", "^TestManyInFlight$", "./mesh")
	f := finding{Bench: "B5", Text: "requests in flight to one worker, all answered, no stream reset", Limit: 10000, Least: true, Values: []float64{10000}}
	if err != nil {
		f.Values, f.Why = nil, "the test failed"
		fmt.Fprintln(os.Stderr, err)
	}
	r.add(f)
}

// grown is what TestL9LargeFiles logs of a process.
var grown = regexp.MustCompile(`(gateway|worker): (\d+) MiB resident more at most`)

// largeFiles is the rest of B10: what a large file takes of memory on its way.
func (r *report) largeFiles(ctx context.Context, o options) {
	var env []string
	size := "64 MiB"
	if o.form == long {
		env, size = []string{"AGENTFM_TEST_NIGHTLY=1"}, "2 GiB"
	}
	out, err := goTest(ctx, env, "test", "-count", "1", "-v", "-run", "^TestL9LargeFiles$", "./e2e")
	for _, who := range []string{"gateway", "worker"} {
		f := finding{Bench: "B10", Text: "memory that a file of " + size + " takes of the " + who, Unit: " MiB", Limit: 32}
		for _, m := range grown.FindAllStringSubmatch(string(out), -1) {
			if x, bad := strconv.ParseFloat(m[2], 64); m[1] == who && bad == nil {
				f.Values = []float64{x}
			}
		}
		if err != nil || len(f.Values) == 0 {
			f.Values, f.Why = nil, "the test failed"
			fmt.Fprintln(os.Stderr, err)
		}
		r.add(f)
	}
}

// taskStart is B9, on a Docker engine.
func (r *report) taskStart(ctx context.Context, o options) error {
	limits := []finding{
		{Bench: "B9", Text: "`docker run` to a task with `warm` and `prompt file`, p50 to the first byte", Limit: 200, Least: true},
		{Bench: "B9", Text: "`docker run` to a task with `warm`, p50 to the first byte", Limit: 200, Least: true},
	}
	host, stop, err := engine(ctx)
	if err != nil {
		for _, f := range limits {
			f.Why = err.Error()
			r.add(f)
		}
		return nil
	}
	defer stop()
	times := "10x"
	if o.form == long {
		times = "100x"
	}
	return r.runSuite(ctx, options{rounds: 1}, suite{
		bench: "B9", pkg: "./worker/docker", run: "^BenchmarkTaskStart$", times: times, env: []string{"AGENTFM_TEST_DOCKER_HOST=" + host},
		find: func(r *report) {
			for i, unit := range []string{"docker-run/warm-file", "docker-run/warm-stdin"} {
				limits[i].Values = r.Micro["TaskStart"][unit]
				if len(limits[i].Values) == 0 {
					limits[i].Why = "the benchmark was skipped"
				}
				r.add(limits[i])
			}
		},
	})
}

// printMicro prints what the benchmarks of `go test` reported.
func (r *report) printMicro(w io.Writer) {
	if len(r.Micro) == 0 {
		return
	}
	fmt.Fprint(w, "\nBenchmarks of `go test`, medians\n\n| benchmark | |\n| --- | --- |\n")
	for _, name := range slices.Sorted(maps.Keys(r.Micro)) {
		var parts []string
		for _, unit := range slices.Sorted(maps.Keys(r.Micro[name])) {
			parts = append(parts, number(medianOf(r.Micro[name][unit]))+" "+unit)
		}
		fmt.Fprintf(w, "| %s | %s |\n", name, strings.Join(parts, ", "))
	}
}
