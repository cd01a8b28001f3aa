// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// busy says that no worker has room.
func busy(context.Context, Job) (Attempt, error) { return nil, &Failure{Kind: Busy} }

// submitAll submits tasks of an owner until one is refused, and returns their ids and that error.
func submitAll(t *testing.T, p *Part, owner string) (ids []string, err error) {
	t.Helper()
	for range 1000 {
		var r *Record
		if r, err = p.Submit(t.Context(), Submission{Owner: owner, Site: "site", Prompt: "prompt"}); err != nil {
			break
		}
		ids = append(ids, r.ID)
	}
	return ids, err
}

// TestQueueShare wants the last eighth of the queue to be for those who have few tasks in it:
// also after a restart, and until those who have many have less.
func TestQueueShare(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir, &fakeRunner{run: busy}, Options{InFlight: 64})
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() { _, _ = submitAll(t, p, "ann") })
	}
	clients.Wait()
	if n := queueLength(t, p); n > 56 {
		t.Fatalf("ann has %d tasks", n)
	}
	_, err := submitAll(t, p, "ann")
	if n := queueLength(t, p); n != 56 || !errors.Is(err, ErrShare) {
		t.Fatalf("ann has %d tasks: %v", n, err)
	}
	for range 3 {
		submitFor(t, p, "bob")
	}
	if err := p.Cleanup(); err != nil {
		t.Fatal(err)
	}

	p = open(t, dir, &fakeRunner{run: busy}, Options{InFlight: 64})
	if ids, err := submitAll(t, p, "ann"); len(ids) != 0 || !errors.Is(err, ErrShare) {
		t.Errorf("after a restart, ann has %d more: %v", len(ids), err)
	}
	if ids, err := submitAll(t, p, "bob"); len(ids) != 5 || !errors.Is(err, ErrFull) || errors.Is(err, ErrShare) {
		t.Errorf("bob has %d more: %v", len(ids), err)
	}
	some, _, err := p.List(t.Context(), "ann", Query{Limit: 9})
	if err != nil || len(some) != 9 {
		t.Fatal(len(some), err)
	}
	for _, r := range some {
		if _, err := p.Cancel(t.Context(), "ann", r.ID); err != nil {
			t.Fatal(err)
		}
	}
	await.Until(t, "a task of ann's", func() bool {
		_, err := p.Submit(t.Context(), Submission{Owner: "ann", Site: "site", Prompt: "prompt"})
		return err == nil
	})
}

// submitFor submits a task of an owner.
func submitFor(t *testing.T, p *Part, owner string) {
	t.Helper()
	if _, err := p.Submit(t.Context(), Submission{Owner: owner, Site: "site", Prompt: "prompt"}); err != nil {
		t.Fatalf("of %s: %v", owner, err)
	}
}

// TestQueueShareOfMany wants nobody to have less for it where all have about as many.
func TestQueueShareOfMany(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{run: busy}, Options{InFlight: 64})
	for i := range 64 {
		submitFor(t, p, fmt.Sprint("owner", i%8))
	}
	if _, err := p.Submit(t.Context(), Submission{Owner: "ann"}); !errors.Is(err, ErrFull) || errors.Is(err, ErrShare) {
		t.Error(err)
	}
}

// TestClusterQueueShare wants the tasks of an owner to count that other gateways took.
func TestClusterQueueShare(t *testing.T) {
	c := startServer(t).cluster()
	a := join(t, c, &fakeRunner{run: busy}, clusterLimits())
	b := join(t, c, &fakeRunner{run: busy}, clusterLimits())
	a.options.InFlight, b.options.InFlight = 64, 64
	for range 28 {
		submitFor(t, a, "ann")
		submitFor(t, b, "ann")
	}
	for _, p := range []*Part{a, b} {
		if ids, err := submitAll(t, p, "ann"); len(ids) != 0 || !errors.Is(err, ErrShare) {
			t.Errorf("ann has %d more: %v", len(ids), err)
		}
		submitFor(t, p, "bob")
	}
}

// TestLastOfQueue wants the rule to hold for places and for the room for prompts.
func TestLastOfQueue(t *testing.T) {
	for _, c := range []struct {
		messages, under int
		bytes           int64
		limit           int
		want            bool
	}{
		{messages: 223, limit: 256}, {messages: 220, under: 4, limit: 256, want: true}, {messages: 224, limit: 256, want: true},
		{messages: 13, limit: 16}, {messages: 14, limit: 16, want: true}, {messages: 14, limit: 15}, {limit: 1},
		{messages: 10, bytes: queueBytes / 2, limit: 256}, {messages: 10, bytes: queueBytes - 1, limit: 256, want: true},
	} {
		b := &backlog{messages: c.messages, under: c.under, bytes: c.bytes}
		if got := b.last(c.limit); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
