// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"strings"

	"github.com/Agent-FM/caddy-agentfm/openai"
)

// Markers that end the output of a task.
const (
	MarkerFiles   = "[AGENTFM: FILES_INCOMING]"
	MarkerNoFiles = "[AGENTFM: NO_FILES]"

	markerBegin = "[AGENTFM: "
	markerError = "[AGENTFM: ERROR "

	// maxMarker is longer than any line that is one, in bytes.
	maxMarker = 256
)

// splitter takes the marker off the end of an output: a line that is one is held back, and
// is text after all when something follows it. Text comes out whole characters at a time.
type splitter struct {
	cutter openai.Cutter
	held   []byte // a line, or the begin of one, that could be the marker
	middle bool   // of a line that is none
}

// next returns the text that is certain with p.
func (s *splitter) next(p []byte) string {
	var b strings.Builder
	for len(p) > 0 {
		if s.middle {
			n := lineEnd(p)
			b.WriteString(s.cutter.Next(p[:n]))
			s.middle = p[n-1] != '\n'
			p = p[n:]
			continue
		}
		if s.complete() { // and something follows it
			s.release(&b)
			continue
		}
		n := min(lineEnd(p), maxMarker)
		s.held = append(s.held, p[:n]...)
		p = p[n:]
		if !couldBeMarker(s.held) {
			s.release(&b)
		}
	}
	return b.String()
}

// complete reports whether a whole line is held back.
func (s *splitter) complete() bool { return len(s.held) > 0 && s.held[len(s.held)-1] == '\n' }

// release makes what is held back text.
func (s *splitter) release(b *strings.Builder) {
	s.middle = len(s.held) > 0 && !s.complete()
	b.WriteString(s.cutter.Next(s.held))
	s.held = s.held[:0]
}

// end returns the rest of the text, and the marker; empty when there was none.
func (s *splitter) end() (rest, marker string) {
	line := strings.TrimRight(string(s.held), "\r\n")
	var b strings.Builder
	if !strings.HasPrefix(line, markerBegin) || !strings.HasSuffix(line, "]") {
		line = ""
		s.release(&b)
	}
	b.WriteString(s.cutter.Rest())
	return b.String(), line
}

// lineEnd is the length of the first line of p.
func lineEnd(p []byte) int {
	if i := bytes.IndexByte(p, '\n'); i >= 0 {
		return i + 1
	}
	return len(p)
}

// couldBeMarker reports whether a line may be a marker, as far as it is there.
func couldBeMarker(line []byte) bool {
	if len(line) > maxMarker {
		return false
	}
	if len(line) < len(markerBegin) {
		return strings.HasPrefix(markerBegin, string(line))
	}
	if !bytes.HasPrefix(line, []byte(markerBegin)) {
		return false
	}
	whole := bytes.TrimRight(line, "\r\n")
	return len(whole) == len(line) || bytes.HasSuffix(whole, []byte("]"))
}

// errorCode returns the code in a marker of an error.
func errorCode(marker string) (Code, bool) {
	rest, ok := strings.CutPrefix(marker, markerError)
	return Code(strings.TrimSuffix(rest, "]")), ok
}
