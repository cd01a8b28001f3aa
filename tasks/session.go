// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
)

// maxPending is how many tasks of a lane are out of the queue at one time, with a goroutine
// each. Of them, those look for a worker that have a turn.
const maxPending = 512

// maxLists bounds how many lists are made at one time, and maxOwnLists those of one owner.
const (
	maxLists    = 4
	maxOwnLists = 2
)

// session is an open store and the work on what it holds.
type session struct {
	*service
	store   *store
	poster  *poster
	backlog backlog
	keyRoom keyRoom
	shares  roomShare
	listing chan struct{} // holds a place for each list that is being made
	lists   *turns        // of them, by owners
	silent  atomic.Bool   // in tests: other gateways hear nothing of it, nor it of them

	ctx     context.Context // of the work
	cancel  context.CancelCauseFunc
	running sync.WaitGroup
	reading sync.WaitGroup // those of them who take messages off the queues
	queues  []jetstream.MessagesContext

	turns *turns                    // of those who look for a worker
	lane  [len(lanes)]chan struct{} // hold those of each lane
	last  [len(lanes)]chan struct{} // hold those of each lane who look for the last time

	mu     sync.Mutex
	claims map[string]*claim // tasks under way, by their keys
	left   []jetstream.Msg   // of tasks and webhooks that were under way when the session ended
}

// claim is a task under way.
type claim struct {
	cancel context.CancelCauseFunc
	msg    jetstream.Msg
	taken  time.Time     // off the queue, once its record was read
	age    time.Duration // since its submission, then
	lost   atomic.Int64  // as of the attempt; with more, another gateway has taken the task
}

// open opens the store and begins to work.
func (s *service) open(log *zap.Logger) (*session, error) {
	store, err := openStore(s.ctx, s.place, log)
	if err != nil {
		return nil, err
	}
	store.wake, store.fault = s.followers.wake, s.limits.fault
	next := &session{service: s, store: store, poster: newPoster(s.limits.post), listing: make(chan struct{}, maxLists), lists: newTurns(maxOwnLists), turns: newTurns(maxTurns), claims: make(map[string]*claim)}
	for i := range next.last {
		next.lane[i], next.last[i] = make(chan struct{}, maxLaneTurns), make(chan struct{}, maxLastTurns)
	}
	next.ctx, next.cancel = context.WithCancelCause(s.ctx)
	if err := next.start(); err != nil {
		next.close()
		return nil, fmt.Errorf("opening the task store in %s: %w", s.place, err)
	}
	return next, nil
}

// start begins the work.
func (s *session) start() error {
	ctx, cancel := context.WithTimeout(s.ctx, startWait)
	defer cancel()
	if err := s.store.probe(ctx); err != nil {
		return err
	}
	last, err := s.store.lastMessage(ctx, recordName)
	if err != nil {
		return err
	}
	for _, lane := range lanes {
		if err := s.consume(ctx, s.store.queue, "gateway-"+string(lane), queueSubject+string(lane)+".>", maxPending, s.work); err != nil {
			return err
		}
	}
	// Of webhooks that wait for their next attempt there may be any number.
	if err := s.consume(ctx, s.store.webhooks, "gateway", hookSubject+">", -1, s.deliver); err != nil {
		return err
	}
	s.running.Go(s.holdLeases)
	s.running.Go(s.watch)
	s.running.Go(s.forget)
	s.running.Go(s.makeRoom)
	s.running.Go(s.storeEnds)
	if s.store.shared {
		return s.share(ctx)
	}
	s.running.Go(func() { s.sweep(last) })
	s.running.Go(s.sweepCalls)
	return nil
}

// consume begins to work on a queue, or a lane of it.
func (s *session) consume(ctx context.Context, queue jetstream.Stream, name, subjects string, limit int, work func(jetstream.MessagesContext)) error {
	messages, err := s.store.consume(ctx, queue, name, subjects, limit, s.limits.lease)
	if err != nil {
		return err
	}
	s.queues = append(s.queues, messages)
	s.reading.Go(func() { work(messages) })
	return nil
}

// close ends the work and closes the store.
func (s *session) close() {
	s.cancel(errClosing)
	// First: who waits for the next message of a queue that is stopped may wait for ever
	// (nats.go 1.52), when it has two pulls to renew by then.
	s.reading.Wait()
	// A drain waits for an answer, and a server that is away has none.
	drain := s.store.shared && s.store.conn.FlushTimeout(flushWait) == nil
	for _, messages := range s.queues {
		if drain {
			s.running.Go(func() { s.drain(messages) })
		} else {
			messages.Stop()
		}
	}
	s.running.Wait()
	if s.store.shared {
		// Another gateway need not wait until the lease is over. What is given back while
		// this one still asks for more comes to this one.
		s.mu.Lock()
		left := s.left
		s.mu.Unlock()
		for _, msg := range left {
			_ = msg.Nak()
		}
	}
	s.poster.close()
	s.store.close()
}

// drain ends a queue, and notes what has come of it to be given back. What it does not get to
// see in time comes again when its lease is over.
func (s *session) drain(messages jetstream.MessagesContext) {
	messages.Drain()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			msg, err := messages.Next(jetstream.NextMaxWait(flushWait))
			if err != nil {
				return
			}
			s.leave(msg)
		}
	}()
	late := time.NewTimer(2 * flushWait)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
	}
}

// sweep brings in order what a process has left that was killed: tasks that have begun and
// that nobody will take up, and webhooks that were not queued. What was written after the
// revision is none of that.
func (s *session) sweep(last uint64) {
	s.readThrough(&s.store.records, func(*Record, uint64) {})
	for _, key := range s.store.records.index.unfinished(last) {
		if s.ctx.Err() != nil {
			return
		}
		if r, revision, err := s.store.kept(s.ctx, key); err == nil && revision <= last {
			s.mend(r, revision)
		}
	}
}

// mend brings one record in order.
func (s *session) mend(r *Record, revision uint64) {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	if !r.State.Ended() {
		there, err := s.store.waiting(ctx, s.store.queue, inQueue(r.key()))
		if err != nil || there {
			return
		}
		_ = r.end(Failed, ReasonNotAccepted, "the gateway was stopped before the task was queued")
		if _, err := s.store.put(ctx, r, revision); err != nil {
			return
		}
		metrics.AsyncEnded(metrics.AsyncFailed)
	}
	if r.Webhook != nil && r.Webhook.State == WebhookPending {
		_ = s.settle(r.key())
	}
}

// submit accepts a task.
func (s *session) submit(ctx context.Context, r *Record, prompt string, limit int) error {
	if err := s.roomy(); err != nil {
		return err
	}
	if err := s.shares.check(r.Owner); err != nil {
		return err
	}
	r.note(nil)
	header, err := r.encodeHeader()
	if err != nil {
		return err
	}
	size := len(header.Get(recordHeader))
	if err := s.backlog.begin(ctx, s.store, r.Owner, limit, s.limits.records, moreRoom(size)); err != nil {
		return err
	}
	err = s.store.submit(ctx, r, header, prompt)
	s.backlog.end(err == nil, len(prompt)+max(recordSpace, size), moreRoom(size))
	return err
}

// cancelTask ends a task that its owner does not want any more.
func (s *session) cancelTask(ctx context.Context, key string) (*Record, error) {
	r, err := s.store.update(ctx, key, func(r *Record) error { return r.end(Cancelled, ReasonCancelled, "the task was cancelled") })
	if err == nil {
		metrics.AsyncEnded(metrics.AsyncCancelled)
	}
	if err != nil && !errors.Is(err, ErrEnded) {
		return r, err
	}
	if c := s.claimOf(key); c != nil {
		c.cancel(ErrCancelled)
		return r, err
	}
	// What waits in the queue leaves it now, and not when it is its turn. It may be the turn
	// of another gateway, which does that.
	if !s.store.shared && s.settle(key) == nil {
		s.store.dequeue(ctx, key)
	}
	return r, err
}
