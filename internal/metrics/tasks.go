// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// AsyncStatus is how a submitted task ended.
type AsyncStatus string

// Ends of a submitted task.
const (
	AsyncCompleted AsyncStatus = "completed"
	AsyncFailed    AsyncStatus = "failed"
	AsyncCancelled AsyncStatus = "cancelled"
)

// Delivery is how an attempt to deliver a webhook ended.
type Delivery string

// Ends of an attempt.
const (
	// Delivered says that the receiver took it.
	Delivered Delivery = "delivered"
	// DeliveryRefused says that it answered with a status that is no success.
	DeliveryRefused Delivery = "refused"
	// DeliveryTimeout, DeliveryUnreachable and DeliveryNotAllowed say why there was no answer.
	DeliveryTimeout     Delivery = "timeout"
	DeliveryUnreachable Delivery = "unreachable"
	DeliveryNotAllowed  Delivery = "url_not_allowed"
)

// WebhookEnd is what came of a webhook in the end.
type WebhookEnd string

// Ends of a webhook.
const (
	WebhookDelivered WebhookEnd = "delivered"
	WebhookDisabled  WebhookEnd = "disabled"
	WebhookGivenUp   WebhookEnd = "given_up"
)

var (
	asyncRunning  = newGauge("agentfm_async_tasks_running", "Submitted tasks that this gateway has a worker run.")
	asyncStored   = newGauge("agentfm_async_tasks_unfinished", "Submitted tasks in the store that are queued or running.")
	webhookStored = newGauge("agentfm_webhooks_pending", "Webhooks in the store that are yet to be delivered.")

	asyncDropped = newCounter("agentfm_async_tasks_dropped_total", "Submitted tasks that had ended and were dropped before their time, for want of room.")
	asyncEnds    = newCounters("agentfm_async_tasks_ended_total", "Submitted tasks that this gateway saw to their end, by that.",
		"status", AsyncCompleted, AsyncFailed, AsyncCancelled)
	asyncWait = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "agentfm_async_queue_seconds", Help: "Time from a task's submission to its first start at a worker.",
		Buckets: []float64{0.1, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400},
	})
	deliveries = newCounters("agentfm_webhook_attempts_total", "Attempts to deliver a webhook, by how they ended.",
		"outcome", Delivered, DeliveryRefused, DeliveryTimeout, DeliveryUnreachable, DeliveryNotAllowed)
	webhookEnds = newCounters("agentfm_webhooks_ended_total", "Webhooks of which nothing more comes, by what came of them.",
		"status", WebhookDelivered, WebhookDisabled, WebhookGivenUp)
	webhookDelay = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "agentfm_webhook_delay_seconds", Help: "Time from a task's end to the first attempt to deliver its webhook.",
		Buckets: []float64{0.05, 0.25, 1, 5, 15, 60, 300, 3600},
	})
)

// AsyncRunning adds to the submitted tasks that a worker runs: 1 when one takes it, -1 when
// it has it no more.
func AsyncRunning(n int) { asyncRunning.Add(float64(n)) }

// Stored says how many tasks and webhooks the store has to see to an end.
func Stored(tasks, webhooks int) {
	asyncStored.Set(float64(tasks))
	webhookStored.Set(float64(webhooks))
}

// AsyncEnded counts the end of a submitted task.
func AsyncEnded(s AsyncStatus) { asyncEnds.inc(s) }

// AsyncDropped counts submitted tasks that had ended and were dropped early.
func AsyncDropped(n int) { asyncDropped.Add(float64(n)) }

// AsyncStarted counts the first start of a submitted task, and how long it has waited.
func AsyncStarted(waited time.Duration) { asyncWait.Observe(waited.Seconds()) }

// WebhookAttempt counts an attempt to deliver a webhook.
func WebhookAttempt(d Delivery) { deliveries.inc(d) }

// WebhookEnded counts a webhook of which nothing more comes.
func WebhookEnded(e WebhookEnd) { webhookEnds.inc(e) }

// WebhookDelay counts the first attempt to deliver a webhook, and how long it has waited.
func WebhookDelay(waited time.Duration) { webhookDelay.Observe(waited.Seconds()) }
