// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"
)

// options are what a run is to do.
type options struct {
	form    form
	only    []string
	sides   []string // empty for all
	rounds  int
	round   time.Duration // of each side in a round
	warm    time.Duration
	micro   time.Duration // of each benchmark of `go test`
	failure time.Duration // after the failure in B12
	tasks   int           // in each cell of B7
	few     int           // workers that the gateway of B11 has already
	many    int           // and that come then
	paces   []time.Duration
	slow    bool // with the peers that take milliseconds
	install bool // peers that are not there

	out     string
	from    string
	write   bool
	binary  string
	base    string
	profile string
}

// form is how much a run does.
type form string

// The forms.
const (
	smoke form = "smoke" // shows that everything works, in a minute; its numbers mean nothing
	short form = "short" // for every day, ten minutes
	long  form = "long"  // for a release, an hour
)

// forms are what each of them does.
var forms = map[form]options{
	smoke: {
		only: names("B1", "B2", "B3", "B4", "B5", "B6", "B8", "B11", "B12"), rounds: 1, round: 200 * time.Millisecond,
		micro: time.Millisecond, failure: time.Second, few: 1, many: 2, paces: []time.Duration{2 * time.Millisecond},
	},
	short: {
		only: allNames, rounds: 3, round: 500 * time.Millisecond, warm: time.Second, micro: 300 * time.Millisecond, failure: 5 * time.Second,
		tasks: 8000, few: 10, many: 100, paces: bothPaces, slow: true, install: true,
	},
	long: {
		only: allNames, rounds: 7, round: 3 * time.Second, warm: 5 * time.Second, micro: 2 * time.Second, failure: 30 * time.Second,
		tasks: 50000, few: 50, many: 1000, paces: bothPaces, slow: true, install: true,
	},
}

var (
	allNames  = names("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "B10", "B11", "B12")
	bothPaces = []time.Duration{20 * time.Millisecond, 2 * time.Millisecond}
)

func names(list ...string) []string { return list }

// parse reads the options.
func parse(args []string) (options, error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	kind := flags.String("form", string(short), "smoke, short or long")
	only := flags.String("only", "", "benchmarks to run, as B1,B2; default: those of the form")
	sides := flags.String("sides", "", "sides of B1 to B4 to measure, as agentfm,reverse_proxy; default: all")
	rounds := flags.Int("rounds", 0, "rounds of each; default: those of the form")
	round := flags.Duration("time", 0, "time of each side in a round; default: that of the form")
	warm := flags.Duration("warm", 0, "time to warm each side up; default: that of the form")
	out := flags.String("o", "", "file for what was measured, as JSON")
	from := flags.String("from", "", "file of what was measured, to be shown in place of a run")
	write := flags.Bool("write", false, "write the tables into README.md and bench/README.md, and plots and numbers into bench/results")
	binary := flags.String("binary", "", "agentfm to measure, in place of one that is built")
	base := flags.String("base", "", "another agentfm, to be measured beside it")
	profile := flags.String("profile", "", "folder for profiles of ours (CPU, allocations, block, mutex), taken while warming up")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	o, ok := forms[form(*kind)]
	if !ok {
		return options{}, fmt.Errorf("'%s' is no form: use smoke, short or long", *kind)
	}
	o.form, o.out, o.from, o.write, o.binary, o.base, o.profile = form(*kind), *out, *from, *write, *binary, *base, *profile
	if *only != "" {
		o.only = strings.Split(*only, ",")
	}
	if *sides != "" {
		o.sides = strings.Split(*sides, ",")
	}
	for _, name := range o.only {
		if !slices.Contains(allNames, name) {
			return options{}, fmt.Errorf("'%s' is no benchmark: they are B1 to B12", name)
		}
	}
	if *rounds > 0 {
		o.rounds = *rounds
	}
	if *round > 0 {
		o.round = *round
	}
	if *warm > 0 {
		o.warm = *warm
	}
	return o, nil
}

// wants reports whether one of the benchmarks is to run.
func (o *options) wants(names ...string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return slices.Contains(o.only, name) })
}
