// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// waits is a run that waits for room at a worker that has none.
func waits(ctx context.Context, j Job) (Attempt, error) {
	pause(ctx, j.Wait)
	return nil, &Failure{Kind: Busy}
}

// inLane returns a target that has the same lane for its owner as another has for its own.
func inLane(owner string, lane byte) Target {
	for i := 0; ; i++ {
		if t := (Target{Worker: fmt.Sprint("idle", i)}); laneOf(owner, t) == lane {
			return t
		}
	}
}

// TestTurns wants tasks that wait for a worker that is full to hold up none for another
// worker, of the same lane: of another owner, nor of their own.
func TestTurns(t *testing.T) {
	full := Target{Worker: "full"}
	runner := &fakeRunner{run: func(ctx context.Context, j Job) (Attempt, error) {
		if j.Record.Target.Worker == full.Worker && j.Record.Target.Only == "" {
			return waits(ctx, j)
		}
		return says("done", nil)(ctx, j)
	}}
	p := open(t, t.TempDir(), runner, Options{})
	lane := laneOf("alice", full)
	for range 100 {
		if _, err := p.Submit(t.Context(), Submission{Owner: "alice", Target: full, Prompt: "prompt", Bounds: Bounds{Queue: time.Hour}}); err != nil {
			t.Fatal(err)
		}
	}
	await.Until(t, "tasks that look for a worker", func() bool { return len(runner.seen()) >= maxTurns })
	if n := len(runner.seen()); n != maxTurns {
		t.Errorf("%d look for a worker", n)
	}
	for _, sub := range []Submission{
		{Owner: "bob", Target: inLane("bob", lane)}, {Owner: "alice", Target: inLane("alice", lane)},
		{Owner: "alice", Target: Target{Worker: full.Worker, Only: "another"}},
	} {
		sub.Prompt = "prompt"
		r, err := p.Submit(t.Context(), sub)
		if err != nil {
			t.Fatal(err)
		}
		await.Until(t, "the end of a task for a worker that is idle", func() bool {
			r, err = p.Get(t.Context(), sub.Owner, r.ID)
			if err != nil {
				t.Fatal(err)
			}
			return r.State.Ended()
		})
		if r.State != Completed {
			t.Errorf("got %+v", r)
		}
	}
	turns := p.service.Load().current.Load().turns
	await.Until(t, "turns to be dropped that nobody needs", func() bool {
		turns.mu.Lock()
		defer turns.mu.Unlock()
		return len(turns.all) == 1
	})
}

// TestLastLook wants a task whose time to wait is over to have looked for a worker, though
// older ones have all the turns.
func TestLastLook(t *testing.T) {
	const queue = time.Second
	runner := &fakeRunner{run: func(ctx context.Context, j Job) (Attempt, error) {
		if j.Record.Bounds.Queue != queue {
			return waits(ctx, j)
		}
		return says("done", nil)(ctx, j)
	}}
	p := open(t, t.TempDir(), runner, Options{})
	for range maxTurns {
		submitBounded(t, p, Bounds{Queue: time.Hour})
	}
	await.Until(t, "tasks that have all turns", func() bool { return len(runner.seen()) == maxTurns })
	if r := ended(t, p, submitBounded(t, p, Bounds{Queue: queue})); r.State != Completed || r.Started.Sub(r.Created) < queue/2 {
		t.Errorf("got %+v", r)
	}
}
