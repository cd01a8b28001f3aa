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
	log func() *zap.Logger

	mu   sync.Mutex
	data []byte
	line []byte // the last one, as long as it does not end
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
			t.log().Debug("output of the model server", zap.String("line", strings.ToValidUTF8(string(t.line), "?")))
			t.line = t.line[:0]
		}
		rest = after
	}
	return len(p), nil
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
