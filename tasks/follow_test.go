// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// follow begins to follow a task of the owner "ann".
func follow(t *testing.T, p *Part, id string) *Follower {
	t.Helper()
	f, err := p.Follow(t.Context(), "client", "ann", id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

// told returns what is told of a task after a step, until all has been.
func told(t *testing.T, f *Follower, after int) string {
	t.Helper()
	var b strings.Builder
	for {
		events, err := f.Events(t.Context(), after)
		if err == io.EOF {
			return b.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			r := e.Record
			fmt.Fprintf(&b, "%d %s %s %s %d %s %v;", e.Number, e.Name, r.State, r.Reason, r.Attempts, r.Worker.Peer, r.Ended.IsZero())
			if after = e.Number; r.Webhook != nil && r.Webhook.URL == "" {
				t.Errorf("the webhook has lost its URL: %+v", r.Webhook)
			}
		}
	}
}

// TestFollowEvents wants each step of a task to be told once, in order, to who comes early
// and to who comes late.
func TestFollowEvents(t *testing.T) {
	gate := make(chan struct{})
	tries := 0
	runner := &fakeRunner{}
	runner.run = func(ctx context.Context, j Job) (Attempt, error) {
		<-gate
		if tries++; tries == 1 {
			return says("half", &Failure{Kind: Broken, Reason: "broken", Message: "it broke"})(ctx, j)
		}
		return says("whole", nil)(ctx, j)
	}
	p := open(t, t.TempDir(), runner, Options{})
	p.service.Load().limits.pause = short
	id := submit(t, p, "http://127.0.0.1:1/") // which is refused
	early := follow(t, p, id)
	close(gate)
	want := "1 queued queued  0  true;2 running running  1 peer true;3 queued queued broken 1 peer true;" +
		"4 running running  2 peer true;5 completed completed  2 peer false;"
	const webhook = "6 webhook completed  2 peer false;"
	if got := told(t, early, 0); got != want && got != want+webhook {
		t.Errorf("got %s", got)
	}
	until(t, p, id, "an attempt at the webhook", func(r *Record) bool { return r.Webhook.Attempts == 1 })
	want += webhook
	late := follow(t, p, id)
	if got := told(t, late, 0); got != want {
		t.Errorf("got %s", got)
	}
	if got := told(t, late, 4); !strings.HasSuffix(want, got) || !strings.HasPrefix(got, "5 ") {
		t.Errorf("got %s", got)
	}
	if got := told(t, late, 6); got != "" {
		t.Errorf("got %s", got)
	}
}

// TestSteps wants the latest steps to be kept, and their numbers to grow.
func TestSteps(t *testing.T) {
	r := &Record{State: Queued}
	r.note(nil)
	for range 100 {
		before := *r
		r.State, r.Worker = Running, testWorker
		r.Attempts++
		r.note(&before)
		r.note(r) // nothing has changed
		before = *r
		r.queue("", "")
		r.note(&before)
	}
	events := r.Events(0)
	if len(events) != maxSteps || r.LastStep() != 201 || events[0].Number != 201-maxSteps+1 {
		t.Errorf("got %d events, from %d to %d", len(events), events[0].Number, r.LastStep())
	}
	if e := events[1]; e.Name != "queued" && e.Name != "running" || e.Record.Attempts == 100 {
		t.Errorf("got %+v", e)
	}
}

// rest returns what is left of a followed output, and its end.
func rest(t *testing.T, f *Follower) (string, error) {
	t.Helper()
	var b strings.Builder
	for {
		piece, err := f.Output(t.Context())
		b.Write(piece)
		if err != nil {
			return b.String(), err
		}
	}
}

// TestFollowOutput wants an output to be followed from any offset, without gap or
// repetition.
func TestFollowOutput(t *testing.T) {
	r, w := io.Pipe()
	p := open(t, t.TempDir(), &fakeRunner{run: func(_ context.Context, j Job) (Attempt, error) {
		return &fakeAttempt{Reader: r}, j.Begin(testWorker)
	}}, Options{})
	id := submit(t, p, "")
	var want strings.Builder
	write := func(n int) {
		for range n {
			text := fmt.Sprintf("line %d\n", want.Len())
			want.WriteString(text)
			_, _ = io.WriteString(w, text)
			time.Sleep(short) // so that there are several pieces
		}
	}
	early := follow(t, p, id)
	if err := early.Seek(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	write(60)
	first, err := early.Output(t.Context())
	if err != nil || !strings.HasPrefix(want.String(), string(first)) || len(first) == 0 {
		t.Fatalf("got %q, %v", first, err)
	}
	if err := follow(t, p, id).Seek(t.Context(), 1<<20); !errors.Is(err, ErrOffset) {
		t.Errorf("beyond the end: %v", err)
	}
	resumed := follow(t, p, id)
	if err := resumed.Seek(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	write(60)
	w.Close()
	if got, err := rest(t, early); err != io.EOF || string(first)+got != want.String() {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := rest(t, resumed); err != io.EOF || got != want.String()[3:] {
		t.Errorf("got %q, %v", got, err)
	}
	for offset := range want.Len() + 1 {
		if offset%7 != 0 && offset != want.Len() {
			continue
		}
		f := follow(t, p, id)
		if err := f.Seek(t.Context(), int64(offset)); err != nil {
			t.Fatal(err)
		}
		if got, err := rest(t, f); err != io.EOF || got != want.String()[offset:] {
			t.Errorf("from %d: got %q, %v", offset, got, err)
		}
		f.Close()
	}
}

// TestFollowRestarted wants a follower to hear that an output begins anew.
func TestFollowRestarted(t *testing.T) {
	lose := make(chan error)
	p := open(t, t.TempDir(), &fakeRunner{run: func(_ context.Context, j Job) (Attempt, error) {
		r, w := io.Pipe()
		go func() {
			_, _ = io.WriteString(w, "so far")
			w.CloseWithError(<-lose)
		}()
		return &fakeAttempt{Reader: r}, j.Begin(testWorker)
	}}, Options{})
	id := submit(t, p, "")
	f := follow(t, p, id)
	if err := f.Seek(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if got, err := f.Output(t.Context()); err != nil || string(got) != "so far" {
		t.Fatalf("got %q, %v", got, err)
	}
	lose <- errors.New("stream reset")
	if got, err := f.Output(t.Context()); !errors.Is(err, ErrRestarted) {
		t.Errorf("got %q, %v", got, err)
	}
	lose <- nil
	ended(t, p, id)
}

// TestFollowers wants followers to be bounded, and to end with the store.
func TestFollowers(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{run: hangs("")}, Options{})
	id := submit(t, p, "")
	var all []*Follower
	for range maxFollowersOfOne {
		all = append(all, follow(t, p, id))
	}
	if _, err := p.Follow(t.Context(), "client", "ann", id); !errors.Is(err, ErrFollowing) {
		t.Error(err)
	}
	other, err := p.Follow(t.Context(), "other", "ann", id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Follow(t.Context(), "other", "bob", id); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	all[0].Close()
	all[0] = follow(t, p, id)
	for _, f := range all {
		f.Close()
		f.Close()
	}
	over := make(chan error, 2)
	go func() { _, err := other.Events(t.Context(), 2); over <- err }()
	f := follow(t, p, id)
	if err := f.Seek(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	go func() { _, err := f.Output(t.Context()); over <- err }()
	if err := p.Cleanup(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-over; !errors.Is(err, ErrOver) {
			t.Errorf("got %v", err)
		}
	}
	other.Close()
	if n := len(other.service.followers.byClient); n != 1 { // f
		t.Errorf("%d clients are left", n)
	}
}
