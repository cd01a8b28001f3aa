// SPDX-License-Identifier: Apache-2.0

// Package metrics holds the Prometheus metrics of the process. They outlive
// configurations, as the node and the agents do: each configuration registers
// the same collectors with its own registry, and counters go on.
//
// Labels are sets that are known beforehand; every one of their values is there,
// at zero, from the start. No peer, task, key or model is ever a label.
package metrics

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Status is how a task ended for its client.
type Status string

// Ends of a task.
const (
	// OK says that the agent succeeded.
	OK Status = "ok"
	// Error says that the agent, its worker or the way to it failed.
	Error Status = "error"
	// Rejected says that no worker took the task.
	Rejected Status = "rejected"
	// Timeout says that the task's time was up.
	Timeout Status = "timeout"
)

// Outcome is how one attempt to have a worker take a task ended.
type Outcome string

// Ends of an attempt.
const (
	// AttemptOK says that the worker's output began.
	AttemptOK Outcome = "ok"
	// AttemptBusy says that the worker refused because of its load.
	AttemptBusy Outcome = "busy"
	// AttemptFailed says that the worker failed before its first byte.
	AttemptFailed Outcome = "failed"
	// AttemptCancelled says that the client went away before its first byte.
	AttemptCancelled Outcome = "cancelled"
)

// Login is how the authentication of one request ended.
type Login string

// Ends of an authentication.
const (
	LoginOK          Login = "ok"
	LoginMissing     Login = "missing"
	LoginMalformed   Login = "malformed"
	LoginInvalid     Login = "invalid"
	LoginRateLimited Login = "rate_limited"
)

// Witnessed is what a witness of the ledger said to a head.
type Witnessed string

// Answers of a witness.
const (
	// WitnessSigned says that it signed.
	WitnessSigned Witnessed = "signed"
	// WitnessConflict says that it had signed a head of another size.
	WitnessConflict Witnessed = "conflict"
	// WitnessRefused says that the head was not one that a witness signs.
	WitnessRefused Witnessed = "refused"
	// WitnessFull says that it takes no more logs that it has no entries of.
	WitnessFull Witnessed = "full"
)

// Protocol is a protocol of the mesh.
type Protocol string

// Protocols whose streams are watched.
const (
	Task      Protocol = "task"
	Artifacts Protocol = "artifacts"
)

// Reason is why a stream failed.
type Reason string

// Reasons of a failure.
const (
	// Dial says that the stream could not be opened.
	Dial Reason = "dial"
	// Deadline says that the other side took too long.
	Deadline Reason = "deadline"
	// Reset says that the stream or its connection broke.
	Reset Reason = "reset"
	// Malformed says that what arrived was not what the protocol says.
	Malformed Reason = "malformed"
	// Refused says that this side did not wait for the stream.
	Refused Reason = "refused"
	// Local says that the fault was this side's, such as a full disk.
	Local Reason = "local"
)

var (
	tasks = newCounters("agentfm_tasks_total", "Tasks of this gateway that ended, by how.",
		"status", OK, Error, Rejected, Timeout)
	attempts = newCounters("agentfm_dispatch_attempts_total", "Attempts to have a worker take a task, by how they ended.",
		"outcome", AttemptOK, AttemptBusy, AttemptFailed, AttemptCancelled)
	logins = newCounters("agentfm_auth_attempts_total", "Requests that needed a key, by what came of it.",
		"outcome", LoginOK, LoginMissing, LoginMalformed, LoginInvalid, LoginRateLimited)
	witnessed = newCounters("agentfm_witness_answers_total", "Heads of others' logs that this node was to sign as their witness, by what it said.",
		"outcome", WitnessSigned, WitnessConflict, WitnessRefused, WitnessFull)
	streams = newStreams(
		[]Protocol{Task, Artifacts}, []Reason{Dial, Deadline, Reset, Malformed, Refused, Local})

	duration = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "agentfm_task_duration_seconds", Help: "Time from a task's arrival at this gateway to its end.",
		Buckets: []float64{1, 5, 15, 60, 180, 300, 600, 1800},
	})
	workersOnline = newGauge("agentfm_workers_online", "Workers whose telemetry this gateway hears.")
	queueWaiting  = newGauge("agentfm_queue_waiting", "Tasks that wait for a worker with room.")
	tasksInFlight = newGauge("agentfm_tasks_in_flight", "Tasks of this gateway that a worker has.")
	unreadable    = newGauge("agentfm_ledger_unreadable", "1 while the ledger cannot be read: no worker gets tasks, unless fail_open is set.")
	bytesSent     = newCounter("agentfm_artifact_bytes_sent_total", "Bytes of artifacts that the agents of this process sent.")
	built         = newCounter("agentfm_artifacts_built_total", "Artifacts that the agents of this process left.")
)

// collectors are all of them.
var collectors = []prometheus.Collector{
	tasks.vec, attempts.vec, logins.vec, witnessed.vec, streams, duration, workersOnline, queueWaiting, tasksInFlight, unreadable, bytesSent, built,
	requestDuration, firstToken, outputToken, tokenUsage,
	asyncRunning, asyncStored, asyncDropped, webhookStored, asyncEnds.vec, asyncWait, deliveries.vec, webhookEnds.vec, webhookDelay,
}

// Register registers the metrics with the registry of a configuration. It may be
// called any number of times, with one registry or several; nil is none.
func Register(reg *prometheus.Registry) error {
	if reg == nil {
		return nil
	}
	for _, c := range collectors {
		err := reg.Register(c)
		if already, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok && already.ExistingCollector == c {
			continue
		}
		if err != nil {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	return nil
}

// TaskEnded counts a task that this gateway took, and the time from its arrival
// to its end. A task whose client went away counts as it stood: [Error].
func TaskEnded(s Status, d time.Duration) {
	tasks.inc(s)
	duration.Observe(d.Seconds())
}

// Attempt counts one attempt to have a worker take a task.
func Attempt(o Outcome) { attempts.inc(o) }

// Auth counts a request that needed a key.
func Auth(l Login) { logins.inc(l) }

// Witness counts what this node said to a head as its witness.
func Witness(w Witnessed) { witnessed.inc(w) }

// StreamError counts a failure of a stream of the mesh, on either side.
func StreamError(p Protocol, r Reason) { streams.WithLabelValues(string(p), string(r)).Inc() }

// WorkersOnline says how many workers are online.
func WorkersOnline(n int) { workersOnline.Set(float64(n)) }

// Waiting adds to the tasks that wait for a worker: 1 when one begins to, -1
// when it ends.
func Waiting(n int) { queueWaiting.Add(float64(n)) }

// InFlight adds to the tasks that a worker has: 1 when it takes one, -1 at its end.
func InFlight(n int) { tasksInFlight.Add(float64(n)) }

// LedgerUnreadable says whether the ledger cannot be read.
func LedgerUnreadable(yes bool) {
	if yes {
		unreadable.Set(1)
	} else {
		unreadable.Set(0)
	}
}

// ArtifactBuilt counts an artifact that an agent of this process left.
func ArtifactBuilt() { built.Inc() }

// ArtifactSent adds to the bytes of artifacts that were sent.
func ArtifactSent(n int64) { bytesSent.Add(float64(n)) }

func newCounter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func newGauge(name, help string) prometheus.Gauge {
	return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
}

// newStreams returns the counter of failures, with every pair at zero.
func newStreams(protocols []Protocol, reasons []Reason) *prometheus.CounterVec {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "agentfm_stream_errors_total", Help: "Failures of streams of the mesh.",
	}, []string{"protocol", "reason"})
	for _, p := range protocols {
		for _, r := range reasons {
			vec.WithLabelValues(string(p), string(r))
		}
	}
	return vec
}

// counters is a counter with one label, whose values are those of L.
type counters[L ~string] struct {
	vec *prometheus.CounterVec
	by  map[L]prometheus.Counter
}

// newCounters returns a counter with every value of its label at zero.
func newCounters[L ~string](name, help, label string, values ...L) counters[L] {
	c := counters[L]{prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label}), make(map[L]prometheus.Counter)}
	for _, v := range values {
		c.by[v] = c.vec.WithLabelValues(string(v))
	}
	return c
}

func (c counters[L]) inc(v L) { c.by[v].Inc() }
