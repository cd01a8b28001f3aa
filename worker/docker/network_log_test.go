// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestFewLines(t *testing.T) {
	core, seen := observer.New(zapcore.InfoLevel)
	var f fewLines
	for range 3 * logLines {
		f.write(zap.New(core), zap.DebugLevel, "not in the log anyway")
	}
	for range 3 * logLines {
		f.write(zap.New(core), zap.InfoLevel, "x")
	}
	if n := seen.Len(); n != logLines {
		t.Errorf("%d lines, want %d", n, logLines)
	}
	later := time.Now().Add(logWindow)
	for i := range 2 * logLines {
		if got := f.may(later); got != (i < logLines) {
			t.Errorf("a minute later, line %d: %v", i, got)
		}
	}
}
