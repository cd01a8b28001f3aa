// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/internal/webhook"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreCurrent(), // packages that a gateway imports start some
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"),       // ends up to 5 s after Caddy
		goleak.IgnoreTopFunction("github.com/caddyserver/certmagic.(*Cache).maintainAssets"), // told to end, not waited for
	)
}

// fakeRunner runs tasks as the test says.
type fakeRunner struct {
	run     func(ctx context.Context, j Job) (Attempt, error)
	signers map[string]*webhook.Signer // by the owners that have one

	mu   sync.Mutex
	jobs []string // the ids of the runs
	kept []string // and those whose files were kept
}

// Keep implements Runner.
func (f *fakeRunner) Keep(r *Record) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept = append(f.kept, r.RunID())
	return nil
}

// Run implements Runner.
func (f *fakeRunner) Run(ctx context.Context, j Job) (Attempt, error) {
	f.mu.Lock()
	f.jobs = append(f.jobs, j.Record.RunID())
	run := f.run
	f.mu.Unlock()
	return run(ctx, j)
}

// Failure implements Runner.
func (f *fakeRunner) Failure(err error) *Failure {
	if failure, ok := errors.AsType[*Failure](err); ok {
		return failure
	}
	return &Failure{Kind: Broken, Reason: "broken", Message: err.Error(), Err: err}
}

// Signer implements Runner.
func (f *fakeRunner) Signer(owner string) *webhook.Signer { return f.signers[owner] }

// seen returns the runs so far.
func (f *fakeRunner) seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.jobs
}

// fakeAttempt gives out a text, and then its end.
type fakeAttempt struct {
	io.Reader
	end   error // nil for success
	files bool
}

// Read implements Attempt.
func (a *fakeAttempt) Read(p []byte) (int, error) {
	n, err := a.Reader.Read(p)
	if err == io.EOF && a.end != nil {
		err = a.end
	}
	return n, err
}

// Close implements Attempt.
func (a *fakeAttempt) Close() error { return nil }

// Result implements Attempt.
func (a *fakeAttempt) Result() Result {
	if a.files {
		return Result{Artifact: &Artifact{Bytes: 1}}
	}
	return Result{}
}

// testWorker runs everything.
var testWorker = Worker{Peer: "peer", Agent: "agent", Model: "model"}

// says returns a run that begins and answers.
func says(text string, end error) func(context.Context, Job) (Attempt, error) {
	return func(_ context.Context, j Job) (Attempt, error) {
		if err := j.Begin(testWorker); err != nil {
			return nil, err
		}
		return &fakeAttempt{Reader: strings.NewReader(text), end: end}, nil
	}
}

// hangs returns a run that begins, says something, and ends with its context.
func hangs(text string) func(context.Context, Job) (Attempt, error) {
	return func(ctx context.Context, j Job) (Attempt, error) {
		if err := j.Begin(testWorker); err != nil {
			return nil, err
		}
		r, w := io.Pipe()
		context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()) })
		go func() { _, _ = io.WriteString(w, text) }()
		return &fakeAttempt{Reader: r}, nil
	}
}

// open returns a part that has the store of a folder open.
func open(t *testing.T, dir string, r Runner, o Options) *Part {
	t.Helper()
	o.Dir, o.Logger = dir, zap.NewNop()
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	p.Register("site", r)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Cleanup() })
	return p
}

// submit submits a task of the owner "ann".
func submit(t *testing.T, p *Part, webhook string) string {
	t.Helper()
	r, err := p.Submit(t.Context(), Submission{
		Owner: "ann", Site: "site", Target: Target{Worker: "peer"}, Prompt: "prompt", WebhookURL: webhook, Base: "https://gw.example",
	})
	if err != nil {
		t.Fatal(err)
	}
	return r.ID
}

// until waits until a task is as wanted.
func until(t *testing.T, p *Part, id, what string, want func(*Record) bool) *Record {
	t.Helper()
	var r *Record
	await.Until(t, what, func() bool {
		var err error
		r, err = p.Get(t.Context(), "ann", id)
		if errors.Is(err, ErrNotRunning) || errors.Is(err, ErrStore) { // it is being opened anew
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
		return want(r)
	})
	return r
}

// ended waits for the end of a task.
func ended(t *testing.T, p *Part, id string) *Record {
	t.Helper()
	return until(t, p, id, "the end of a task", func(r *Record) bool { return r.State.Ended() })
}

// output returns what is kept of a task's output.
func output(t *testing.T, p *Part, id string) string {
	t.Helper()
	var b strings.Builder
	err := p.Output(t.Context(), "ann", id, 0, func(_ *Record, o *Output) error {
		for {
			chunk, err := o.Next()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			b.Write(chunk)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// empty waits until nothing is queued.
func empty(t *testing.T, p *Part) {
	t.Helper()
	await.Until(t, "an empty queue", func() bool {
		n, _, err := p.service.Load().current.Load().store.length(t.Context(), queueName)
		if err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
}

// short is a time that a test does not wait for.
const short = 10 * time.Millisecond
