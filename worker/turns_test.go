// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"testing"
)

// One gateway waits for its own turn, and nobody for that of another.
func TestTurns(t *testing.T) {
	var all turns
	var back []func()
	take := func(ctx context.Context) bool {
		giveBack, ok := all.take(ctx, "g")
		if ok {
			back = append(back, giveBack)
		}
		return ok
	}
	for range maxPacking {
		if !take(t.Context()) {
			t.Fatal("there is room")
		}
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if take(over) {
		t.Error("more at once than may be")
	}
	other, ok := all.take(t.Context(), "other")
	if !ok {
		t.Fatal("another gateway has to wait")
	}
	other()
	got := make(chan bool)
	go func() { got <- take(t.Context()) }()
	back[0]()
	if !<-got {
		t.Error("no turn, though one was given back")
	}
	for _, giveBack := range back[1:] {
		giveBack()
	}
	if len(all.of) != 0 {
		t.Errorf("left are %v", all.of)
	}
}
