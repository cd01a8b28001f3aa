// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// restLimit is how long a webhook waits at one time. The longest wait of the schedule is
// shorter.
const restLimit = 48 * time.Hour

// queueWebhook puts the webhook of a task into its queue, unless it is there.
func (s *store) queueWebhook(ctx context.Context, key string) error {
	there, err := s.waiting(ctx, s.webhooks, hookSubject+key)
	if err != nil || there {
		return err
	}
	if err := s.enqueue(ctx, s.webhooks, hookName, &nats.Msg{Subject: hookSubject + key}); err != nil {
		return s.failedTo(ctx, err)
	}
	return nil
}

// maxLooks bounds how many webhooks are looked at together, to see whether their time has
// come: with one after the other, those that wait would hold up those that do not.
const maxLooks = 32

// deliver takes webhooks off their queue and sends them.
func (s *session) deliver(messages jetstream.MessagesContext) {
	under, looks := newPosts(), make(chan struct{}, maxLooks)
	s.each(messages, "webhooks", func(msg jetstream.Msg) {
		looks <- struct{}{}
		s.running.Go(func() {
			defer s.leave(msg)
			key := msg.Subject()[len(hookSubject):]
			r, wait := s.due(msg, key)
			<-looks
			switch {
			case s.ctx.Err() != nil: // see leave
			case wait > 0:
				_ = msg.NakWithDelay(min(wait, s.limits.rest))
			case r != nil:
				s.tell(msg, key, r, under)
			}
		})
	})
}

// due returns the task of a webhook that is to be sent now, or else how long it waits. What
// is not to be sent at all it takes off the queue.
func (s *session) due(msg jetstream.Msg, key string) (*Record, time.Duration) {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	r, _, err := s.store.get(ctx, key)
	switch {
	case errors.Is(err, ErrNotFound) && s.gone(msg), err == nil && (r.Webhook == nil || r.Webhook.State != WebhookPending):
		_ = s.acknowledge(msg)
		return nil, 0
	case err != nil, !r.State.Ended(): // see errBehind
		return nil, 5 * time.Second
	}
	return r, r.Webhook.wait(s.limits.now())
}

// tell sends a webhook when there is a place, and otherwise gives it back.
func (s *session) tell(msg jetstream.Msg, key string, r *Record, under *posts) {
	host, begun := hostOf(r.Webhook.URL), time.Now()
	if wait, ok := under.begin(r.Owner, host, begun); !ok {
		_ = msg.NakWithDelay(wait)
		return
	}
	defer func() { under.end(r.Owner, host, time.Since(begun)) }()
	s.send(msg, key, r)
}

// send makes one attempt, stores how it went, and then takes the message off the queue or
// gives it back.
func (s *session) send(msg jetstream.Msg, key string, r *Record) {
	p, ok := s.Newest()
	if !ok { // nobody knows the secret
		_ = msg.NakWithDelay(time.Second)
		return
	}
	attempt, begun := r.Webhook.Attempts, s.limits.now().UTC()
	status, wait, err := s.poster.post(s.ctx, r, p.signerFor(r), begun)
	if s.ctx.Err() != nil {
		return // it is sent again; receivers tell by the id that it is the same
	}
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	d := Delivery{At: begun, Took: s.limits.now().Sub(begun), Status: status, Error: errorCode(err)}
	r, uerr := s.store.update(ctx, key, func(r *Record) error {
		if r.Webhook.State == WebhookPending && r.Webhook.Attempts == attempt {
			r.Webhook.attempted(d, wait)
		}
		return nil
	})
	if uerr != nil {
		_ = msg.NakWithDelay(5 * time.Second)
		return
	}
	countDelivery(r, d)
	if r.Webhook.State == WebhookPending {
		_ = msg.NakWithDelay(max(0, min(r.Webhook.wait(s.limits.now()), s.limits.rest)))
		return
	}
	if r.Webhook.State != WebhookDelivered {
		s.log().Warn("a webhook was not delivered", zap.String("task", r.ID), zap.String("state", string(r.Webhook.State)),
			zap.Int("attempts", r.Webhook.Attempts), zap.Int("status", status), zap.String("error", d.Error))
	}
	_ = s.acknowledge(msg)
}
