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
	"syscall"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == roleFlag { // a process of the suite
		if err := serveRole(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	o, err := parse(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// run runs the suite, or shows an earlier run. What could be measured is shown though
// something failed.
func run(ctx context.Context, o options) error {
	var rep *report
	var err error
	if o.from != "" {
		if rep, err = load(o.from); err != nil {
			return err
		}
	} else {
		if o.profile != "" {
			if err := os.MkdirAll(o.profile, 0o755); err != nil {
				return err
			}
		}
		rep = newReport(o)
		err = errors.Join(runSides(ctx, o, rep), runRest(ctx, o, rep))
		rep.sort()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	rep.print(os.Stdout)
	if o.out != "" {
		err = errors.Join(err, rep.save(o.out))
	}
	if o.write {
		err = errors.Join(err, rep.write())
	}
	return err
}

// steps runs one thing after the other, and goes on when one fails.
type steps struct {
	ctx  context.Context
	errs []error
}

func (s *steps) do(wanted bool, name string, f func() error) {
	if !wanted || s.ctx.Err() != nil {
		return
	}
	fmt.Fprintln(os.Stderr, "bench:", name)
	s.errs = append(s.errs, f())
}

// runSides runs what needs processes of the sides.
func runSides(ctx context.Context, o options, rep *report) error {
	if !o.wants("B1", "B2", "B3", "B4", "B11", "B12") {
		return nil
	}
	l, err := newLab(ctx, o)
	if err != nil {
		return err
	}
	defer l.close()
	s := steps{ctx: ctx}
	s.do(o.wants("B1", "B2", "B3"), "B1, B2: 32 connections", func() error { return l.calls(ctx, rep, 32) })
	s.do(o.wants("B1"), "B1: 1 connection", func() error { return l.calls(ctx, rep, 1) })
	s.do(o.wants("B3"), "B3: latency", func() error { return l.latency(ctx, rep) })
	for _, pace := range o.paces {
		s.do(o.wants("B4"), "B4: streams, a chunk every "+pace.String(), func() error { return l.streams(ctx, rep, pace) })
	}
	rep.addRatios(l.missing)
	l.stopSides() // they have timers, which take time of the rest
	s.do(o.wants("B11"), "B11: memory", func() error { return l.memory(ctx, rep) })
	s.do(o.wants("B12"), "B12: failures", func() error { return l.failures(ctx, rep) })
	return errors.Join(append(s.errs, ctx.Err())...)
}

// runRest runs the benchmarks that are tests of packages.
func runRest(ctx context.Context, o options, rep *report) error {
	s := steps{ctx: ctx}
	for _, suite := range suites {
		s.do(o.wants(suite.bench), suite.bench+": "+suite.run, func() error { return rep.runSuite(ctx, o, suite) })
	}
	big := o.form != smoke
	s.do(o.wants("B5") && big, "B5: requests in flight", func() error { rep.inFlight(ctx); return nil })
	s.do(o.wants("B7"), "B7: simulation", func() error { return rep.simulate(ctx, o) })
	s.do(o.wants("B9"), "B9: the start of tasks", func() error { return rep.taskStart(ctx, o) })
	s.do(o.wants("B10"), "B10: large files", func() error { rep.largeFiles(ctx, o); return nil })
	return errors.Join(append(s.errs, ctx.Err())...)
}
