// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A worker answers a task of mesh protocol 2 with server-sent events: any number
// of "output", at most one "artifact", and "exit" as the last. A stream without
// "exit" was cut off.

// MaxEventOutput is how much of an agent's output one event holds, in bytes.
// Escaped as JSON it grows sixfold at most.
const MaxEventOutput = 4 << 10

// maxEvent bounds a line of the stream.
const maxEvent = 32 << 10

// Names of the events.
const (
	eventOutput   = "output"
	eventArtifact = "artifact"
	eventExit     = "exit"
)

// Output is a piece of an agent's output. What is not UTF-8 goes as bytes.
type outputEvent struct {
	Text  string `json:"text,omitempty"`
	Bytes []byte `json:"bytes,omitempty"` // base64
}

// Artifact says what a task has left, to be fetched from its path.
type Artifact struct {
	// Size is that of the zip in bytes.
	Size int64 `json:"size"`
	// SHA256 is the hash of the zip, as 64 hex digits.
	SHA256 string `json:"sha256"`
	// Files is how many files are in it, where the worker says.
	Files int `json:"files,omitempty"`
	// Skipped counts the files that were left out.
	Skipped int `json:"skipped,omitempty"`
	// SkippedFiles says which these are, and why: at most [MaxSkipped] reasons.
	SkippedFiles []Skipped `json:"skipped_files,omitempty"`
}

// Skipped are the files that were left out of a zip for one reason.
type Skipped struct {
	Reason string `json:"reason"`
	Count  int    `json:"count"`
	// Names are the first of them, at most [MaxSkippedNames], each of at most
	// [MaxSkippedName] bytes. What is not printable is escaped.
	Names []string `json:"names,omitempty"`
}

// Limits of what is told of files that were left out, such that the event is one that
// can be read.
const (
	MaxSkipped      = 16
	MaxSkippedNames = 5
	MaxSkippedName  = 120
)

// clean puts what another side tells within its bounds.
func (a *Artifact) clean() {
	a.Skipped, a.Files = max(a.Skipped, 0), max(a.Files, 0)
	a.SkippedFiles = a.SkippedFiles[:min(len(a.SkippedFiles), MaxSkipped)]
	for i := range a.SkippedFiles {
		s := &a.SkippedFiles[i]
		s.Reason, s.Count = short(s.Reason), max(s.Count, 0)
		s.Names = s.Names[:min(len(s.Names), MaxSkippedNames)]
		for j := range s.Names {
			s.Names[j] = short(s.Names[j])
		}
	}
}

// short returns the first bytes of a text, without what cannot be printed.
func short(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s[:min(len(s), MaxSkippedName)])
}

// Ends of a task, as [Exit.Status].
const (
	ExitOK      = "ok"
	ExitFailed  = "failed"  // the agent did not start, or ended with a failure
	ExitStopped = "stopped" // by the worker
)

// Cause says why a task ended as it did, as one word for machines. A worker that does
// not tell leaves it empty; receivers take what they do not know for [CauseRuntimeError].
type Cause string

// Causes. All but the first are failures.
const (
	CauseOK               Cause = "ok"                // with exit status 0
	CauseExitCode         Cause = "exit_code"         // the agent's exit status is another
	CauseEmpty            Cause = "empty"             // with exit status 0, and yet it said nothing and left no files
	CauseSignal           Cause = "signal"            // a signal ended the agent
	CauseOOMKilled        Cause = "oom_killed"        // it needed more memory than it may have
	CauseDeadline         Cause = "deadline"          // the time of the task was over
	CauseOutputLimit      Cause = "output_limit"      // it said, or wrote into files, more than it may
	CauseCancelled        Cause = "cancelled"         // somebody wanted it stopped: the gateway, or the worker when it ends
	CauseImageUnavailable Cause = "image_unavailable" // there is no image to start it from
	CauseDigestMismatch   Cause = "digest_mismatch"   // the image is another than the one that is meant
	CauseRuntimeError     Cause = "runtime_error"     // the agent could not be started, or was lost
)

// causes are all of them.
var causes = []Cause{
	CauseOK, CauseExitCode, CauseEmpty, CauseSignal, CauseOOMKilled, CauseDeadline, CauseOutputLimit, CauseCancelled,
	CauseImageUnavailable, CauseDigestMismatch, CauseRuntimeError,
}

// AgentError is an [ErrAgentFailed] of a worker that tells why.
type AgentError struct {
	// Cause is empty where the worker does not tell.
	Cause Cause
	// Reason says more, for people.
	Reason string
}

// Error implements error.
func (e *AgentError) Error() string { return ErrAgentFailed.Error() + ": " + e.Reason }

// Unwrap returns ErrAgentFailed.
func (e *AgentError) Unwrap() error { return ErrAgentFailed }

// Exit says how a task ended.
type Exit struct {
	Status string `json:"status"`
	// Cause tells more than Status, where the worker says.
	Cause Cause `json:"cause,omitempty"`
	// Code is the agent's exit status, where it has one.
	Code int `json:"code,omitempty"`
	// Reason says more, for people.
	Reason string `json:"reason,omitempty"`
	// Usage is what the agent's model has counted, where the worker knows.
	Usage *Usage `json:"usage,omitempty"`
}

// Usage counts the tokens of a task.
type Usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
}

// Valid reports whether something was counted.
func (u Usage) Valid() bool {
	const most = 1 << 40
	return u.Prompt >= 0 && u.Completion >= 0 && u.Prompt < most && u.Completion < most && u.Prompt+u.Completion > 0
}

// EventWriter writes the events of a task.
type EventWriter struct {
	w   io.Writer
	buf bytes.Buffer
}

// NewEventWriter returns a writer to w, which gets one event with each write.
func NewEventWriter(w io.Writer) *EventWriter { return &EventWriter{w: w} }

// Write writes a piece of output.
func (w *EventWriter) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		piece := p[n:min(len(p), n+MaxEventOutput)]
		if cut := len(piece) - partialRune(piece); n+len(piece) < len(p) && cut > 0 {
			piece = piece[:cut] // the rest of the character is in p, too
		}
		e := outputEvent{Text: string(piece)}
		if !utf8.Valid(piece) {
			e = outputEvent{Bytes: piece}
		}
		if err := w.event(eventOutput, e); err != nil {
			return n, err
		}
		n += len(piece)
	}
	return len(p), nil
}

// partialRune returns the size of the beginning of a character at the end of p.
func partialRune(p []byte) int {
	for i := 1; i <= min(utf8.UTFMax-1, len(p)); i++ {
		if c := p[len(p)-i]; utf8.RuneStart(c) {
			if !utf8.FullRune(p[len(p)-i:]) {
				return i
			}
			return 0
		}
	}
	return 0
}

// Artifact says that the task has left files.
func (w *EventWriter) Artifact(a Artifact) error { return w.event(eventArtifact, a) }

// Exit says how the task ended.
func (w *EventWriter) Exit(e Exit) error {
	e.Reason = oneLine(e.Reason)
	return w.event(eventExit, e)
}

func (w *EventWriter) event(name string, v any) error {
	w.buf.Reset()
	w.buf.WriteString("event: " + name + "\ndata: ")
	enc := json.NewEncoder(&w.buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil { // ends with a newline
		return err
	}
	w.buf.WriteByte('\n')
	_, err := w.w.Write(w.buf.Bytes())
	return err
}

// EventReader reads the output of a task from its events.
type EventReader struct {
	r        *bufio.Reader
	rest     []byte // of an output that was read
	name     string // of the event under way
	artifact *Artifact
	usage    *Usage
	err      error
}

// NewEventReader returns a reader of the events that come from r.
func NewEventReader(r io.Reader) *EventReader {
	return &EventReader{r: bufio.NewReaderSize(r, maxEvent)}
}

// Read gives out the agent's output. It ends with io.EOF when the agent succeeded;
// with [ErrAgentFailed] when it did not, and with [ErrTruncated] when the events
// ended before the agent. Events of other names, and comments, are passed over.
func (r *EventReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 && r.err == nil {
		r.err = r.line()
	}
	if len(r.rest) > 0 {
		n := copy(p, r.rest)
		r.rest = r.rest[n:]
		return n, nil
	}
	return 0, r.err
}

// Artifact returns what the task has left, after io.EOF; nil for nothing.
func (r *EventReader) Artifact() *Artifact { return r.artifact }

// Usage returns what the agent's model has counted, after io.EOF; nil where the worker
// does not say.
func (r *EventReader) Usage() *Usage { return r.usage }

// line reads one line.
func (r *EventReader) line() error {
	line, err := r.r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return fmt.Errorf("%w: an event over %d bytes", ErrFrameTooLarge, maxEvent)
	case errors.Is(err, io.EOF):
		return ErrTruncated
	case err != nil:
		return err
	}
	line = bytes.TrimRight(line, "\r\n")
	field, value, _ := bytes.Cut(line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch string(field) {
	case "event":
		r.name = string(value)
	case "data":
		return r.event(value)
	case "":
		if len(line) == 0 {
			r.name = ""
		}
	}
	return nil
}

// event takes in the data of an event, which is one line.
func (r *EventReader) event(data []byte) error {
	switch r.name {
	case eventOutput:
		var o outputEvent
		if err := json.Unmarshal(data, &o); err != nil {
			return fmt.Errorf("%w: output: %w", ErrBadFrame, err)
		}
		r.rest = append([]byte(o.Text), o.Bytes...)
	case eventArtifact:
		var a Artifact
		if err := json.Unmarshal(data, &a); err != nil {
			return fmt.Errorf("%w: artifact: %w", ErrBadFrame, err)
		}
		if a.Size <= 0 || a.Size > MaxArtifact || len(a.SHA256) != 64 || r.artifact != nil {
			return fmt.Errorf("%w: artifact of %d bytes", ErrBadFrame, a.Size)
		}
		a.clean()
		r.artifact = &a
	case eventExit:
		var e Exit
		if err := json.Unmarshal(data, &e); err != nil {
			return fmt.Errorf("%w: exit: %w", ErrBadFrame, err)
		}
		if e.Usage != nil && e.Usage.Valid() {
			r.usage = e.Usage
		}
		if e.Status == ExitOK {
			return io.EOF
		}
		if e.Cause != "" && !slices.Contains(causes, e.Cause) || e.Cause == CauseOK {
			e.Cause = CauseRuntimeError
		}
		return &AgentError{Cause: e.Cause, Reason: oneLine(e.Reason)}
	}
	return nil
}
