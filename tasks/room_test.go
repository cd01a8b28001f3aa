// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// TestRecordRoom wants what was accepted to have room for its end, more to be refused for as
// long as there is none, and tasks that have ended to make some: the first of them, but none
// whose webhook is to be delivered.
func TestRecordRoom(t *testing.T) {
	old := defaultLimits
	t.Cleanup(func() { defaultLimits = old })
	const room = 512 << 10
	defaultLimits.records, defaultLimits.evict = room, short
	gate := make(chan struct{})
	runner := &counted{runs: make(map[string]int), Runner: &fakeRunner{run: gated(gate)}}
	p := open(t, t.TempDir(), runner, Options{InFlight: 10_000})
	sub := Submission{Owner: "ann", Site: "site", Prompt: "prompt"}
	var accepted []string
	var err error
	for err == nil && len(accepted) < 1000 {
		var r *Record
		if r, err = p.Submit(t.Context(), sub); err == nil {
			accepted = append(accepted, r.ID)
		}
	}
	if want := int(refuseAt(room) / taskRoom); !errors.Is(err, ErrFull) || len(accepted) != want {
		t.Fatalf("%d tasks were accepted, and not %d: %v", len(accepted), want, err)
	}
	if err := p.Ready(); err != nil {
		t.Error(err)
	}
	close(gate)
	drain(t, p)
	if n := runner.total(); n != len(accepted) {
		t.Errorf("%d of %d were run", n, len(accepted))
	}

	pending := submit(t, p, "https://receiver.invalid")
	ended(t, p, pending)
	var later []string
	for len(later) < 250 {
		r, err := p.Submit(t.Context(), sub)
		if errors.Is(err, ErrFull) { // for a moment
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		later = append(later, r.ID)
	}
	drain(t, p)
	await.Until(t, "room", func() bool {
		_, bytes, err := p.service.Load().current.Load().store.length(t.Context(), recordName)
		return err == nil && bytes < evictAt(room)
	})
	page, more, err := p.List(t.Context(), "ann", Query{Limit: 1000})
	if err != nil || more || page[0].ID != later[249] || len(page) > 350 {
		t.Errorf("%d tasks, %v, %v", len(page), more, err)
	}
	if at := slices.IndexFunc(page, func(r *Record) bool { return r.ID == pending }); at < 0 {
		t.Error("a task was dropped whose webhook is to be delivered")
	}
	if _, err := p.Get(t.Context(), "ann", accepted[0]); !errors.Is(err, ErrNotFound) {
		t.Errorf("the oldest: %v", err)
	}
}

// gated returns a run that waits for a gate, and answers.
func gated(gate chan struct{}) func(ctx context.Context, j Job) (Attempt, error) {
	return func(ctx context.Context, j Job) (Attempt, error) {
		select {
		case <-gate:
			return says("done", nil)(ctx, j)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
