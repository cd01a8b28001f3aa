// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"net/url"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// How many webhooks are under way at one time, and how many of them to one host: one
// receiver that is slow does not hold up the others.
const (
	maxPosts     = 64
	maxHostPosts = 4

	// A webhook for which there was no place comes again after postPause, or after the
	// longer, up to maxPostPause, the more of them there are.
	postPause    = 500 * time.Millisecond
	maxPostPause = time.Minute

	// restLimit is how long a webhook waits at one time. The longest wait of the schedule
	// is shorter.
	restLimit = 48 * time.Hour
)

// queueWebhook puts the webhook of a task into its queue, unless it is there.
func (s *store) queueWebhook(ctx context.Context, key string) error {
	there, err := s.waiting(ctx, s.webhooks, hookSubject+key)
	if err != nil || there {
		return err
	}
	if err := s.enqueue(ctx, s.webhooks, hookSubject+key, nil); err != nil {
		return s.failedTo(ctx, err)
	}
	return nil
}

// posts counts the webhooks that are under way, by their hosts.
type posts struct {
	mu    sync.Mutex
	total int
	hosts map[string]*hostPosts
}

// hostPosts are those to one host.
type hostPosts struct{ under, refused int }

// begin reports whether one more may go to a host; and if not, when to ask again.
func (p *posts) begin(host string) (wait time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.hosts[host]
	switch {
	case h == nil && p.total >= maxPosts:
		return postPause, false
	case h == nil:
		h = new(hostPosts)
		p.hosts[host] = h
	case p.total >= maxPosts, h.under >= maxHostPosts:
		h.refused++
		return min(postPause*time.Duration(1+h.refused/maxHostPosts), maxPostPause), false
	}
	p.total++
	h.under++
	h.refused /= 2
	return 0, true
}

// end ends one.
func (p *posts) end(host string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total--
	h := p.hosts[host]
	if h.under--; h.under == 0 {
		delete(p.hosts, host)
	}
}

// deliver takes webhooks off their queue and sends them.
func (s *session) deliver(messages jetstream.MessagesContext) {
	under := &posts{hosts: make(map[string]*hostPosts)}
	s.each(messages, "webhooks", func(msg jetstream.Msg) { s.tell(msg, under) })
}

// tell sends the webhook of a message when it is time, and otherwise gives it back.
func (s *session) tell(msg jetstream.Msg, under *posts) {
	key := msg.Subject()[len(hookSubject):]
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	r, _, err := s.store.get(ctx, key)
	if errors.Is(err, ErrNotFound) || err == nil && (r.Webhook == nil || r.Webhook.State != WebhookPending) {
		_ = s.acknowledge(msg)
		return
	}
	if err != nil {
		_ = msg.NakWithDelay(5 * time.Second)
		return
	}
	if wait := r.Webhook.Next.Sub(s.limits.now()); wait > 0 {
		_ = msg.NakWithDelay(min(wait, s.limits.rest))
		return
	}
	host := ""
	if u, err := url.Parse(r.Webhook.URL); err == nil {
		host = u.Hostname()
	}
	if wait, ok := under.begin(host); !ok {
		_ = msg.NakWithDelay(wait)
		return
	}
	s.running.Go(func() {
		defer under.end(host)
		s.send(msg, key, r)
	})
}

// send makes one attempt, stores how it went, and then takes the message off the queue or
// gives it back.
func (s *session) send(msg jetstream.Msg, key string, r *Record) {
	p, ok := s.Newest()
	if !ok { // nobody knows the secret
		_ = msg.NakWithDelay(postPause)
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
	if r.Webhook.State == WebhookPending {
		_ = msg.NakWithDelay(max(0, min(r.Webhook.Next.Sub(s.limits.now()), s.limits.rest)))
		return
	}
	if r.Webhook.State != WebhookDelivered {
		s.log().Warn("a webhook was not delivered", zap.String("task", r.ID), zap.String("state", string(r.Webhook.State)),
			zap.Int("attempts", r.Webhook.Attempts), zap.Int("status", status), zap.String("error", d.Error))
	}
	_ = s.acknowledge(msg)
}
