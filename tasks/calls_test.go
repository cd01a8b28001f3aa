// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// begin begins a call of the owner "ann".
func begin(p *Part, id string) (*Call, context.Context) {
	ctx, cancel := context.WithCancelCause(context.Background())
	c := p.NewCall("ann", Target{Worker: "peer"}, 6, cancel)
	c.Begin(id, testWorker)
	<-c.begun
	return c, ctx
}

// completed is the end of a call that went well.
func completed(r *Record) { r.State, r.Bytes = Completed, 7 }

// listed returns the ids and states of an owner's tasks.
func listed(t *testing.T, p *Part, owner string, q Query) string {
	t.Helper()
	page, more, err := p.List(t.Context(), owner, q)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(more)
	for _, r := range page {
		got += fmt.Sprintf(" %s:%s", r.ID, r.State)
	}
	return got
}

// TestCalls wants calls to be seen by their owner, in order with other tasks.
func TestCalls(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{run: says("x", nil)}, Options{})
	first, _ := begin(p, "job.1")
	time.Sleep(2 * time.Millisecond) // the order is by milliseconds
	async := submit(t, p, "")
	ended(t, p, async)
	time.Sleep(2 * time.Millisecond)
	second, _ := begin(p, "job.2")
	second.Begin("job.2", Worker{Peer: "another"})
	if got, want := listed(t, p, "ann", Query{Limit: 9}), "false job.2:running "+async+":completed job.1:running"; got != want {
		t.Errorf("got %s", got)
	}
	first.End(nil, completed)
	second.End(nil, func(r *Record) { r.State, r.Reason = Failed, "exit_code" })
	r, err := p.Get(t.Context(), "ann", "job.2")
	if err != nil || r.State != Failed || r.Reason != "exit_code" || r.Attempts != 2 || r.Worker.Peer != "another" || r.Ended.IsZero() {
		t.Errorf("got %+v, %v", r, err)
	}
	if got := told(t, follow(t, p, "job.1"), 0); got != "1 running running  1 peer true;2 completed completed  1 peer false;" {
		t.Errorf("got %s", got)
	}
	for q, want := range map[Query]string{
		{Limit: 2}:                     "true job.2:failed " + async + ":completed",
		{Limit: 2, Before: async}:      "false job.1:completed",
		{Limit: 2, Before: "job.2"}:    "false " + async + ":completed job.1:completed",
		{Limit: 2, State: Failed}:      "false job.2:failed",
		{Limit: 2, State: Queued}:      "false",
		{Limit: 9, Webhook: "pending"}: "false",
	} {
		if got := listed(t, p, "ann", q); got != want {
			t.Errorf("%+v: got %s, want %s", q, got, want)
		}
	}
	if got := listed(t, p, "bob", Query{Limit: 9}); got != "false" {
		t.Errorf("another sees %s", got)
	}
	for _, id := range []string{"job.3", "..", "*", "", "job.1\x00"} {
		if _, err := p.Get(t.Context(), "ann", id); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", id, err)
		}
	}
	if _, _, err := p.List(t.Context(), "ann", Query{Limit: 9, Before: "job.3"}); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if err := p.Output(t.Context(), "ann", "job.1", 0, nil); !errors.Is(err, ErrNotKept) {
		t.Error(err)
	}
	if r, err := p.Left(t.Context(), "ann", "job.1"); !errors.Is(err, ErrNotFound) { // it left none
		t.Errorf("got %+v, %v", r, err)
	}
	if _, err := p.Left(t.Context(), "bob", "job.1"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if r, err := p.Left(t.Context(), "bob", "job.3"); err != nil || r != nil {
		t.Errorf("got %+v, %v", r, err)
	}
}

// TestCancelCall wants a call to be stopped by its owner alone.
func TestCancelCall(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{run: says("x", nil)}, Options{})
	c, ctx := begin(p, "job")
	go func() {
		<-ctx.Done()
		c.End(context.Cause(ctx), func(r *Record) { r.State, r.Reason = Failed, "broken" })
	}()
	if _, err := p.Cancel(t.Context(), "bob", "job"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	for i := range 2 {
		r, err := p.Cancel(t.Context(), "ann", "job")
		if r == nil || r.State != Cancelled || r.Reason != ReasonCancelled || errors.Is(err, ErrEnded) != (i == 1) {
			t.Errorf("got %+v, %v", r, err)
		}
	}
	if r, err := p.Get(t.Context(), "ann", "job"); err != nil || r.State != Cancelled {
		t.Errorf("got %+v, %v", r, err)
	}
}

// TestMendCalls wants a call that a process has left to have an end, and one of this process
// to go on.
func TestMendCalls(t *testing.T) {
	dir := t.TempDir()
	s, err := openStore(t.Context(), place{dir: dir}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	left := &Record{ID: "left", Owner: "ann", Sync: true, Holder: "another", State: Running, Created: time.Now()}
	if err := s.putCall(t.Context(), left); err != nil {
		t.Fatal(err)
	}
	s.close()
	p := open(t, dir, &fakeRunner{run: says("x", nil)}, Options{})
	if r := ended(t, p, "left"); r.State != Failed || r.Reason != ReasonStopped {
		t.Errorf("got %+v", r)
	}
	c, _ := begin(p, "mine")
	p.service.Load().current.Load().sweepCalls()
	if r, err := p.Get(t.Context(), "ann", "mine"); err != nil || r.State != Running {
		t.Errorf("got %+v, %v", r, err)
	}
	c.End(nil, completed)
	ended(t, p, "mine")
}

// TestCallWithoutStore wants calls to go on where there is no store, or one that is closed.
func TestCallWithoutStore(t *testing.T) {
	var none *Part
	c := none.NewCall("ann", Target{}, 1, func(error) {})
	c.Begin("job", testWorker)
	c.End(nil, completed)
	p := open(t, t.TempDir(), &fakeRunner{run: says("x", nil)}, Options{})
	c, _ = begin(p, "job")
	if err := p.Cleanup(); err != nil {
		t.Fatal(err)
	}
	c.End(nil, completed)
}

// TestClusterCalls wants calls to be seen and cancelled at any gateway, and to end with
// theirs.
func TestClusterCalls(t *testing.T) {
	cluster := startServer(t).cluster()
	a := join(t, cluster, &fakeRunner{run: says("x", nil)}, clusterLimits())
	b := join(t, cluster, &fakeRunner{run: says("x", nil)}, clusterLimits())
	await := func(p *Part) { until(t, p, submit(t, p, ""), "a store", func(*Record) bool { return true }) }
	await(a)
	await(b)
	c, ctx := begin(a, "job")
	left, _ := begin(a, "left")
	go func() {
		<-ctx.Done()
		c.End(context.Cause(ctx), completedNot)
	}()
	if r, err := b.Cancel(t.Context(), "ann", "job"); err != nil || r.State != Cancelled {
		t.Errorf("got %+v, %v", r, err)
	}
	if r, err := b.Get(t.Context(), "ann", "left"); err != nil || r.State != Running {
		t.Errorf("got %+v, %v", r, err)
	}
	if got := listed(t, b, "ann", Query{Limit: 2, State: Running}); got != "false left:running" {
		t.Errorf("got %s", got)
	}
	for i := range 2 * fewChanges {
		other, _ := begin(a, fmt.Sprint("job", i))
		other.End(nil, completed)
	}
	if page, _, err := b.List(t.Context(), "ann", Query{Limit: 1000, State: Completed}); err != nil || len(page) != 2+2*fewChanges { // with two tasks
		t.Errorf("got %d, %v", len(page), err)
	}
	a.service.Load().Close()
	if r := ended(t, b, "left"); r.State != Failed || r.Reason != ReasonStopped {
		t.Errorf("got %+v", r)
	}
	left.End(nil, completed)
}

// completedNot is the end of a call that broke.
func completedNot(r *Record) { r.State, r.Reason = Failed, "broken" }

// TestCallAgain wants a call whose id was used before to be one task, in the list and in the
// index of it.
func TestCallAgain(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{run: says("x", nil)}, Options{})
	for range 20 {
		c, _ := begin(p, "same")
		c.End(nil, completed)
		time.Sleep(time.Millisecond) // the order is by them
	}
	if got := listed(t, p, "ann", Query{Limit: 1}); got != "false same:completed" {
		t.Errorf("got %s", got)
	}
	x := p.service.Load().current.Load().store.calls.index
	x.forget(0)
	if n := len(x.owners[ownerKey("ann")]); n != 1 {
		t.Errorf("the index has %d", n)
	}
}

// TestCallUnanswered wants a call to be listed whose record the store has, and did not say so.
func TestCallUnanswered(t *testing.T) {
	old := defaultLimits
	t.Cleanup(func() { defaultLimits = old })
	defaultLimits.fault = func(when, _, what string) error {
		if when == "after" && strings.HasPrefix(what, callSubject) {
			return context.DeadlineExceeded
		}
		return nil
	}
	p := open(t, t.TempDir(), &fakeRunner{run: says("x", nil)}, Options{})
	<-p.service.Load().current.Load().store.calls.index.loaded
	begin(p, "late")
	if got := listed(t, p, "ann", Query{Limit: 9}); got != "false late:running" {
		t.Errorf("got %s", got)
	}
}

// TestCallLate wants the end of a call that could not be stored to be stored later, and the
// call to be what it was until then.
func TestCallLate(t *testing.T) {
	p, failing := openFailing(t)
	c, _ := begin(p, "late")
	failing.Store(true)
	c.End(nil, completed)
	if r, err := p.Cancel(t.Context(), "ann", "late"); !errors.Is(err, ErrEnded) || r.State != Completed {
		t.Errorf("got %+v, %v", r, err)
	}
	p.service.Load().current.Load().sweepCalls() // it does not say that the gateway was stopped
	failing.Store(false)
	if r := ended(t, p, "late"); r.State != Completed || r.Bytes != 7 {
		t.Errorf("got %+v", r)
	}
	if got := told(t, follow(t, p, "late"), 0); got != "1 running running  1 peer true;2 completed completed  1 peer false;" {
		t.Errorf("got %s", got)
	}
	await.Until(t, "the call to be forgotten", func() bool { return p.service.Load().calls.find(c.record.key()) == nil })

	// Of two with one id, the later counts.
	first, _ := begin(p, "twice")
	failing.Store(true)
	first.End(nil, completed)
	failing.Store(false)
	second, _ := begin(p, "twice")
	await.Until(t, "the first to be dropped", func() bool { return len(p.service.Load().calls.late) == 0 })
	if r, err := p.Get(t.Context(), "ann", "twice"); err != nil || r.State == Failed {
		t.Errorf("got %+v, %v", r, err)
	}
	second.End(nil, completedNot)
	if r, err := p.Get(t.Context(), "ann", "twice"); err != nil || r.State != Failed {
		t.Errorf("got %+v, %v", r, err)
	}
}

// TestCallLost wants a call of this process without an end, which nobody has any more, to be
// mended when it is cancelled, and when the store is opened anew.
func TestCallLost(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{run: says("x", nil)}, Options{})
	s := p.service.Load()
	old := s.current.Load()
	for _, id := range []string{"cancelled", "reopened"} {
		lost := &Record{ID: id, Owner: "ann", Sync: true, Holder: s.id, State: Running, Created: time.Now()}
		if err := old.store.putCall(t.Context(), lost); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := p.Cancel(t.Context(), "ann", "cancelled"); !errors.Is(err, ErrEnded) || r.State != Failed || r.Reason != ReasonStopped {
		t.Errorf("got %+v, %v", r, err)
	}
	if r, err := p.Get(t.Context(), "ann", "cancelled"); err != nil || r.State != Failed {
		t.Errorf("got %+v, %v", r, err)
	}
	_ = old.store.failedTo(t.Context(), errors.New("no space left on device"))
	if r := ended(t, p, "reopened"); r.State != Failed || r.Reason != ReasonStopped {
		t.Errorf("got %+v", r)
	}
	many, c := newCalls(), &Call{record: Record{ID: "x", Sync: true}}
	many.byKey[c.record.key()] = c
	for i := range maxLateEnds + 1 {
		if many.later(c); (many.find(c.record.key()) == nil) != (i == maxLateEnds) {
			t.Fatalf("after %d calls: %v", i, many.byKey)
		}
	}
}

// openFailing opens a store that does not write records of calls while it is told so.
func openFailing(t *testing.T) (*Part, *atomic.Bool) {
	t.Helper()
	failing := new(atomic.Bool)
	old := defaultLimits
	t.Cleanup(func() { defaultLimits = old })
	defaultLimits.fault = func(when, verb, what string) error {
		if failing.Load() && when == "before" && verb == "write" && strings.HasPrefix(what, callSubject) {
			return errors.New("no space left on device")
		}
		return nil
	}
	return open(t, t.TempDir(), &fakeRunner{run: says("x", nil)}, Options{}), failing
}
