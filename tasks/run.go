// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// Limits of a task.
const (
	// QueueLimit is how long after its submission a task may wait for a worker.
	QueueLimit = 24 * time.Hour
	// OfflineLimit is how long a task waits while no worker is there that may take it.
	OfflineLimit = 10 * time.Minute
	// MaxLost is how often a task may be begun and broken off.
	MaxLost = 5

	// A task for which there was no room is tried again after minPause, and then after
	// ever longer, up to maxPause.
	minPause = 250 * time.Millisecond
	maxPause = 5 * time.Second
)

// Job is a task that is to be run.
type Job struct {
	Record *Record
	Prompt string
	// Begin is called before each worker is given the task. With an error, it is not.
	Begin func(Worker) error
}

// Runner runs tasks. It belongs to a site, of which it has the settings.
type Runner interface {
	// Run gives a task to a worker and returns when its output begins. The end of ctx
	// stops the task. An error that is no [*Failure] is an internal one.
	Run(ctx context.Context, j Job) (Attempt, error)
	// Failure makes an error of [Attempt.Read] one of those.
	Failure(err error) *Failure
}

// Attempt is a task that a worker runs.
type Attempt interface {
	// Read gives out the agent's output. io.EOF says that it succeeded.
	io.Reader
	// Close stops the task if it still runs.
	io.Closer
	// Keep keeps the files of the task, after io.EOF, under its own id, and reports
	// whether there are any.
	Keep() (bool, error)
}

// Kind says what to do about a failure.
type Kind int

// Kinds of failures.
const (
	// Final is the end of the task.
	Final Kind = iota
	// Busy says that no worker had room; no agent has begun.
	Busy
	// Away says that there was no worker, or none that could be reached; no agent has begun.
	Away
	// Broken says that an agent began, and that how it ended is not known.
	Broken
)

// Failure is why a task was not run to its end.
type Failure struct {
	Kind Kind
	// Reason is a code; Message says it to people.
	Reason, Message string
	// Err is for the log.
	Err error
}

// Error implements error.
func (f *Failure) Error() string { return f.Message }

// Unwrap returns what is for the log.
func (f *Failure) Unwrap() error { return f.Err }

// Causes of the end of a context of a task.
var (
	errClosing   = errors.New("the task store closes")
	errCancelled = errors.New("the task was cancelled")
)

// work takes tasks off the queue and runs them.
func (s *session) work(messages jetstream.MessagesContext) {
	for {
		msg, err := messages.Next()
		if err != nil {
			if errors.Is(err, jetstream.ErrMsgIteratorClosed) || s.ctx.Err() != nil {
				return
			}
			s.log().Warn("reading the queue of tasks", zap.Error(err))
			pause(s.ctx, time.Second)
			continue
		}
		s.running.Go(func() { s.handle(msg) })
	}
}

// handle sees a task of the queue to its end. It leaves it in the queue when the store
// closes, or fails.
func (s *session) handle(msg jetstream.Msg) {
	key := msg.Subject()[len(queueSubject):]
	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	if !s.claim(key, cancel) {
		return // its lease was lost while we had it: we have it still
	}
	defer s.unclaim(key)
	defer s.holdLease(msg)()
	for s.ctx.Err() == nil {
		t := &job{session: s, key: key}
		err := t.run(ctx)
		if errors.Is(context.Cause(ctx), errCancelled) { // its end is stored
			ctx, err = s.ctx, ErrEnded
		}
		if err == nil || errors.Is(err, ErrEnded) || errors.Is(err, ErrNotFound) {
			if err = s.settle(key); err == nil {
				err = s.acknowledge(msg)
			}
			if err == nil {
				return
			}
		}
		if s.ctx.Err() == nil {
			s.log().Warn("task store failed", zap.String("task", taskID(key)), zap.Error(err))
			pause(s.ctx, time.Second)
		}
	}
}

// acknowledge takes a message off its queue, and waits until that is stored.
func (s *session) acknowledge(msg jetstream.Msg) error {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	if err := msg.DoubleAck(ctx); err != nil {
		return s.store.failedTo(ctx, err)
	}
	return nil
}

// taskID returns the id of the task in a key.
func taskID(key string) string { return key[strings.LastIndexByte(key, '.')+1:] }

// claim notes that a task is being handled, and what cancels that.
func (s *session) claim(key string, cancel context.CancelCauseFunc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.claims[key]; ok {
		return false
	}
	s.claims[key] = cancel
	return true
}

// unclaim ends a claim.
func (s *session) unclaim(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.claims, key)
}

// holdLease keeps a message from being delivered again, until the function that it
// returns is called.
func (s *session) holdLease(msg jetstream.Msg) func() {
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(lease / 3)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_ = msg.InProgress()
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}

// settle does what follows a task's end. It may be done more than once.
func (s *session) settle(key string) error {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	r, _, err := s.store.get(ctx, key)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	case r.Webhook != nil && r.Webhook.State == WebhookPending:
		return s.store.queueWebhook(ctx, key)
	}
	return nil
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// job is a task under way.
type job struct {
	*session
	key    string
	record *Record   // as it was last written
	away   time.Time // since when no worker is there; zero when one is
	wait   time.Duration
}

// run sees the task to an end that is stored. The error is of the store, or of ctx.
func (j *job) run(ctx context.Context) error {
	if err := j.recover(ctx); err != nil {
		return err
	}
	for {
		failure := j.attempt(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if failure == nil {
			return nil
		}
		if errors.Is(failure.Err, ErrEnded) || errors.Is(failure.Err, ErrStore) || errors.Is(failure.Err, ErrNotFound) {
			return failure.Err
		}
		if failure = j.judge(failure); failure.Kind == Final {
			return j.end(ctx, Failed, failure.Reason, failure.Message)
		}
		if failure.Kind == Broken {
			if err := j.lose(ctx); err != nil {
				return err
			}
		}
		j.wait = min(max(2*j.wait, j.limits.pause), maxPause)
		pause(ctx, j.wait/2+rand.N(j.wait))
	}
}

// recover takes note of an attempt that was broken off with the process that made it.
func (j *job) recover(ctx context.Context) error {
	r, _, err := j.store.get(ctx, j.key)
	switch {
	case err != nil:
		return err
	case r.State.Ended():
		return ErrEnded
	}
	j.record = r
	if r.State == Running {
		if err := j.lose(ctx); err != nil {
			return err
		}
		if j.record.Lost >= MaxLost {
			return j.end(ctx, Failed, ReasonLost, "the task was begun and broken off too often")
		}
	}
	return nil
}

// lose notes that an attempt was lost. The task waits for a worker again.
func (j *job) lose(ctx context.Context) error {
	lost := j.record.Lost
	err := j.change(ctx, func(r *Record) {
		if r.Lost == lost { // or the answer to this change was lost
			r.Lost, r.State, r.Started = lost+1, Queued, time.Time{}
		}
	})
	if err == nil {
		j.store.forgetOutput(ctx, j.record, lost)
	}
	return err
}

// judge decides whether a failure is the end.
func (j *job) judge(f *Failure) *Failure {
	now := time.Now()
	switch f.Kind {
	case Busy:
		j.away = time.Time{}
		if now.Sub(j.record.Created) > QueueLimit {
			return &Failure{Reason: ReasonQueue, Message: "no worker had room for the task within " + QueueLimit.String()}
		}
	case Away:
		if j.away.IsZero() {
			j.away = now
		}
		if now.Sub(j.away) > j.limits.offline {
			if f.Reason != "" {
				return &Failure{Reason: f.Reason, Message: f.Message}
			}
			return &Failure{Reason: ReasonNoWorker, Message: "no worker that may take the task could be reached for " + j.limits.offline.String()}
		}
	case Broken:
		j.away = time.Time{}
		if j.record.Lost+1 >= MaxLost {
			return &Failure{Reason: cmp.Or(f.Reason, ReasonLost), Message: f.Message}
		}
	}
	return f
}

// attempt runs the task once, to its stored end when it succeeds.
func (j *job) attempt(ctx context.Context) *Failure {
	runner := j.runner(j.record.Site)
	if runner == nil {
		return &Failure{Kind: Away, Err: ErrNotRunning}
	}
	prompt, err := j.store.prompt(ctx, j.key)
	if err != nil {
		return &Failure{Err: err}
	}
	run, stop := context.WithCancel(ctx)
	defer stop()
	a, err := runner.Run(run, Job{Record: j.record, Prompt: prompt, Begin: func(w Worker) error { return j.begin(ctx, w) }})
	if err != nil {
		return asFailure(err)
	}
	defer a.Close()
	size, err := j.store.keepOutput(ctx, j.record, j.limits.output, a, stop)
	switch {
	case errors.Is(err, errTooMuch):
		return &Failure{Reason: ReasonOutput, Message: "the output is larger than a task's may be"}
	case errors.Is(err, ErrStore):
		return &Failure{Kind: Broken, Err: err}
	case err != nil:
		return runner.Failure(err)
	}
	files, err := a.Keep()
	if err != nil {
		return &Failure{Kind: Broken, Reason: "internal_error", Message: "the files could not be kept", Err: err}
	}
	if err := j.finish(ctx, Completed, "", "", func(r *Record) { r.Bytes, r.Files = size, files }); err != nil {
		return &Failure{Err: err}
	}
	return nil
}

// begin notes who is about to run the task. What has ended is not begun.
func (j *job) begin(ctx context.Context, w Worker) error {
	return j.change(ctx, func(r *Record) {
		r.State, r.Worker, r.Started = Running, w, time.Now().UTC()
		r.Attempts++
	})
}

// end stores the end of the task.
func (j *job) end(ctx context.Context, state State, reason, message string) error {
	return j.finish(ctx, state, reason, message, func(*Record) {})
}

// finish stores the end of the task, when it has none yet.
func (j *job) finish(ctx context.Context, state State, reason, message string, more func(*Record)) error {
	return j.change(ctx, func(r *Record) {
		_ = r.end(state, reason, message)
		more(r)
	})
}

// change changes the record of a task that has not ended.
func (j *job) change(ctx context.Context, change func(*Record)) error {
	r, err := j.store.update(ctx, j.key, func(r *Record) error {
		if r.State.Ended() {
			return ErrEnded
		}
		change(r)
		return nil
	})
	if r != nil {
		j.record = r
	}
	return err
}

// asFailure makes a failure of an error.
func asFailure(err error) *Failure {
	if f, ok := errors.AsType[*Failure](err); ok {
		return f
	}
	if errors.Is(err, ErrStore) {
		return &Failure{Kind: Broken, Err: err}
	}
	return &Failure{Reason: "internal_error", Message: "internal error", Err: err}
}
