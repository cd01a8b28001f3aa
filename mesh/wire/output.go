// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Marker lines. A worker ends a task's output with one of the first two; the
// gateway ends the body of a native answer with one of the three.
const (
	MarkerNoFiles = "[AGENTFM: NO_FILES]"
	MarkerFiles   = "[AGENTFM: FILES_INCOMING]"
	markerPrefix  = "[AGENTFM:"
)

// MarkerError returns the line that ends a native answer which failed after
// its output began.
func MarkerError(code string) string { return "[AGENTFM: ERROR " + code + "]" }

// Protocol 1 has no statuses: a worker refuses and fails in words, and these
// are how the words begin. They are the texts of AgentFM 1.3, to the byte.
const (
	refusalPrefix   = "❌ ERROR: "
	startFailPrefix = "❌ Failed to start task: "
	exitPrefix      = "⚠️  Sandbox exited: "
)

// RefuseTasks is the answer of a worker that has no free slot.
func RefuseTasks(n, max int) string {
	return fmt.Sprintf(refusalPrefix+"Worker is at max capacity (%d/%d). Try another worker.", n, max)
}

// RefuseCPU is the answer of a worker whose CPU is over its limit.
func RefuseCPU(pct float64) string {
	return fmt.Sprintf(refusalPrefix+"Worker is under heavy load (CPU %.1f%%). Try again later.", pct)
}

// RefuseGPU is the answer of a worker whose GPU memory is over its limit.
func RefuseGPU(pct float64) string {
	return fmt.Sprintf(refusalPrefix+"Worker GPU is busy (%.1f%% VRAM used). Try another worker.", pct)
}

// RefuseVersion is the answer to a task of another protocol version.
func RefuseVersion() string {
	return refusalPrefix + "Version mismatch! Worker is running v" + Version + "."
}

// Refuse is the answer of a worker for any other reason.
func Refuse(reason string) string { return refusalPrefix + oneLine(reason) }

// RefusalText returns the reason that a line of a refusal gives.
func RefusalText(line string) string { return strings.TrimPrefix(line, refusalPrefix) }

// StartFailed is the line for an agent that could not be started.
func StartFailed(err error) string { return startFailPrefix + oneLine(err.Error()) }

// Exited is the line for an agent that ended badly; how is "exit status 3", for example.
func Exited(how string) string { return exitPrefix + oneLine(how) }

// oneLine keeps a text within one line of a status.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}

// Errors with which an [OutputReader] ends instead of io.EOF.
var (
	// ErrCapacity says that the worker refused the task because it is full or loaded.
	ErrCapacity = errors.New("worker is at capacity")
	// ErrRefused says that the worker refused the task for another reason.
	ErrRefused = errors.New("worker refused the task")
	// ErrAgentFailed says that the agent did not start, or ended with a failure.
	ErrAgentFailed = errors.New("agent failed")
	// ErrTruncated says that the output ended without its closing marker.
	ErrTruncated = errors.New("output ended early")
)

// Bounds on what is held back: how long a line of a worker can be in bytes, and
// how many there can be. A status, blank lines and a marker are the most.
const (
	maxStatusLine = 1 << 10
	maxHeldLines  = 6
)

// OutputReader reads the output of an agent from a task stream and takes the
// worker's own words out of it. A marker is the last line of the stream; a
// line that merely looks like one is output and passes unchanged. So is a
// status ("Sandbox exited …") which other output follows. Bytes are held back
// only while they may still turn out to be the worker's.
//
// The newline before a marker belongs to the marker. Unless EagerNewline is
// set, a newline is therefore given out together with what follows it.
type OutputReader struct {
	// EagerNewline gives every newline out at once, but for those before any other
	// output: an agent that fails in silence has written nothing. An output then
	// ends with the newline that belongs to the marker.
	EagerNewline bool

	r       io.Reader
	in      []byte // buffer of reads
	buf     []byte // backs out
	out     []byte // ready to be given out
	held    []byte // may still be the worker's; begins a line, or is the newline before one
	midLine bool   // the last byte given out did not end a line
	started bool   // a byte was given out
	files   bool
	err     error
}

// NewOutputReader returns a reader over the task stream r. It gives out at most
// size bytes at a time, and what it held back.
func NewOutputReader(r io.Reader, size int) *OutputReader {
	return &OutputReader{r: r, in: make([]byte, size)}
}

// Files reports, after io.EOF, whether the worker announced files.
func (o *OutputReader) Files() bool { return o.files }

// Read gives out the agent's output. It ends with io.EOF when the worker closed
// the stream after its marker and the agent did not fail; otherwise with an
// error that wraps one of this package's, or with the stream's own.
func (o *OutputReader) Read(p []byte) (int, error) {
	for len(o.out) == 0 {
		if o.err != nil {
			return 0, o.err
		}
		n, err := o.r.Read(o.in)
		o.held = append(o.held, o.in[:n]...)
		o.buf = o.buf[:0]
		o.release(o.keepFrom())
		if err != nil {
			o.finish(err)
		}
	}
	n := copy(p, o.out)
	o.out = o.out[n:]
	return n, nil
}

// release moves the first n held bytes to the output.
func (o *OutputReader) release(n int) {
	if n == 0 {
		return
	}
	o.midLine = o.held[n-1] != '\n'
	o.started = true
	o.buf = append(o.buf, o.held[:n]...)
	o.out = o.buf
	o.held = append(o.held[:0], o.held[n:]...)
}

// keepFrom returns where in held the bytes begin that may be the worker's: the
// last lines of which each is, or may become, blank, a status or a marker.
func (o *OutputReader) keepFrom() int {
	from, end := len(o.held), len(o.held)
	for range maxHeldLines {
		line := bytes.LastIndexByte(o.held[:end], '\n') + 1
		first := line == 0
		if (first && o.midLine) || !o.mayBeWorkers(o.held[line:end], first) {
			break
		}
		from = line
		if first {
			break
		}
		from, end = line-1, line-1
	}
	if o.EagerNewline && (o.started || from > 0) {
		from += len(o.held[from:]) - len(bytes.TrimLeft(o.held[from:], "\n"))
	}
	return from
}

// mayBeWorkers reports whether line, which may still grow, can be the worker's.
func (o *OutputReader) mayBeWorkers(line []byte, first bool) bool {
	if len(line) > maxStatusLine {
		return false
	}
	text := string(bytes.TrimLeft(line, " \t"))
	may := func(prefix string) bool {
		return strings.HasPrefix(text, prefix) || strings.HasPrefix(prefix, text)
	}
	return may(markerPrefix) || may(exitPrefix) || may(startFailPrefix) ||
		(first && !o.started && may(refusalPrefix))
}

// finish decides, at the end of the stream, what of the held bytes is whose.
func (o *OutputReader) finish(cause error) {
	rest, marker := cutLastLine(o.held, markerPrefix)
	body, failure := rest, ""
	for _, prefix := range []string{exitPrefix, startFailPrefix} {
		if before, line := cutLastLine(bytes.TrimRight(rest, "\n"), prefix); line != "" {
			body, failure = before, line
		}
	}
	switch {
	case !errors.Is(cause, io.EOF):
		o.err = cause
	case failure != "":
		o.err = fmt.Errorf("%w: %s", ErrAgentFailed, strings.TrimPrefix(strings.TrimPrefix(failure, exitPrefix), startFailPrefix))
	case marker != "":
		o.err, o.files = io.EOF, marker == MarkerFiles
		if n := len(rest); o.EagerNewline && (o.started || n > 0) && o.held[n] == '\n' {
			body = o.held[:n+1] // the marker's own, which was held with a line that looks like one
		}
	default:
		body, o.err = o.refusal(rest)
	}
	o.held = body
	o.release(len(body))
	o.held = nil
}

// refusal tells a refusal from an output that was cut off. Both end without a marker.
func (o *OutputReader) refusal(rest []byte) (body []byte, err error) {
	text := strings.TrimSpace(string(rest))
	reason, refused := strings.CutPrefix(text, refusalPrefix)
	switch {
	case o.started || !refused || strings.Contains(text, "\n"):
		return rest, ErrTruncated
	case strings.Contains(reason, "capacity"), strings.Contains(reason, "heavy load"), strings.Contains(reason, "busy"):
		return nil, fmt.Errorf("%w: %s", ErrCapacity, reason)
	default:
		return nil, fmt.Errorf("%w: %s", ErrRefused, reason)
	}
}

// cutLastLine takes the last line off b when it starts with prefix, together
// with the newline before it, and returns that line without its white space.
func cutLastLine(b []byte, prefix string) (before []byte, line string) {
	start := bytes.LastIndexByte(bytes.TrimSuffix(b, []byte("\n")), '\n') + 1
	text := strings.TrimSpace(string(b[start:]))
	if !strings.HasPrefix(text, prefix) {
		return b, ""
	}
	return bytes.TrimSuffix(b[:start], []byte("\n")), text
}
