// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/lifetime"
)

// services holds the one store of the process. It must outlive configurations: the folder
// can be open once, and tasks run on through a reload.
var services = caddy.NewUsagePool()

// serviceKey is the key of the store in the pool.
const serviceKey = "tasks"

// maxPending bounds how many tasks are out of the queue at one time.
const maxPending = MaxInFlight + 16

// maxPromptSpace is what a prompt may need in the queue, in bytes.
const maxPromptSpace = 1<<20 + 1<<10

// service is the open store and the work on what it holds.
type service struct {
	*lifetime.Lifetime[*Part]
	dir        string
	store      *store
	poster     *poster
	submitting atomic.Int64 // submissions under way

	ctx     context.Context // of the work
	cancel  context.CancelCauseFunc
	running sync.WaitGroup
	queues  []jetstream.MessagesContext

	mu     sync.Mutex
	claims map[string]context.CancelCauseFunc // tasks under way, by their keys

	limits limits // others in tests
}

// limits are those of each task.
type limits struct {
	offline, pause time.Duration // [OfflineLimit] and minPause
	output         int64         // [MaxOutput]
}

// openService opens the store in a folder and begins to work.
func openService(dir string, log *zap.Logger) (*service, error) {
	store, err := openStore(dir, log)
	if err != nil {
		return nil, err
	}
	s := &service{
		dir: dir, store: store, claims: make(map[string]context.CancelCauseFunc), poster: newPoster(),
		limits: limits{offline: OfflineLimit, pause: minPause, output: MaxOutput},
	}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.Lifetime = lifetime.New[*Part](s.shut)
	if err := s.start(); err != nil {
		s.Close()
		return nil, fmt.Errorf("opening the task store in %s: %w", dir, err)
	}
	return s, nil
}

// start begins the work.
func (s *service) start() error {
	ctx, cancel := context.WithTimeout(s.ctx, startWait)
	defer cancel()
	last, err := s.store.lastRevision(ctx)
	if err != nil {
		return err
	}
	if err := s.consume(ctx, s.store.queue, maxPending, s.work); err != nil {
		return err
	}
	// Of webhooks that wait for their next attempt there may be any number.
	if err := s.consume(ctx, s.store.webhooks, -1, s.deliver); err != nil {
		return err
	}
	s.running.Go(func() { s.sweep(last) })
	return nil
}

// consume begins to work on a queue.
func (s *service) consume(ctx context.Context, queue jetstream.Stream, limit int, work func(jetstream.MessagesContext)) error {
	messages, err := s.store.consume(ctx, queue, limit)
	if err != nil {
		return err
	}
	s.queues = append(s.queues, messages)
	s.running.Go(func() { work(messages) })
	return nil
}

// shut closes the store. Tasks that run are stopped; they are taken up when it is opened
// again. It runs once, through the Lifetime.
func (s *service) shut() {
	s.cancel(errClosing)
	for _, messages := range s.queues {
		messages.Stop()
	}
	s.running.Wait()
	s.poster.close()
	s.store.close()
}

// Destruct implements caddy.Destructor. Requests that use the store finish.
func (s *service) Destruct() error {
	s.Drain(stopWait)
	return nil
}

// log returns the logger of the newest configuration.
func (s *service) log() *zap.Logger {
	if p, ok := s.Newest(); ok {
		return p.options.Logger
	}
	return caddy.Log().Named("agentfm")
}

// runner returns who runs the tasks of a site: the site with the same settings of the
// newest configuration, or else its first; nil when there is none.
func (s *service) runner(site string) Runner {
	p, ok := s.Newest()
	if !ok {
		return nil
	}
	return p.runner(site)
}

// sweep brings in order what a process has left that was killed: tasks that it had not put
// into the queue, and whose clients it had not told that they were accepted, and webhooks
// that were not queued. What was written after the revision is none of that.
func (s *service) sweep(last uint64) {
	w, err := s.store.records.WatchAll(s.ctx, jetstream.IgnoreDeletes())
	if err != nil {
		s.log().Warn("looking for tasks that were not accepted", zap.Error(err))
		return
	}
	defer w.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case entry, ok := <-w.Updates():
			if !ok || entry == nil {
				return
			}
			if r, err := decode(entry.Value()); err == nil && entry.Revision() <= last {
				s.mend(r, entry.Revision())
			}
		}
	}
}

// mend brings one record in order.
func (s *service) mend(r *Record, revision uint64) {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	if !r.State.Ended() {
		there, err := waiting(ctx, s.store.queue, queueSubject+r.key())
		if err != nil || there {
			return
		}
		_ = r.end(Failed, ReasonNotAccepted, "the gateway was stopped before the task was queued")
		if err := s.store.put(ctx, r, revision); err != nil {
			return
		}
	}
	if r.Webhook != nil && r.Webhook.State == WebhookPending {
		_ = s.settle(r.key())
	}
}

// submit accepts a task.
func (s *service) submit(ctx context.Context, r *Record, prompt string, limit int) error {
	defer s.submitting.Add(-1)
	others := int(s.submitting.Add(1)) - 1
	queued, bytes, err := s.store.length(ctx, queueName)
	switch {
	case err != nil:
		return err
	case queued+others >= limit, bytes+uint64((others+1)*maxPromptSpace) > queueBytes:
		return ErrFull
	}
	return s.store.submit(ctx, r, prompt)
}

// cancelTask ends a task that its owner does not want any more.
func (s *service) cancelTask(ctx context.Context, key string) (*Record, error) {
	r, err := s.store.update(ctx, key, func(r *Record) error { return r.end(Cancelled, ReasonCancelled, "the task was cancelled") })
	if err == nil || errors.Is(err, ErrEnded) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if cancel, ok := s.claims[key]; ok {
			cancel(errCancelled)
		}
	}
	return r, err
}

// Interface guard
var _ caddy.Destructor = (*service)(nil)
