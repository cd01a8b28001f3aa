// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// skipped is what was left out of a zip, by the reason: how much of it, and the first
// names.
type skipped []wire.Skipped

// add adds a file that was left out.
func (s *skipped) add(why, path string) {
	i := slices.IndexFunc(*s, func(k wire.Skipped) bool { return k.Reason == why })
	if i < 0 {
		i = len(*s)
		*s = append(*s, wire.Skipped{Reason: why})
	}
	k := &(*s)[i]
	if k.Count++; len(k.Names) < wire.MaxSkippedNames {
		k.Names = append(k.Names, shown(path))
	}
}

// shown returns a path as it may be shown anywhere: what is not printable is escaped.
func shown(path string) string {
	path = strings.Trim(strconv.Quote(path), `"`)
	if len(path) <= wire.MaxSkippedName {
		return path
	}
	cut := wire.MaxSkippedName - len("…")
	for !utf8.RuneStart(path[cut]) {
		cut--
	}
	return path[:cut] + "…"
}

// count returns how many were left out.
func (s skipped) count() int {
	n := 0
	for _, k := range s {
		n += k.Count
	}
	return n
}

// lines returns a line for each reason.
func (s skipped) lines() []string {
	var lines []string
	for _, k := range s {
		line := fmt.Sprintf("%s: %d: %s", k.Reason, k.Count, strings.Join(k.Names, ", "))
		if k.Count > len(k.Names) {
			line += ", …"
		}
		lines = append(lines, line)
	}
	return lines
}
