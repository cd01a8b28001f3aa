// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"testing"
	"time"
)

// Tight gives stores so many bytes for records, and a clock, until the end of a test. Room is
// made, and webhooks that wait are looked at, every few milliseconds.
func Tight(t *testing.T, records int64, now func() time.Time) {
	t.Helper()
	old := defaultLimits
	t.Cleanup(func() { defaultLimits = old })
	defaultLimits.records, defaultLimits.now = records, now
	defaultLimits.evict, defaultLimits.rest = 10*short, 10*short
}
