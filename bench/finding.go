// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
)

// finding is a number with a target.
type finding struct {
	Bench  string    `json:"benchmark"`
	Text   string    `json:"text"`
	To     string    `json:"to,omitempty"` // the side of which it is a ratio
	Unit   string    `json:"unit,omitempty"`
	Limit  float64   `json:"limit"`
	Least  bool      `json:"least,omitempty"` // the limit is the least, not the most
	Values []float64 `json:"values"`          // one a round; none where it could not be measured
	Why    string    `json:"why,omitempty"`   // it could not
}

// add adds a finding.
func (r *report) add(f finding) { r.Findings = append(r.Findings, f) }

func (f *finding) within(x float64) bool { return x <= f.Limit && !f.Least || x >= f.Limit && f.Least }

// notHeld is the verdict on what is outside of its limit.
const notHeld = "not held"

// verdict says whether all of the rounds are within the limit, or the median alone.
func (f *finding) verdict() string {
	outside := func(x float64) bool { return !f.within(x) }
	switch {
	case len(f.Values) == 0:
		return "n/a: " + f.Why
	case !slices.ContainsFunc(f.Values, outside):
		return "**held**"
	case f.within(medianOf(f.Values)):
		return "by the median, not in every round"
	}
	return notHeld
}

// target is the limit in words.
func (f *finding) target() string {
	sign := "≤"
	if f.Least {
		sign = "≥"
	}
	return fmt.Sprintf("%s %s%s", sign, number(f.Limit), f.Unit)
}

// number has as many digits as say something.
func number(x float64) string {
	switch {
	case x == float64(int64(x)):
		return fmt.Sprintf("%d", int64(x))
	case x >= 100 || x <= -100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10 || x <= -10:
		return fmt.Sprintf("%.1f", x)
	case x > -0.1 && x < 0.1:
		return fmt.Sprintf("%.3f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

// spread is the median, and the least and the most.
func (f *finding) spread() string {
	switch len(f.Values) {
	case 0:
		return "n/a"
	case 1:
		return number(f.Values[0]) + f.Unit
	}
	return fmt.Sprintf("%s%s (%s to %s)", number(medianOf(f.Values)), f.Unit, number(slices.Min(f.Values)), number(slices.Max(f.Values)))
}

// printFindings prints them as a table in Markdown.
func (r *report) printFindings(w io.Writer) {
	fmt.Fprint(w, "| | what | beside | target | measured: median (least to most) | |\n| --- | --- | --- | --- | --- | --- |\n")
	for _, f := range r.Findings {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", f.Bench, f.Text, f.To, f.target(), f.spread(), f.verdict())
	}
}

// ratioTarget is what a ratio of ours to another side should be.
type ratioTarget struct {
	table string
	finding
	v value
}

var ratioTargets = []ratioTarget{
	{"c32", finding{Bench: "B1", Text: "gateway CPU a request, 32 connections", To: caddy, Limit: 0.45}, gatewayOf},
	{"c32", finding{Bench: "B1", Text: "gateway CPU a request, 32 connections", To: nginx, Limit: 2.2}, gatewayOf},
	{"c32", finding{Bench: "B1", Text: "gateway CPU a request, 32 connections", To: portkey, Limit: 1. / 40}, gatewayOf},
	{"c1", finding{Bench: "B1", Text: "gateway CPU a request, 1 connection", To: caddy, Limit: 0.45}, gatewayOf},
	{"c32", finding{Bench: "B2", Text: "requests a second, one hop", To: caddy, Limit: 1.3, Least: true}, rateOf},
	{"c32", finding{Bench: "B2", Text: "requests a second, two hops", To: caddy2, Limit: 3, Least: true}, rateOf},
	{"c32", finding{Bench: "B2", Text: "requests a second", To: portkey, Limit: 25, Least: true}, rateOf},
	{"latency", finding{Bench: "B3", Text: "added p50", To: caddy, Limit: 0.9}, p50Of},
	{"latency", finding{Bench: "B3", Text: "added p99", To: caddy, Limit: 1}, p99Of},
	{"latency", finding{Bench: "B3", Text: "added p50", To: portkey, Limit: 1. / 15}, p50Of},
	{"latency", finding{Bench: "B3", Text: "added p50", To: litellm, Limit: 1. / 30}, p50Of},
	{"sse20ms", finding{Bench: "B4", Text: "gateway CPU a chunk, every 20 ms", To: caddy, Limit: 0.5}, gatewayOf},
	{"sse20ms", finding{Bench: "B4", Text: "gateway CPU a chunk, every 20 ms", To: nginx, Limit: 0.7}, gatewayOf},
	{"sse20ms", finding{Bench: "B4", Text: "added time to the first chunk, every 20 ms", To: caddy, Limit: 1}, p50Of},
	{"sse2ms", finding{Bench: "B4", Text: "gateway CPU a chunk, every 2 ms", To: caddy, Limit: 0.5}, gatewayOf},
}

// addRatios adds the findings of the tables.
func (r *report) addRatios(missing map[string]string) {
	for _, g := range ratioTargets {
		for _, t := range r.Tables {
			if t.Name != g.table {
				continue
			}
			f := g.finding
			switch {
			case slices.Contains(t.Sides, f.To):
				if f.Values = t.ratios(f.To, g.v); len(f.Values) == 0 {
					f.Why = "it was no slower than the mock alone"
				}
			case missing[f.To] != "":
				f.Why = missing[f.To]
			default:
				f.Why = "not measured in this form"
			}
			r.add(f)
		}
	}
}
