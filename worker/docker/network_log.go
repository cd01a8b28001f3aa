// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Lines of one kind that a container may have in the log within a time.
const (
	logLines  = 20
	logWindow = time.Minute
)

// fewLines are lines in the log that an agent can cause at will. Of too many, those
// that come first are written.
type fewLines struct {
	mu    sync.Mutex
	began time.Time
	lines int
}

// write writes a line, unless there have been too many.
func (f *fewLines) write(logger *zap.Logger, level zapcore.Level, message string, fields ...zap.Field) {
	if entry := logger.Check(level, message); entry != nil && f.may(time.Now()) {
		entry.Write(fields...)
	}
}

func (f *fewLines) may(now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.began) >= logWindow {
		f.began, f.lines = now, 0
	}
	f.lines++
	return f.lines <= logLines
}
