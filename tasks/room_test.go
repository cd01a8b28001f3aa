// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

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

	hooked := sub
	hooked.WebhookURL = "https://receiver.invalid"
	pending := submitSoon(t, p, hooked)
	ended(t, p, pending)
	var later []string
	for range 250 {
		later = append(later, submitSoon(t, p, sub))
	}
	drain(t, p)
	await.Until(t, "room", func() bool {
		_, bytes, err := p.service.Load().current.Load().store.length(t.Context(), recordName)
		return err == nil && bytes < evictAt(room)
	})
	page, more, err := p.List(t.Context(), "ann", Query{Limit: 1000})
	there := func(id string) bool { return slices.ContainsFunc(page, func(r *Record) bool { return r.ID == id }) }
	if err != nil || more || !there(later[249]) || len(page) > 350 {
		t.Errorf("%d tasks, %v, %v", len(page), more, err)
	}
	if !there(pending) {
		t.Error("a task was dropped whose webhook is to be delivered")
	}
	if _, err := p.Get(t.Context(), "ann", accepted[0]); !errors.Is(err, ErrNotFound) {
		t.Errorf("the oldest: %v", err)
	}
}

// submitSoon submits a task, as soon as there is room.
func submitSoon(t *testing.T, p *Part, sub Submission) (id string) {
	t.Helper()
	await.Until(t, "room", func() bool {
		r, err := p.Submit(t.Context(), sub)
		if err == nil {
			id = r.ID
		} else if !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		return err == nil
	})
	return id
}

// TestRoomShare wants an owner whose webhooks cannot be delivered to leave room for others.
func TestRoomShare(t *testing.T) {
	old := defaultLimits
	t.Cleanup(func() { defaultLimits = old })
	defaultLimits.records, defaultLimits.evict = 512<<10, short
	t.Setenv("AGENTFM_WEBHOOK_ALLOW_PRIVATE", "1")
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }))
	t.Cleanup(receiver.Close)
	p := open(t, t.TempDir(), &fakeRunner{run: says("done", nil)}, Options{InFlight: 10_000})
	dead := Submission{Owner: "bob", Site: "site", Prompt: "prompt", WebhookURL: receiver.URL}
	await.Until(t, "a share", func() bool {
		_, err := p.Submit(t.Context(), dead)
		if err != nil && !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		return errors.Is(err, ErrHeld)
	})
	for range 300 {
		submitSoon(t, p, Submission{Owner: "ann", Site: "site", Prompt: "prompt"})
	}
	drain(t, p)
}

// TestLargeRecords wants tasks whose records are large to be counted as what they are.
func TestLargeRecords(t *testing.T) {
	old := defaultLimits
	t.Cleanup(func() { defaultLimits = old })
	const room = 1 << 20
	defaultLimits.records, defaultLimits.evict = room, time.Hour
	gate := make(chan struct{})
	p := open(t, t.TempDir(), &fakeRunner{run: gated(gate)}, Options{InFlight: 10_000})
	sub := Submission{Owner: "ann", Site: "site", Prompt: "prompt", Target: Target{Model: "model", Exclude: []string{strings.Repeat("x", 10<<10)}}}
	n := 0
	for ; n < 1000; n++ {
		if _, err := p.Submit(t.Context(), sub); errors.Is(err, ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	close(gate)
	drain(t, p)
	_, bytes, err := p.service.Load().current.Load().store.length(t.Context(), recordName)
	if err != nil || bytes > room || n < 20 {
		t.Errorf("%d tasks have %d bytes, %v", n, bytes, err)
	}
}

// TestEvict wants as many tasks to be dropped as it takes, past all that must stay: those
// with webhooks to be delivered, or young keys, and those that are in the queue.
func TestEvict(t *testing.T) {
	s, err := openStore(t.Context(), place{dir: t.TempDir()}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	var later atomic.Int64
	w := &session{service: &service{limits: defaultLimits}, store: s, ctx: t.Context()}
	w.limits.now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	const keyed, hooked, queued, all = 50, 100, 100 + evictBatch + 50, 2500
	var tasks []*Record
	fillEnded(t, s, all, func(i int, r *Record) {
		tasks = append(tasks, r)
		switch {
		case i < keyed:
			r.Keyed = true
		case i < hooked:
			r.Webhook = &Webhook{State: WebhookPending}
		}
	})
	for _, r := range tasks[hooked:queued] {
		if err := s.enqueue(t.Context(), s.queue, queueName, &nats.Msg{Subject: inQueue(r.key())}); err != nil {
			t.Fatal(err)
		}
	}
	w.readThrough(&s.records, func(*Record, uint64) {})
	if _, err := s.records.Put(t.Context(), tasks[queued+10].key(), []byte("{")); err != nil {
		t.Fatal(err)
	}
	size := func() int64 {
		_, bytes, err := s.length(t.Context(), recordName)
		if err != nil {
			t.Fatal(err)
		}
		return bytes
	}
	before := size()
	w.limits.records = (before/2 + (queued-hooked)*taskRoom) * 8 / 7
	n, err := w.evict()
	if kept := size(); err != nil || n < all/3 || kept > before/2 || kept < before/5 {
		t.Errorf("%d were dropped, and %d of %d bytes are kept: %v", n, kept, before, err)
	}
	if n, err := w.evict(); n != 0 || err != nil {
		t.Errorf("once more, %d were dropped: %v", n, err)
	}
	there := func(i int) bool {
		_, _, err := s.kept(t.Context(), tasks[i].key())
		if err != nil && !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	for i := range queued {
		if !there(i) {
			t.Fatalf("task %d was dropped", i)
		}
	}
	if there(queued) || !there(all-1) {
		t.Error("those that ended first go first")
	}
	w.limits.records = before / 10
	if n, err := w.evict(); n == 0 || err != nil || there(all-1) {
		t.Errorf("then %d were dropped: %v", n, err)
	}
	if n, err := w.evict(); n != 0 || !errors.Is(err, errHeld) {
		t.Errorf("then %d were dropped: %v", n, err)
	}
	later.Store(int64(KeepKey))
	if n, err := w.evict(); n != keyed || err != nil || there(0) || !there(keyed) {
		t.Errorf("of an old key, %d were dropped: %v", n, err)
	}
}

// TestBacklogAsks wants the store not to be asked again by each who is refused.
func TestBacklogAsks(t *testing.T) {
	full := backlog{kept: 1 << 20, keptAt: time.Now().Add(time.Hour)}
	if err := full.begin(t.Context(), nil, "ann", 10, 1<<20, 0); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
	away := backlog{failure: ErrStore, failedAt: time.Now().Add(time.Hour)}
	if err := away.begin(t.Context(), nil, "ann", 10, 1<<20, 0); !errors.Is(err, ErrStore) {
		t.Error(err)
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
