// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
)

// watchPause is how often the metrics learn what is in the queues.
const watchPause = 5 * time.Second

// watch tells the metrics what is in the queues, until the session ends.
func (s *session) watch() {
	defer metrics.Stored(0, 0)
	for s.ctx.Err() == nil {
		ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
		tasks, _, err := s.store.length(ctx, queueName)
		if err == nil {
			var webhooks int
			if webhooks, _, err = s.store.length(ctx, hookName); err == nil {
				metrics.Stored(tasks, webhooks)
			}
		}
		cancel()
		pause(s.ctx, watchPause)
	}
}

// outcome is how an attempt to deliver a webhook counts.
func (d Delivery) outcome() metrics.Delivery {
	switch {
	case d.Error != "":
		return metrics.Delivery(d.Error)
	case d.Status >= 200 && d.Status < 300:
		return metrics.Delivered
	}
	return metrics.DeliveryRefused
}

// countDelivery has the metrics tell of an attempt, after which the task is that.
func countDelivery(r *Record, d Delivery) {
	metrics.WebhookAttempt(d.outcome())
	if r.Webhook.Attempts == 1 {
		metrics.WebhookDelay(d.At.Sub(r.Ended))
	}
	if r.Webhook.State != WebhookPending {
		metrics.WebhookEnded(metrics.WebhookEnd(r.Webhook.State))
	}
}
