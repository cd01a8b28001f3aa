// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"html"
	"slices"
	"strings"
)

// What plots look like.
const (
	plotWidth  = 720
	labelWidth = 150
	barHeight  = 16
	lineHeight = 22
	titleSpace = 34
	plotStyle  = `<style>text{font:12px sans-serif;fill:#24292f}.t{font-weight:bold}.g{stroke:#d0d7de}.m{stroke:#cf222e;stroke-dasharray:4 3}</style>`
)

// The colours of ours and of others, and those of policies.
const ourColour, otherColour = "#0969da", "#afb8c1"

var policyColours = map[string]string{"least_loaded": "#0969da", "power_of_two": "#bf8700", "round_robin": "#8250df"}

// bar is a bar of a plot.
type bar struct {
	name  string
	value float64
	ours  bool
}

// panel is bars below a title.
type panel struct {
	title, unit string
	bars        []bar
}

// barPlot draws panels below each other.
func barPlot(panels []panel) string {
	var b strings.Builder
	y := 0
	for _, p := range panels {
		fmt.Fprintf(&b, `<text class="t" x="8" y="%d">%s</text>`+"\n", y+20, html.EscapeString(p.title))
		y += titleSpace
		most := 0.0
		for _, x := range p.bars {
			most = max(most, x.value)
		}
		for _, x := range p.bars {
			colour, width := otherColour, 0.0
			if x.ours {
				colour = ourColour
			}
			if most > 0 {
				width = max(0, x.value/most) * (plotWidth - labelWidth - 110)
			}
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text><rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/><text x="%.1f" y="%d">%s</text>`+"\n",
				labelWidth-8, y+barHeight-4, html.EscapeString(x.name), labelWidth, y, width, barHeight, colour, labelWidth+width+6, y+barHeight-4,
				html.EscapeString(number(x.value)+p.unit))
			y += lineHeight
		}
		y += 8
	}
	return document(y, b.String())
}

func document(height int, body string) string {
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d">%s<rect width="100%%" height="100%%" fill="#fff"/>`+"\n%s</svg>\n",
		plotWidth, height, plotWidth, height, plotStyle, body)
}

// bars returns the medians of a table, of the sides that are not slow.
func (t *table) bars(v value) (list []bar) {
	for _, s := range t.Sides {
		if x := medianOf(t.values(s, v)); x > 0 && s != portkey && s != litellm {
			list = append(list, bar{s, x, s == ours})
		}
	}
	return list
}

// panels returns those of tables that there are.
func (r *report) panels(v value, unit, what string, names ...string) (list []panel) {
	for _, name := range names {
		if t := r.named(name); t != nil {
			list = append(list, panel{what + t.Title, unit, t.bars(v)})
		}
	}
	return list
}

// plots returns the plots by their names.
func (r *report) plots() map[string]string {
	plots := make(map[string]string)
	if p := r.panels(gatewayOf, " µs", "CPU of the gateway, a request or a chunk. ", "c32", "c1", "sse20ms", "sse2ms"); len(p) > 0 {
		plots["cpu.svg"] = barPlot(p)
	}
	if p := append(r.panels(p50Of, " µs", "p50 more than direct. ", "latency"), r.panels(p99Of, " µs", "p99 more than direct. ", "latency")...); len(p) > 0 {
		plots["latency.svg"] = barPlot(p)
	}
	if len(r.Simulation) > 0 {
		plots["simulation.svg"] = r.simulationPlot()
	}
	if len(r.Failures) > 0 {
		var panels []panel
		for _, f := range r.Failures {
			title := "B12: last request that failed, was slow or tried again; one of four servers: " + f.How
			i := slices.IndexFunc(panels, func(p panel) bool { return p.title == title })
			if i < 0 {
				i = len(panels)
				panels = append(panels, panel{title: title, unit: " ms after"})
			}
			panels[i].bars = append(panels[i].bars, bar{f.Side, f.Out, f.Side == ours})
		}
		plots["failures.svg"] = barPlot(panels)
	}
	return plots
}

// simulationPlot draws the p99 of every cell and policy.
func (r *report) simulationPlot() string {
	const height, top, bottom = 380, 60, 330
	most := 1.6
	for _, s := range r.Simulation {
		most = max(most, s.Ratio)
	}
	at := func(ratio float64) float64 { return bottom - (ratio-0.8)/(most-0.8)*(bottom-top) }
	var b strings.Builder
	fmt.Fprintf(&b, `<text class="t" x="8" y="20">B7: p99 of requests, as a multiple of that of an omniscient gateway</text>`+"\n")
	for i, name := range []string{"least_loaded", "power_of_two", "round_robin"} {
		fmt.Fprintf(&b, `<circle cx="%d" cy="38" r="4" fill="%s"/><text x="%d" y="42">%s</text>`+"\n", 60+i*130, policyColours[name], 70+i*130, name)
	}
	for ratio := 1.0; ratio <= most; ratio += 0.2 {
		fmt.Fprintf(&b, `<line class="g" x1="40" x2="%d" y1="%.1f" y2="%.1f"/><text x="8" y="%.1f">%.1f</text>`+"\n", plotWidth-8, at(ratio), at(ratio), at(ratio)+4, ratio)
	}
	fmt.Fprintf(&b, `<line class="m" x1="40" x2="%d" y1="%.1f" y2="%.1f"/>`+"\n", plotWidth-8, at(1.15), at(1.15))
	step := float64(plotWidth-60) / float64(len(r.Simulation)/3+1)
	label := ""
	for i, s := range r.Simulation {
		x := 50 + step*float64(i/3)
		group := fmt.Sprintf("gateways: %d", s.Gateways)
		if s.Slots > 1 || s.OnTick || s.NoQueue {
			group = "others"
		}
		if group != label {
			label = group
			fmt.Fprintf(&b, `<line class="g" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/><text x="%.1f" y="%d">%s</text>`+"\n", x-step/2, x-step/2, top, bottom+20, x, bottom+18, label)
		}
		fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"><title>%s</title></circle>`+"\n", x+float64(i%3)*2-2, at(s.Ratio), policyColours[s.Policy],
			html.EscapeString(fmt.Sprintf("%s: %d gateways, tasks of %s, load %.0f %%, %s: %.2f", s.Policy, s.Gateways, s.Service, 100*s.Load, s.workers(), s.Ratio)))
	}
	return document(height, b.String())
}
