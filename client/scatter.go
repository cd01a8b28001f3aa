// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// Settings of [TaskService.Scatter] where they are 0.
const (
	DefaultConcurrency    = 8
	DefaultScatterRetries = 2
)

// ScatterOptions are how prompts are spread over workers.
type ScatterOptions struct {
	// Peers are the peer ids of the workers.
	Peers []string
	// MaxConcurrency is how many tasks run at once, at most; 0 is 8.
	MaxConcurrency int
	// MaxRetries is how many more workers a prompt is given to when one fails; 0 is 2, and
	// less than 0 is none. An agent that fails half-way has run, and runs again.
	MaxRetries int
	// ArtifactsDir is as that of [RunRequest].
	ArtifactsDir string
	// OnResult is called with each result as it comes, one at a time; it may be nil.
	OnResult func(ScatterResult)
}

// ScatterStatus is how a prompt of a batch has ended.
type ScatterStatus string

// The ends of a prompt of a batch.
const (
	ScatterSuccess ScatterStatus = "success"
	ScatterFailed  ScatterStatus = "failed"
)

// ScatterResult is the result of one prompt.
type ScatterResult struct {
	// Index is that of the prompt.
	Index  int
	Status ScatterStatus
	// Err is why it failed; nil after a success. Each is an [*Error]. With one of
	// [ErrArtifact], the agent may have ended well, and no more than its files are missing.
	Err error
	// Result is what the task has given, also where its files could not be had. After
	// another failure, its WorkerID says who failed last, where anybody has.
	Result
	// Attempts is how many workers were given the prompt.
	Attempts int
}

// Scatter runs each prompt on one of the workers, many at once, and returns the results in
// the order of the prompts. A prompt whose worker fails goes to another, but not one of which
// the files alone are missing. One that fails all the same is a result, too, and ends
// nothing. The error is for options that cannot be worked with; when the context ends, the
// prompts that have no result have failed with that.
func (s *TaskService) Scatter(ctx context.Context, prompts []string, o ScatterOptions) ([]ScatterResult, error) {
	peers := slices.Compact(slices.Sorted(slices.Values(o.Peers)))
	switch {
	case len(peers) == 0 || peers[0] == "":
		return nil, invalid("peers", "there is no worker to give the prompts to, or one without a peer id")
	case o.MaxConcurrency < 0:
		return nil, invalid("max_concurrency", "max concurrency: want 0 or more")
	}
	if o.MaxConcurrency == 0 {
		o.MaxConcurrency = DefaultConcurrency
	}
	if o.MaxRetries == 0 {
		o.MaxRetries = DefaultScatterRetries
	}
	b := &batch{s: s, o: o, load: make(map[string]int, len(o.Peers)), results: make([]ScatterResult, len(prompts))}
	for _, p := range o.Peers { // in the order given: the first ones are asked first
		if !slices.Contains(b.peers, p) {
			b.peers = append(b.peers, p)
		}
	}
	b.run(ctx, prompts)
	return b.results, nil
}

// batch is a scatter under way.
type batch struct {
	s       *TaskService
	o       ScatterOptions
	peers   []string
	results []ScatterResult

	mu     sync.Mutex
	load   map[string]int // tasks that each worker has now
	begun  map[string]int // tasks that each was given
	locked error          // why no more are sent: the key is wrong

	told sync.Mutex // is for OnResult
}

// run runs the prompts.
func (b *batch) run(ctx context.Context, prompts []string) {
	b.begun = make(map[string]int, len(b.peers))
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(b.o.MaxConcurrency, len(prompts)) {
		workers.Go(func() {
			for i := range next {
				b.results[i] = b.prompt(ctx, i, prompts[i])
				b.tell(b.results[i])
			}
		})
	}
	for i := range prompts {
		next <- i
	}
	close(next)
	workers.Wait()
}

// tell calls OnResult.
func (b *batch) tell(r ScatterResult) {
	if b.o.OnResult == nil {
		return
	}
	b.told.Lock()
	defer b.told.Unlock()
	b.o.OnResult(r)
}

// prompt runs one prompt, on one worker after the other.
func (b *batch) prompt(ctx context.Context, i int, prompt string) ScatterResult {
	r := ScatterResult{Index: i, Status: ScatterFailed}
	begin := time.Now()
	var tried []string
	for {
		if r.Err = b.stopped(ctx); r.Err != nil {
			break
		}
		peer := b.take(tried)
		tried = append(tried, peer)
		result, err := b.s.Run(ctx, RunRequest{WorkerID: peer, Prompt: prompt, ArtifactsDir: b.o.ArtifactsDir})
		b.give(peer)
		r.Attempts++
		r.Err, r.Result = err, Result{} // nothing is left of an attempt before
		if result != nil {
			r.Result = *result
		}
		r.WorkerID = peer
		if err == nil {
			r.Status = ScatterSuccess
			break
		}
		e, _ := errors.AsType[*Error](err) // every error is one
		if errors.Is(err, ErrAuthentication) {
			b.lock(err)
		}
		if r.Attempts > b.o.MaxRetries || !e.otherMay() {
			break
		}
		if e.Kind == ErrWorkerNotFound && len(tried) < len(b.peers) {
			continue
		}
		if !pause(ctx, b.s.c.wait(r.Attempts-1, e.RetryAfter)) {
			continue // stopped says why
		}
	}
	r.Duration = time.Since(begin)
	return r
}

// otherMay reports whether another worker, or the same one later, may do what one could not.
// Where the files alone are missing, the agent has done it.
func (e *Error) otherMay() bool {
	switch e.Kind {
	case ErrWorkerNotFound, ErrWorkerUnreachable, ErrWorkerStream, ErrMeshOverloaded, ErrModelNotFound, ErrDispatchRefused,
		ErrConnection, ErrRateLimited, ErrUnavailable, ErrInternal:
		return true
	}
	return false
}

// stopped returns why no more prompts are sent: 30 wrong keys in a minute lock a client out.
func (b *batch) stopped(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return transportError(ctx, err, "waiting for a worker")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.locked
}

// lock lets no more prompts be sent.
func (b *batch) lock(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.locked = err
}

// take chooses a worker: one that was not tried, if there is any, then the one with the
// least to do, then the one that was given the least.
func (b *batch) take(tried []string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := ""
	if len(tried) > 0 {
		last = tried[len(tried)-1]
	}
	rank := func(p string) [3]int {
		rank := [3]int{0, b.load[p], b.begun[p]}
		if slices.Contains(tried, p) {
			rank[0] = 1
		}
		if p == last {
			rank[0] = 2
		}
		return rank
	}
	best := slices.MinFunc(b.peers, func(p, q string) int { x, y := rank(p), rank(q); return slices.Compare(x[:], y[:]) })
	b.load[best]++
	b.begun[best]++
	return best
}

// give notes that a worker has ended a task.
func (b *batch) give(peer string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.load[peer]--
}

// ScatterByModelOptions are how prompts are spread over the workers of a model.
type ScatterByModelOptions struct {
	// Model is the engine that the workers offer.
	Model string
	// Pick chooses among the workers that offer it, in its own order; nil takes all.
	Pick func([]Worker) []Worker
	// MaxWorkers is how many of those are used, the first ones; 0 is all.
	MaxWorkers int
	// ScatterOptions are those of [TaskService.Scatter]; Peers must be empty.
	ScatterOptions
}

// ScatterByModel is [TaskService.Scatter] over the workers of a model: those with room for
// a task, or if none has, all that are online. The error is [ErrModelNotFound] when there
// is none, or Pick takes none.
func (s *TaskService) ScatterByModel(ctx context.Context, prompts []string, o ScatterByModelOptions) ([]ScatterResult, error) {
	switch {
	case o.Model == "":
		return nil, invalid("model", "the model is missing")
	case len(o.Peers) > 0:
		return nil, invalid("peers", "the workers are chosen by the model; use Scatter for these")
	case o.MaxWorkers < 0:
		return nil, invalid("max_workers", "max workers: want 0 or more")
	}
	workers, err := s.c.Workers.List(ctx, WorkerFilter{Model: o.Model})
	if err != nil {
		return nil, err
	}
	if free := slices.DeleteFunc(slices.Clone(workers), func(w Worker) bool { return !w.Available() }); len(free) > 0 {
		workers = free
	}
	if o.Pick != nil && len(workers) > 0 {
		workers = o.Pick(workers)
	}
	if len(workers) == 0 {
		return nil, &Error{Kind: ErrModelNotFound, Code: CodeModelNotFound, Param: "model", Message: "no worker that is online offers the model, or none was picked"}
	}
	if o.MaxWorkers > 0 {
		workers = workers[:min(len(workers), o.MaxWorkers)]
	}
	for _, w := range workers {
		o.Peers = append(o.Peers, w.PeerID)
	}
	return s.Scatter(ctx, prompts, o.ScatterOptions)
}
