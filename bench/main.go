// SPDX-License-Identifier: Apache-2.0

// Command bench measures a gateway and a worker of this module against the peers
// that a site might use in their place, side by side on one machine. It starts all
// of them itself, on loopback. See README.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are what a run is to do.
type options struct {
	only    []string
	rounds  int
	round   time.Duration
	warm    time.Duration
	out     string
	binary  string
	base    string
	profile string
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == roleFlag { // a process of the suite
		if err := serveRole(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	var o options
	only := flag.String("only", "B1,B2,B3,B4,B5", "benchmarks to run")
	flag.IntVar(&o.rounds, "rounds", 7, "rounds of each")
	flag.DurationVar(&o.round, "time", 2*time.Second, "time of each side in a round")
	flag.DurationVar(&o.warm, "warm", 5*time.Second, "time to warm each side up")
	flag.StringVar(&o.out, "o", "", "file for what was measured, as JSON")
	flag.StringVar(&o.binary, "binary", "", "agentfm to measure, in place of one that is built")
	flag.StringVar(&o.base, "base", "", "another agentfm, to be measured beside it")
	flag.StringVar(&o.profile, "profile", "", "folder for CPU profiles of ours, taken while warming up")
	flag.Parse()
	o.only = strings.Split(*only, ",")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// wants reports whether one of the benchmarks is to run.
func (o *options) wants(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return slices.Contains(o.only, name) })
}

// run runs the suite.
func run(ctx context.Context, o options) error {
	rep := newReport(o)
	if o.wants("B1", "B2", "B3", "B4") {
		lab, err := newLab(ctx, o)
		if err != nil {
			return err
		}
		defer lab.close()
		if err := runSides(ctx, lab, rep); err != nil {
			return err
		}
	}
	if o.wants("B5") {
		if err := runMesh(ctx, rep); err != nil {
			return err
		}
	}
	rep.print(os.Stdout)
	if o.out != "" {
		return rep.save(o.out)
	}
	return nil
}

// runSides runs what needs the sides.
func runSides(ctx context.Context, l *lab, rep *report) error {
	var errs []error
	step := func(wanted bool, f func() error) {
		if wanted && ctx.Err() == nil {
			errs = append(errs, f())
		}
	}
	step(l.o.wants("B1", "B2", "B3"), func() error { return l.calls(ctx, rep, 32) })
	step(l.o.wants("B1"), func() error { return l.calls(ctx, rep, 1) })
	step(l.o.wants("B3"), func() error { return l.latency(ctx, rep) })
	step(l.o.wants("B4"), func() error { return l.streams(ctx, rep, 20*time.Millisecond) })
	step(l.o.wants("B4"), func() error { return l.streams(ctx, rep, 2*time.Millisecond) })
	return errors.Join(append(errs, ctx.Err())...)
}
