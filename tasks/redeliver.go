// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"time"
)

// Errors of [Part.Redeliver].
var (
	// ErrNoWebhook says that the task has none.
	ErrNoWebhook = errors.New("the task has no webhook")
	// ErrPending says that the webhook is yet to be delivered.
	ErrPending = errors.New("the webhook is yet to be delivered")
	// ErrTooSoon says that the last attempt is less than [RedeliverAfter] ago.
	ErrTooSoon = errors.New("the webhook was sent a moment ago")
)

// RedeliverAfter is how long after the last attempt a webhook can be sent again. By then
// it is off its queue.
const RedeliverAfter = 10 * time.Second

// Redeliver begins anew to deliver the webhook of a task of an owner, whatever came of it
// before.
func (p *Part) Redeliver(ctx context.Context, owner, id string) (*Record, error) {
	s, release, err := p.use()
	if err != nil {
		return nil, err
	}
	defer release()
	if !ValidID(id) {
		return nil, ErrNotFound
	}
	// The client's going away does not undo half of it.
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer done()
	key := (&Record{Owner: owner, ID: id}).key()
	r, err := s.store.update(ctx, key, func(r *Record) error { return r.Webhook.again(s.limits.now()) })
	if errors.Is(err, ErrPending) && r.State.Ended() { // should the queue not have had room for it
		_ = s.store.queueWebhook(ctx, key)
	}
	if err != nil {
		return nil, err
	}
	return r, s.store.queueWebhook(ctx, key)
}

// again begins the schedule anew.
func (w *Webhook) again(now time.Time) error {
	switch {
	case w == nil:
		return ErrNoWebhook
	case w.State == WebhookPending && w.Next.Sub(now) <= longestWait:
		return ErrPending
	}
	last := w.Last()
	if since := now.Sub(last.At.Add(last.Took)); since >= 0 && since < RedeliverAfter {
		return ErrTooSoon
	}
	w.State, w.Earlier, w.Next = WebhookPending, w.Attempts, time.Time{}
	return nil
}
