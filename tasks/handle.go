// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// Causes of the end of a context of a task.
var (
	errClosing = errors.New("the task store closes")
	// ErrCancelled says that the owner of a task cancelled it.
	ErrCancelled = errors.New("the task was cancelled")
	// errTaken is for this attempt as [ErrEnded] is for the task.
	errTaken = fmt.Errorf("%w here: another gateway has it", ErrEnded)
)

// work takes tasks off the queue and runs them.
func (s *session) work(messages jetstream.MessagesContext) {
	s.each(messages, "tasks", func(msg jetstream.Msg) {
		s.running.Go(func() { s.handle(msg) })
	})
}

// each takes messages off a queue of so called things, until the session ends.
func (s *session) each(messages jetstream.MessagesContext, things string, take func(jetstream.Msg)) {
	for {
		msg, err := messages.Next(jetstream.NextContext(s.ctx))
		if err != nil {
			if s.ctx.Err() != nil {
				return
			}
			if errors.Is(err, jetstream.ErrMsgIteratorClosed) { // somebody has removed the consumer
				_ = s.store.failedTo(s.ctx, err)
				return
			}
			if errors.Is(err, jetstream.ErrNoHeartbeat) {
				continue
			}
			s.log().Warn("reading the queue of "+things, zap.Error(err))
			pause(s.ctx, time.Second)
			continue
		}
		take(msg)
	}
}

// handle sees a task of the queue to its end. It leaves it in the queue when the store
// closes, or fails, or another gateway has it.
func (s *session) handle(msg jetstream.Msg) {
	key := msg.Subject()[len(queueSubject)+len("0."):]
	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	c := &claim{cancel: cancel, msg: msg}
	c.lost.Store(math.MaxInt64) // until the record was read
	if !s.claim(key, c) {
		return // its lease was lost while we had it: we have it still
	}
	defer s.unclaim(key)
	for s.ctx.Err() == nil {
		lane := strings.IndexByte(lanes, msg.Subject()[len(queueSubject)])
		t := &job{session: s, key: key, claim: c, lane: s.lane[lane], last: s.last[lane]}
		err := t.run(ctx)
		if errors.Is(context.Cause(ctx), ErrCancelled) { // its end is stored
			ctx, err = s.ctx, ErrEnded
		}
		if errors.Is(err, errDamaged) {
			s.log().Error("a task that cannot be read is given up", zap.String("task", taskID(key)), zap.Error(err))
			_ = msg.Term()
			return
		}
		if errors.Is(err, errTaken) {
			s.log().Warn("another gateway has taken a task", zap.String("task", taskID(key)))
			return
		}
		if err == nil || errors.Is(err, ErrEnded) || errors.Is(err, ErrNotFound) && s.gone(msg) {
			if err = s.settle(key); err == nil || errors.Is(err, ErrNotFound) && s.gone(msg) {
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
	s.leave(msg)
}

// leave notes a message to be given back when the session has ended, unless it was given back
// or acknowledged.
func (s *session) leave(msg jetstream.Msg) {
	if s.ctx.Err() == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = append(s.left, msg)
}

// acknowledge takes a message off its queue, and waits until that is written. The message
// itself is on disk first: otherwise, after a power cut, another of the same number would
// pass for done.
func (s *session) acknowledge(msg jetstream.Msg) error {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	meta, err := msg.Metadata()
	if err == nil {
		err = s.store.sync(meta.Stream, meta.Sequence.Stream)
	}
	if err == nil {
		_, err = step(s.store, "acknowledge", msg.Subject(), func() (any, error) {
			return patiently(ctx, s.store, func(ctx context.Context) (any, error) { return nil, msg.DoubleAck(ctx) })
		})
	}
	if err != nil && !s.store.shared { // of others it is delivered again
		err = s.store.failedTo(ctx, err)
	}
	return err
}

// gone reports whether the task of a message, which is not found, is kept no more. A server
// of a cluster may deliver a message before the one that is asked for it knows of it.
func (s *session) gone(msg jetstream.Msg) bool {
	meta, err := msg.Metadata()
	return err == nil && (!s.store.shared || time.Since(meta.Timestamp) > Keep)
}

// errBehind says that a server does not know yet what was acknowledged.
var errBehind = errors.New("a server of the cluster is behind the others")

// taskID returns the id of the task in a key.
func taskID(key string) string { return key[strings.LastIndexByte(key, '.')+1:] }

// claim notes that a task is being handled.
func (s *session) claim(key string, c *claim) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.claims[key]; ok {
		return false
	}
	s.claims[key] = c
	return true
}

// claimOf returns the claim of a task; nil when it is not being handled here.
func (s *session) claimOf(key string) *claim {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.claims[key]
}

// unclaim ends a claim.
func (s *session) unclaim(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.claims, key)
}

// holdLeases keeps the tasks that are being handled from being delivered again.
func (s *session) holdLeases() {
	for {
		pause(s.ctx, s.limits.lease/3)
		if s.ctx.Err() != nil {
			return
		}
		if s.silent.Load() {
			continue
		}
		s.mu.Lock()
		claims := slices.Collect(maps.Values(s.claims))
		s.mu.Unlock()
		for _, c := range claims {
			_ = c.msg.InProgress()
		}
	}
}

// settle does what follows a task's end. It may be done more than once.
func (s *session) settle(key string) error {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	r, _, err := s.store.get(ctx, key)
	switch {
	case err != nil:
		return err
	case !r.State.Ended():
		return errBehind
	}
	if r.State == Completed && r.Files && r.RunID() != r.ID {
		if runner := s.runner(r.Site); runner != nil {
			if err := runner.Keep(r); err != nil { // they have the id of their run still, and are found by it
				s.log().Warn("keeping the files of a task", zap.String("task", r.ID), zap.Error(err))
			}
		}
	}
	if r.Webhook != nil && r.Webhook.State == WebhookPending {
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
