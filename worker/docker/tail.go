// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"io"
	"strings"
	"sync"

	"github.com/docker/docker/pkg/stdcopy"
	"go.uber.org/zap"
)

const (
	// tailSize is how much of a container's output is kept.
	tailSize = 4 << 10
	// tailLine is how much of a line the log has, at the level debug.
	tailLine = 1 << 10
)

// tail keeps the end of a container's output. All of it is for the log alone.
type tail struct {
	log  func() *zap.Logger
	what string // the message in the log

	mu   sync.Mutex
	data []byte
	line []byte // the last one, as long as it does not end
}

// maxLogged is how much of a task's standard error the log gets, in bytes.
const maxLogged = 64 << 10

// stderr returns where the standard error of a task goes; nil for to the answer.
func (p *prepared) stderr(taskID string) io.WriteCloser {
	if !p.spec.stderrLogged {
		return nil
	}
	logger := p.logger.With(zap.String("task", taskID))
	return &firstBytes{left: maxLogged, w: &tail{log: func() *zap.Logger { return logger }, what: "standard error of the agent"}}
}

// firstBytes passes on a beginning, and drops the rest.
type firstBytes struct {
	w    io.WriteCloser
	left int
}

// Close implements io.Closer.
func (f *firstBytes) Close() error { return f.w.Close() }

// Write implements io.Writer.
func (f *firstBytes) Write(p []byte) (int, error) {
	n := min(len(p), f.left)
	f.left -= n
	if n > 0 {
		_, _ = f.w.Write(p[:n])
	}
	return len(p), nil
}

// fill reads both output streams of a container until they close. What cannot be
// read is lost: nobody waits for it.
func (t *tail) fill(r io.Reader) {
	_, _ = stdcopy.StdCopy(t, t, r)
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p[max(len(p)-tailSize, 0):]...)
	if over := len(t.data) - tailSize; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
	if !t.log().Core().Enabled(zap.DebugLevel) {
		t.line = t.line[:0]
		return len(p), nil
	}
	for rest := p; len(rest) > 0; {
		line, after, ended := bytes.Cut(rest, []byte("\n"))
		t.line = append(t.line, line[:min(len(line), tailLine-len(t.line))]...)
		if ended {
			t.logLine()
		}
		rest = after
	}
	return len(p), nil
}

// logLine logs the last line. The caller holds t.mu.
func (t *tail) logLine() {
	t.log().Debug(t.what, zap.String("line", strings.ToValidUTF8(string(t.line), "?")))
	t.line = t.line[:0]
}

// Close implements io.Closer: no more comes, and the last line may have no end.
func (t *tail) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.line) > 0 {
		t.logLine()
	}
	return nil
}

// String returns what is kept, from the beginning of a line where there is one.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	data := t.data
	if len(data) == tailSize {
		if _, whole, ok := bytes.Cut(data, []byte("\n")); ok && len(whole) > 0 {
			data = whole
		}
	}
	return strings.ToValidUTF8(string(bytes.TrimSpace(data)), "?")
}

// Interface guard
var _ io.Writer = (*tail)(nil)
