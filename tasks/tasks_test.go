// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
)

func TestEnds(t *testing.T) {
	final := &Failure{Reason: "agent_failed", Message: "exit status 3"}
	broken := errors.New("stream reset")
	long := strings.Repeat("0123456789abcdef", 20_000)
	for _, c := range []struct {
		name   string
		run    func(ctx context.Context, j Job) (Attempt, error)
		state  State
		reason string
		output string
		runs   int
	}{
		{"completed", says("hello\n", nil), Completed, "", "hello\n", 1},
		{"no output", says("", nil), Completed, "", "", 1},
		{"long", says(long, nil), Completed, "", long, 1},
		{"agent failed", says("half", final), Failed, "agent_failed", "half", 1},
		{"refused", func(context.Context, Job) (Attempt, error) { return nil, final }, Failed, "agent_failed", "", 1},
		{"broken every time", says("half", broken), Failed, "broken", "half", MaxLost},
		{"unknown error", func(context.Context, Job) (Attempt, error) { return nil, errors.New("a secret") }, Failed, "internal_error", "", 1},
		{"too much", func(_ context.Context, j Job) (Attempt, error) {
			return &fakeAttempt{Reader: io.LimitReader(zeros{}, 1<<20+1)}, j.Begin(testWorker)
		}, Failed, ReasonOutput, "", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			runner := &fakeRunner{run: c.run}
			p := open(t, t.TempDir(), runner, Options{})
			limits := &p.service.Load().limits
			limits.pause, limits.output = short, 1<<20
			id := submit(t, p, "")
			r := ended(t, p, id)
			if r.State != c.state || r.Reason != c.reason || len(runner.seen()) != c.runs || r.Ended.IsZero() {
				t.Errorf("got %+v after %q", r, runner.seen())
			}
			got := output(t, p, id)
			if c.reason != ReasonOutput && got != c.output {
				t.Errorf("got %d bytes of output: %.50q", len(got), got)
			}
			if r.Bytes != int64(len(got)) {
				t.Errorf("got %d bytes of output, and the record says %d", len(got), r.Bytes)
			}
			empty(t, p)
		})
	}
}

// zeros is endless.
type zeros struct{}

// Read implements io.Reader.
func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestAgain wants a task for which there is no room, or whose attempt breaks, to be run
// in the end, with the output of the last attempt alone.
func TestAgain(t *testing.T) {
	failures := []error{
		&Failure{Kind: Busy}, &Failure{Kind: Away}, nil /* breaks */, &Failure{Kind: Busy},
	}
	runner := &fakeRunner{}
	runner.run = func(ctx context.Context, j Job) (Attempt, error) {
		if len(failures) == 0 {
			return says("whole", nil)(ctx, j)
		}
		next := failures[0]
		failures = failures[1:]
		if next == nil {
			return says("half", errors.New("stream reset"))(ctx, j)
		}
		return nil, next
	}
	p := open(t, t.TempDir(), runner, Options{})
	id := submit(t, p, "")
	r := ended(t, p, id)
	if r.State != Completed || r.Attempts != 2 || r.Lost != 1 || r.Worker != testWorker || output(t, p, id) != "whole" {
		t.Errorf("got %+v", r)
	}
	if want := []string{id, id, id, id + ".1", id + ".1"}; !slices.Equal(runner.seen(), want) {
		t.Errorf("got %q", runner.seen())
	}
}

// TestRefused wants a task that a worker was given and did not take to be queued, and
// nothing to be lost by that.
func TestRefused(t *testing.T) {
	runner := &fakeRunner{run: func(_ context.Context, j Job) (Attempt, error) {
		if err := j.Begin(testWorker); err != nil {
			return nil, err
		}
		return nil, &Failure{Kind: Busy}
	}}
	p := open(t, t.TempDir(), runner, Options{})
	id := submit(t, p, "")
	r := until(t, p, id, "a task that waits", func(r *Record) bool { return r.State == Queued && r.Attempts > 0 })
	if r.Lost != 0 || !r.Started.IsZero() {
		t.Errorf("got %+v", r)
	}
}

func TestNoWorker(t *testing.T) {
	runner := &fakeRunner{run: func(context.Context, Job) (Attempt, error) { return nil, &Failure{Kind: Away} }}
	p := open(t, t.TempDir(), runner, Options{})
	p.service.Load().limits.offline = short
	if r := ended(t, p, submit(t, p, "")); r.State != Failed || r.Reason != ReasonNoWorker {
		t.Errorf("got %+v", r)
	}
}

// TestCancel wants a task to end at once, and its agent to be stopped.
func TestCancel(t *testing.T) {
	stopped := make(chan struct{})
	runner := &fakeRunner{run: func(ctx context.Context, j Job) (Attempt, error) {
		context.AfterFunc(ctx, func() { close(stopped) })
		return hangs("so far")(ctx, j)
	}}
	p := open(t, t.TempDir(), runner, Options{})
	id := submit(t, p, "")
	until(t, p, id, "a task that runs", func(r *Record) bool { return r.State == Running && output(t, p, id) == "so far" })
	if _, err := p.Cancel(t.Context(), "bob", id); !errors.Is(err, ErrNotFound) {
		t.Errorf("another's: %v", err)
	}
	r, err := p.Cancel(t.Context(), "ann", id)
	if err != nil || r.State != Cancelled || r.Reason != ReasonCancelled {
		t.Errorf("got %+v, %v", r, err)
	}
	<-stopped
	empty(t, p)
	if r, err := p.Cancel(t.Context(), "ann", id); !errors.Is(err, ErrEnded) || r.State != Cancelled {
		t.Errorf("again: %+v, %v", r, err)
	}
}

// TestCancelQueued wants a task to leave the queue when it is cancelled, wherever it is.
func TestCancelQueued(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{run: func(context.Context, Job) (Attempt, error) { return nil, &Failure{Kind: Busy} }}, Options{InFlight: 1000})
	first := p.service.Load().current.Load()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range maxPending / 8 * 5 / 4 { // a quarter is not out of the queue
				r, err := p.Submit(t.Context(), Submission{Owner: "ann", Prompt: "x"})
				if err == nil && r.ID[len(r.ID)-2]%2 == 0 {
					_, err = p.Cancel(t.Context(), "ann", r.ID)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	for {
		page, more, err := p.List(t.Context(), "ann", Query{State: Queued, Limit: 100})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page {
			if _, err := p.Cancel(t.Context(), "ann", r.ID); err != nil {
				t.Error(err)
			}
		}
		if !more {
			break
		}
	}
	empty(t, p)
	if p.service.Load().current.Load() != first {
		t.Error("the store failed")
	}
}

func TestFull(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{run: hangs("")}, Options{InFlight: 2})
	first := submit(t, p, "")
	submit(t, p, "")
	sub := Submission{Owner: "ann", Prompt: "x"}
	if _, err := p.Submit(t.Context(), sub); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	if _, err := p.Cancel(t.Context(), "ann", first); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := p.Submit(t.Context(), sub); err == nil {
			break
		} else if !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestList(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{run: says("x", nil)}, Options{})
	var ids []string
	for range 5 {
		id := submit(t, p, "")
		ended(t, p, id)
		ids = append([]string{id}, ids...)
	}
	if _, err := p.Submit(t.Context(), Submission{Owner: "bob", Prompt: "x"}); err != nil {
		t.Fatal(err)
	}
	list := func(q Query) string {
		page, more, err := p.List(t.Context(), "ann", q)
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(more)
		for _, r := range page {
			got += fmt.Sprint(" ", slices.Index(ids, r.ID))
		}
		return got
	}
	for q, want := range map[Query]string{
		{Limit: 10}:                  "false 0 1 2 3 4",
		{Limit: 5}:                   "false 0 1 2 3 4",
		{Limit: 2}:                   "true 0 1",
		{Limit: 2, Before: ids[1]}:   "true 2 3",
		{Limit: 2, Before: ids[3]}:   "false 4",
		{Limit: 2, State: Failed}:    "false",
		{Limit: 9, State: Completed}: "false 0 1 2 3 4",
	} {
		if got := list(q); got != want {
			t.Errorf("%+v: got %s, want %s", q, got, want)
		}
	}
}

// TestListQueue wants the tasks that wait to be listed among the others, whoever else has
// any.
func TestListQueue(t *testing.T) {
	gate := make(chan struct{})
	p := open(t, t.TempDir(), &fakeRunner{run: func(ctx context.Context, j Job) (Attempt, error) {
		if j.Record.Owner == "ann" && j.Record.Target.Model == "now" {
			return says("", nil)(ctx, j)
		}
		select {
		case <-gate:
		case <-ctx.Done():
		}
		return nil, &Failure{Kind: Busy}
	}}, Options{})
	defer close(gate)
	var ids []string
	for n := range 60 {
		owner, model := "ann", "later"
		if n%3 == 0 {
			owner = "bob"
		}
		if n%4 == 0 {
			model = "now"
		}
		r, err := p.Submit(t.Context(), Submission{Owner: owner, Target: Target{Model: model}, Prompt: "x"})
		if err != nil {
			t.Fatal(err)
		}
		if owner == "ann" {
			ids = append(ids, r.ID)
			if model == "now" {
				ended(t, p, r.ID)
			}
		}
		time.Sleep(time.Millisecond) // an id has the millisecond
	}
	slices.Reverse(ids)
	for _, q := range []Query{{Limit: 7}, {Limit: 100}, {Limit: 3, State: Queued}, {Limit: 3, State: Completed}, {Limit: 40}} {
		var got []string
		for more := true; more; {
			var page []*Record
			var err error
			if page, more, err = p.List(t.Context(), "ann", q); err != nil || len(page) == 0 {
				t.Fatal(len(page), err)
			}
			for _, r := range page {
				got, q.Before = append(got, r.ID), r.ID
			}
		}
		want := slices.DeleteFunc(slices.Clone(ids), func(id string) bool {
			r, err := p.Get(t.Context(), "ann", id)
			return err != nil || q.State != "" && r.State != q.State
		})
		if !slices.Equal(got, want) {
			t.Errorf("%+v: got %q, want %q", q, got, want)
		}
	}
}

// TestRestart wants what was queued and what ran to be taken up again.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	runner := &fakeRunner{run: func(ctx context.Context, j Job) (Attempt, error) {
		if j.Record.Target.Model == "busy" {
			return nil, &Failure{Kind: Busy}
		}
		return hangs("half")(ctx, j)
	}}
	p := open(t, dir, runner, Options{})
	running := submit(t, p, "")
	r, err := p.Submit(t.Context(), Submission{Owner: "ann", Target: Target{Model: "busy"}, Prompt: "prompt"})
	if err != nil {
		t.Fatal(err)
	}
	waiting := r.ID
	until(t, p, running, "a task that runs", func(r *Record) bool { return r.State == Running && output(t, p, running) == "half" })
	if err := p.Cleanup(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Submit(t.Context(), Submission{Prompt: "x"}); !errors.Is(err, ErrNotRunning) {
		t.Error(err)
	}

	prompts := make(chan string, 2)
	p = open(t, dir, &fakeRunner{run: func(ctx context.Context, j Job) (Attempt, error) {
		prompts <- j.Prompt
		return says("whole", nil)(ctx, j)
	}}, Options{})
	if r := ended(t, p, running); r.State != Completed || r.Attempts != 2 || r.Lost != 1 || r.RunID() != running+".1" || output(t, p, running) != "whole" {
		t.Errorf("it ran: %+v", r)
	}
	if r := ended(t, p, waiting); r.State != Completed || r.Attempts != 1 || r.Lost != 0 || output(t, p, waiting) != "whole" {
		t.Errorf("it was queued: %+v", r)
	}
	if a, b := <-prompts, <-prompts; a != "prompt" || b != "prompt" {
		t.Errorf("got the prompts %q and %q", a, b)
	}
	empty(t, p)
}

// TestReload wants tasks to run on when one configuration follows another.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	release := make(chan struct{})
	p := open(t, dir, &fakeRunner{run: func(_ context.Context, j Job) (Attempt, error) {
		r, w := io.Pipe()
		go func() { <-release; w.Close() }()
		return &fakeAttempt{Reader: r}, j.Begin(testWorker)
	}}, Options{})
	id := submit(t, p, "")
	until(t, p, id, "a task that runs", func(r *Record) bool { return r.State == Running })
	next := open(t, dir, &fakeRunner{run: says("", nil)}, Options{})
	if err := p.Cleanup(); err != nil {
		t.Fatal(err)
	}
	close(release)
	if r := ended(t, next, id); r.State != Completed || r.Attempts != 1 {
		t.Errorf("got %+v", r)
	}
	moved, err := New(Options{Dir: t.TempDir(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	if err := moved.Start(); err == nil || !strings.Contains(err.Error(), "restart") {
		t.Error(err)
	}
	_ = moved.Cleanup()
	if _, err := next.Get(t.Context(), "ann", id); err != nil {
		t.Error(err)
	}
}

// TestSecondStore wants a folder that is in use to be refused, soon and clearly.
func TestSecondStore(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, &fakeRunner{run: says("", nil)}, Options{})
	begun := time.Now()
	_, err := openStore(t.Context(), place{dir: dir}, zap.NewNop())
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), dir) || time.Since(begun) > 2*time.Second {
		t.Errorf("after %s: %v", time.Since(begun), err)
	}
}

// TestMend wants what a killed process left half done to have an end: a record without
// its place in the queue, and an end without its webhook.
func TestMend(t *testing.T) {
	dir := t.TempDir()
	s, err := openStore(t.Context(), place{dir: dir}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	half := &Record{ID: newID(time.Now(), 0), Owner: "ann", State: Queued, Created: time.Now()}
	untold := &Record{ID: newID(time.Now(), 0), Owner: "ann", State: Queued, Created: time.Now()}
	_ = untold.end(Completed, "", "")
	untold.Webhook = &Webhook{URL: "http://127.0.0.1:1/", State: WebhookPending}
	for _, r := range []*Record{half, untold} {
		if _, err := s.put(t.Context(), r, 0); err != nil {
			t.Fatal(err)
		}
	}
	s.close()
	p := open(t, dir, &fakeRunner{run: says("", nil)}, Options{})
	if r := ended(t, p, half.ID); r.State != Failed || r.Reason != ReasonNotAccepted {
		t.Errorf("got %+v", r)
	}
	until(t, p, untold.ID, "an attempt at the webhook", func(r *Record) bool { return r.Webhook.Attempts == 1 })
}

// TestOneEnd wants a task to have one end, whoever is first.
func TestOneEnd(t *testing.T) {
	s, err := openStore(t.Context(), place{dir: t.TempDir()}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for range 20 {
		r := &Record{ID: newID(time.Now(), 0), State: Running, Created: time.Now()}
		if _, err := s.put(t.Context(), r, 0); err != nil {
			t.Fatal(err)
		}
		won := make(chan State, 3)
		for _, state := range []State{Completed, Failed, Cancelled} {
			go func() {
				_, err := s.update(t.Context(), r.key(), func(r *Record) error { return r.end(state, "", "") })
				if err != nil {
					state = ""
				}
				won <- state
			}()
		}
		ends := []State{<-won, <-won, <-won}
		ends = slices.DeleteFunc(ends, func(s State) bool { return s == "" })
		now, _, err := s.get(t.Context(), r.key())
		if err != nil || len(ends) != 1 || now.State != ends[0] {
			t.Fatalf("%q won, and it is %+v, %v", ends, now, err)
		}
	}
}

// FuzzRecord wants any bytes to be refused or to be a record that stays what it is.
func FuzzRecord(f *testing.F) {
	r := &Record{ID: newID(time.Now(), 3), Owner: "ann", State: Queued, Created: time.Now(), Webhook: &Webhook{URL: "https://a.example", State: WebhookPending}}
	b, err := r.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"id":"task_` + strings.Repeat("0", 36) + `","state":"running","lost":-1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decode(b)
		if err != nil {
			return
		}
		if !ValidID(r.ID) || !r.State.Valid() || !ValidID(taskID(r.key())) || !strings.HasSuffix(inQueue(r.key()), r.key()) {
			t.Errorf("%q is %+v", b, r)
		}
		header, err := r.encodeHeader()
		if err != nil {
			return // too large
		}
		again, err := decodeHeader(header)
		if err != nil || again.ID != r.ID || again.State != r.State || again.key() != r.key() || !again.clone().Created.Equal(r.Created) {
			t.Errorf("%q: %+v became %+v, %v", b, r, again, err)
		}
	})
}
