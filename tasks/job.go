// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
)

// job is a task under way.
type job struct {
	*session
	key      string
	claim    *claim
	last     chan struct{}   // holds those of the lane who look for a worker for the last time
	own      chan struct{}   // holds those of the owner and the target who look for one
	lane     chan struct{}   // holds those of the lane who do
	turn     []chan struct{} // of these, those that hold this task; none while it does not look
	record   *Record         // as it was last written
	revision uint64          // of it
	count    State           // as which the metrics have it
	prompt   string          // empty when it is to be read again
	kept     int64           // how much output of the latest attempt is there
	lostAt   time.Time       // since when it waits again, after an attempt that was lost
	away     time.Time       // since when no worker is there; zero when one is
	wait     time.Duration
}

// run sees the task to an end that is stored. The error is of the store, or of ctx.
func (j *job) run(ctx context.Context) error {
	defer j.counts("")
	if err := j.recover(ctx); err != nil {
		return err
	}
	own, leave := j.turns.join(j.record.kind())
	defer leave()
	j.own = own
	defer j.endTurn()
	bounded, done := j.bounded(ctx)
	defer done()
	err := j.try(bounded)
	if errors.Is(context.Cause(bounded), errTimeout) && ctx.Err() == nil {
		return j.end(ctx, Failed, ReasonTimeout, "the task did not end within "+j.record.Bounds.Total.String())
	}
	return err
}

// try makes attempts until one is the last.
func (j *job) try(ctx context.Context) error {
	for {
		j.beginTurn(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
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
		result := failure.Kind == Final && j.record.State == Running
		if failure = j.judge(failure); failure.Kind == Final {
			own := j.record
			err := j.end(ctx, Failed, failure.Reason, failure.Message)
			if result {
				j.late(ctx, err, own, Failed, failure.Reason)
			}
			return err
		}
		if err := j.again(ctx, failure); err != nil {
			return err
		}
		if failure.Kind != Busy { // others for the target may have a worker that is there
			j.endTurn()
		}
		j.wait = min(max(2*j.wait, j.limits.pause), maxPause)
		pause(ctx, min(j.wait/2+rand.N(j.wait), max(minPause, j.queueLeft())))
	}
}

// beginTurn waits until the task may look for a worker, unless it does, or until ctx ends.
// When the time to wait is over, one look is due, which takes no turn of others.
func (j *job) beginTurn(ctx context.Context) {
	if len(j.turn) > 0 {
		return
	}
	late := time.NewTimer(j.queueLeft())
	defer late.Stop()
	var last chan struct{}
	for _, places := range []chan struct{}{j.own, j.lane} {
		select {
		case places <- struct{}{}: // also when it is late
			j.turn = append(j.turn, places)
			continue
		default:
		}
		for waits := true; waits; {
			select {
			case places <- struct{}{}:
				j.turn, waits = append(j.turn, places), false
			case last <- struct{}{}:
				j.endTurn()
				j.turn = append(j.turn, last)
				return
			case <-late.C:
				last = j.last
			case <-ctx.Done():
				return
			}
		}
	}
}

// endTurn lets another task look for a worker.
func (j *job) endTurn() {
	for _, places := range j.turn {
		<-places
	}
	j.turn = j.turn[:0]
}

// recover takes note of an attempt that was broken off with the process that made it.
func (j *job) recover(ctx context.Context) error {
	r, revision, err := j.store.kept(ctx, j.key)
	if errors.Is(err, ErrNotFound) { // nobody has begun it
		r, err = decodeHeader(nats.Header(j.claim.msg.Headers()))
	}
	switch {
	case err != nil:
		return err
	case r.State.Ended():
		return ErrEnded
	}
	j.record, j.revision = r, revision
	j.claim.meet(r, j.limits.now())
	j.claim.lost.Store(int64(r.Lost))
	if r.Lost > 0 {
		j.lostAt = time.Now()
	}
	if r.State == Running {
		if err := j.lose(ctx, ReasonStopped, "the gateway was stopped while the task ran"); err != nil {
			return err
		}
		if j.record.Lost >= j.record.Bounds.Attempts {
			return j.end(ctx, Failed, ReasonLost, "the task was begun and broken off too often")
		}
	}
	return nil
}

// again notes that the task waits for a worker again, as far as one had it.
func (j *job) again(ctx context.Context, f *Failure) error {
	switch {
	case f.Kind == Broken:
		return j.lose(ctx, cmp.Or(f.Reason, ReasonLost), f.Message)
	case j.record.State == Running: // no agent has begun
		return j.change(ctx, func(r *Record) { r.queue(f.Reason, f.Message) })
	}
	return nil
}

// lose notes that an attempt was lost, and why. The task waits for a worker again.
func (j *job) lose(ctx context.Context, reason, message string) error {
	lost := j.record.Lost
	j.kept = 0
	j.claim.lost.Store(int64(lost) + 1)
	j.lostAt = time.Now()
	err := j.change(ctx, func(r *Record) {
		r.Lost = lost + 1
		r.queue(reason, message)
	})
	if err == nil {
		j.store.forgetOutput(ctx, j.record, lost)
	}
	return err
}

// judge decides whether a failure is the end.
func (j *job) judge(f *Failure) *Failure {
	if (f.Kind == Busy || f.Kind == Away) && j.queueLeft() <= 0 {
		return &Failure{Reason: ReasonQueue, Message: "no worker took the task within " + j.record.Bounds.Queue.String()}
	}
	switch f.Kind {
	case Busy:
		j.away = time.Time{}
	case Away:
		if j.away.IsZero() {
			j.away = time.Now()
		}
		if time.Since(j.away) > j.limits.offline {
			if f.Reason != "" {
				return &Failure{Reason: f.Reason, Message: f.Message}
			}
			return &Failure{Reason: ReasonNoWorker, Message: "no worker that may take the task could be reached for " + j.limits.offline.String()}
		}
	case Broken:
		j.away = time.Time{}
		if j.record.Lost+1 >= j.record.Bounds.Attempts {
			return &Failure{Reason: cmp.Or(f.Reason, ReasonLost), Message: f.Message}
		}
	}
	return f
}

// attempt runs the task once, to its stored end when it succeeds.
func (j *job) attempt(ctx context.Context) *Failure {
	j.kept = 0
	runner := j.runner(j.record.Site)
	if runner == nil {
		return &Failure{Kind: Away, Err: ErrNotRunning}
	}
	prompt, err := j.readPrompt(ctx)
	if err != nil {
		return &Failure{Err: err}
	}
	run, stop := context.WithCancel(ctx)
	defer stop()
	a, err := runner.Run(run, Job{
		Record: j.record, Prompt: prompt, Wait: max(minPause, j.queueLeft()),
		Begin: func(w Worker) error { return j.begin(ctx, w) },
	})
	if err != nil {
		return asFailure(err)
	}
	defer a.Close()
	j.kept, err = j.store.keepOutput(ctx, j.record, j.limits.output, a, stop)
	switch {
	case errors.Is(err, errTooMuch):
		return &Failure{Reason: ReasonOutput, Message: "the output is larger than a task's may be"}
	case errors.Is(err, ErrStore):
		return &Failure{Kind: Broken, Err: err}
	case err != nil:
		return runner.Failure(err)
	}
	result := a.Result()
	own := j.record
	if err := j.finish(ctx, Completed, "", "", func(r *Record) { r.Result, r.Files = result, result.Artifact != nil }); err != nil {
		j.late(ctx, err, own, Completed, "")
		return &Failure{Err: err}
	}
	return nil
}

// smallPrompt is the size of a prompt that stays in memory while its task waits.
const smallPrompt = 4 << 10

// readPrompt returns the prompt of the task.
func (j *job) readPrompt(ctx context.Context) (string, error) {
	if j.prompt != "" {
		return j.prompt, nil
	}
	msg, err := j.store.queued(ctx, j.key)
	if err != nil {
		return "", err
	}
	if len(msg.Data) <= smallPrompt {
		j.prompt = string(msg.Data)
	}
	return string(msg.Data), nil
}

// begin notes who is about to run the task. What has ended is not begun.
func (j *job) begin(ctx context.Context, w Worker) error {
	defer j.endTurn()
	return j.change(ctx, func(r *Record) {
		r.State, r.Reason, r.Message, r.Worker, r.Started = Running, "", "", w, j.limits.now().UTC()
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
		r.Bytes = j.kept
		more(r)
	})
}

// change changes the record of a task that has not ended, and that this job has.
func (j *job) change(ctx context.Context, change func(*Record)) error {
	r, revision, err := j.store.updateFrom(ctx, j.key, j.record, j.revision, func(r *Record) error {
		switch {
		case r.State.Ended():
			return ErrEnded
		case !j.has(r):
			return errTaken
		}
		change(r)
		return nil
	})
	if r != nil && !errors.Is(err, errTaken) {
		j.record, j.revision = r, revision
	}
	if err == nil {
		j.counts(r.State)
	}
	return err
}

// counts has the metrics tell what becomes of the task; "" for leaving it.
func (j *job) counts(s State) {
	if s.Ended() {
		metrics.AsyncEnded(metrics.AsyncStatus(s))
	}
	switch {
	case s == Running && j.count != Running:
		metrics.AsyncRunning(1)
		if j.record.Attempts == 1 {
			metrics.AsyncStarted(j.record.Started.Sub(j.record.Created))
		}
	case s != Running && j.count == Running:
		metrics.AsyncRunning(-1)
	}
	j.count = s
}

// has reports whether nobody else has done anything with the task since this job did: who
// takes it begins another attempt, or notes the loss of this one.
func (j *job) has(r *Record) bool {
	return r.Attempts == j.record.Attempts && r.Lost == j.record.Lost && r.State == j.record.State
}

// late notes a result that came when the task had an end, or was another gateway's. The
// error is why.
func (j *job) late(ctx context.Context, why error, own *Record, state State, reason string) {
	if !errors.Is(why, ErrEnded) {
		return
	}
	late := LateResult{Attempt: own.Attempts, Worker: own.Worker, State: state, Reason: reason, At: j.limits.now().UTC()}
	_, err := j.store.update(ctx, j.key, func(r *Record) error {
		r.Late = append(r.Late, late)
		r.Late = r.Late[max(0, len(r.Late)-maxLate):]
		return nil
	})
	j.log().Warn("a result came too late", zap.String("task", taskID(j.key)), zap.String("worker", late.Worker.Peer),
		zap.Int("attempt", late.Attempt), zap.String("status", string(state)), zap.Error(err))
}
