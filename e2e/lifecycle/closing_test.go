// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/lifetime"
)

// Who closes a node or an agent that is closing already needs its ports and its
// identity next, and must not go on before they are free.
func TestCloseWaitsForClosing(t *testing.T) {
	closing, gate := make(chan struct{}), make(chan struct{})
	l := lifetime.New[int](func() {
		close(closing)
		<-gate
	})
	l.Lease()
	l.Drain(time.Hour)
	go l.Release() // the last request ends
	<-closing
	if l.Revive() {
		t.Error("revived while it closes")
	}
	second := make(chan struct{})
	go func() {
		defer close(second)
		l.Close()
	}()
	select {
	case <-second:
		t.Error("Close returned before it was closed")
	case <-time.After(100 * time.Millisecond):
	}
	close(gate)
	<-second
}
