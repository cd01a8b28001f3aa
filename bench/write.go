// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// What stands between these in a README is written by -write.
const (
	beginMark = "<!-- begin: bench -->\n"
	endMark   = "<!-- end: bench -->\n"
)

// write writes the tables into the READMEs, and plots and numbers beside them.
func (r *report) write() error {
	dir := filepath.Join("bench", "results")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	plots := r.plots()
	for name, svg := range plots {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(svg), 0o644); err != nil {
			return err
		}
	}
	if err := r.save(filepath.Join(dir, string(r.Form)+".json")); err != nil {
		return err
	}
	if err := replace("README.md", r.brief()); err != nil {
		return err
	}
	return replace(filepath.Join("bench", "README.md"), r.whole(slices.Sorted(maps.Keys(plots))))
}

// when says when and where it was measured.
func (r *report) when() string {
	return fmt.Sprintf("Measured on %s on %d processors (%s, %s), load before: %s; form `%s`.",
		r.Date.Format("2006-01-02"), r.CPUs, r.Model, r.Go, firstField(r.Load), r.Form)
}

func firstField(s string) string {
	first, _, _ := strings.Cut(s, " ")
	return first
}

// brief is one line for each benchmark.
func (r *report) brief() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n\n| | what | beside | target | measured | |\n| --- | --- | --- | --- | --- | --- |\n", r.when())
	last := ""
	for _, f := range r.Findings {
		if f.Bench == last {
			continue
		}
		last = f.Bench
		measured := "n/a"
		if len(f.Values) > 0 {
			measured = number(medianOf(f.Values)) + f.Unit
		}
		verdict := f.verdict()
		if verdict == notHeld {
			verdict = "[not held](bench/README.md#what-does-not-hold-and-why)"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", f.Bench, f.Text, f.To, f.target(), measured, verdict)
	}
	return b.String()
}

// whole is everything.
func (r *report) whole(plots []string) string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\n\n```sh\n%s\n```\n\n", r.when(), r.Command)
	for _, name := range plots {
		fmt.Fprintf(&b, "![%s](results/%s)\n", strings.TrimSuffix(name, ".svg"), name)
	}
	fmt.Fprintln(&b)
	r.print(&b)
	return b.String()
}

// replace puts a text between the marks of a file.
func replace(path, text string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(b), beginMark)
	_, after, closed := strings.Cut(rest, endMark)
	if !ok || !closed {
		return fmt.Errorf("%s has no %s", path, strings.TrimSpace(beginMark))
	}
	return os.WriteFile(path, []byte(before+beginMark+text+endMark+after), 0o644)
}
