// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// values returns what a registry gives out, by name and labels.
func values(t *testing.T, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			out[f.GetName()+labels(m)] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return out
}

// labels returns the values of a metric's labels.
func labels(m *dto.Metric) string {
	var b strings.Builder
	for _, l := range m.GetLabel() {
		b.WriteString(" " + l.GetValue())
	}
	return b.String()
}

// TestRegister does what several handlers and reloads do: one registry twice,
// and a second one. What was counted goes on.
func TestRegister(t *testing.T) {
	first, second := prometheus.NewRegistry(), prometheus.NewRegistry()
	for _, reg := range []*prometheus.Registry{first, first, second, nil} {
		if err := Register(reg); err != nil {
			t.Fatal(err)
		}
	}
	before := values(t, first)
	TaskEnded(OK, time.Second)
	if got := values(t, second)["agentfm_tasks_total ok"]; got != before["agentfm_tasks_total ok"]+1 {
		t.Errorf("in the second registry: %v, was %v", got, before["agentfm_tasks_total ok"])
	}
	other := prometheus.NewRegistry()
	other.MustRegister(newGauge("agentfm_tasks_in_flight", "somebody else's"))
	if err := Register(other); err == nil {
		t.Error("another collector of our name was taken for ours")
	}
}

// TestCounts wants each function to move its own metric, and every label's value
// to be there before.
func TestCounts(t *testing.T) {
	reg := prometheus.NewRegistry()
	if err := Register(reg); err != nil {
		t.Fatal(err)
	}
	type count struct {
		do   func()
		name string
		by   float64
	}
	counts := []count{
		{func() { WorkersOnline(0) }, "agentfm_workers_online", 0},
		{func() { WorkersOnline(7) }, "agentfm_workers_online", 7},
		{func() { WorkersOnline(0) }, "agentfm_workers_online", -7}, // as before, for the next run
		{func() { Waiting(1) }, "agentfm_queue_waiting", 1},
		{func() { Waiting(-1) }, "agentfm_queue_waiting", -1},
		{func() { InFlight(1) }, "agentfm_tasks_in_flight", 1},
		{func() { InFlight(-1) }, "agentfm_tasks_in_flight", -1},
		{func() { LedgerUnreadable(true) }, "agentfm_ledger_unreadable", 1},
		{func() { LedgerUnreadable(false) }, "agentfm_ledger_unreadable", -1},
		{ArtifactBuilt, "agentfm_artifacts_built_total", 1},
		{func() { ArtifactSent(1000) }, "agentfm_artifact_bytes_sent_total", 1000},
		{func() { TaskEnded(OK, time.Minute) }, "agentfm_task_duration_seconds", 1},
		{func() { AsyncRunning(1) }, "agentfm_async_tasks_running", 1},
		{func() { AsyncRunning(-1) }, "agentfm_async_tasks_running", -1},
		{func() { Stored(5, 0) }, "agentfm_async_tasks_unfinished", 5},
		{func() { Stored(0, 7) }, "agentfm_webhooks_pending", 7},
		{func() { Stored(0, 0) }, "agentfm_webhooks_pending", -7},
		{func() { AsyncDropped(3) }, "agentfm_async_tasks_dropped_total", 3},
		{func() { AsyncStarted(time.Minute) }, "agentfm_async_queue_seconds", 1},
		{func() { WebhookDelay(time.Minute) }, "agentfm_webhook_delay_seconds", 1},
	}
	for _, s := range []Status{"ok", "error", "rejected", "timeout"} {
		counts = append(counts, count{func() { TaskEnded(s, 0) }, "agentfm_tasks_total " + string(s), 1})
	}
	for _, o := range []Outcome{"ok", "busy", "failed", "cancelled"} {
		counts = append(counts, count{func() { Attempt(o) }, "agentfm_dispatch_attempts_total " + string(o), 1})
	}
	for _, l := range []Login{"ok", "missing", "malformed", "invalid", "rate_limited"} {
		counts = append(counts, count{func() { Auth(l) }, "agentfm_auth_attempts_total " + string(l), 1})
	}
	for _, w := range []Witnessed{WitnessSigned, WitnessConflict, WitnessRefused, WitnessFull} {
		counts = append(counts, count{func() { Witness(w) }, "agentfm_witness_answers_total " + string(w), 1})
	}
	for _, p := range []Protocol{"task", "artifacts"} {
		for _, r := range []Reason{"dial", "deadline", "reset", "malformed", "refused", "local"} {
			counts = append(counts, count{func() { StreamError(p, r) }, "agentfm_stream_errors_total " + string(p) + " " + string(r), 1})
		}
	}
	for _, s := range []AsyncStatus{"completed", "failed", "cancelled"} {
		counts = append(counts, count{func() { AsyncEnded(s) }, "agentfm_async_tasks_ended_total " + string(s), 1})
	}
	for _, d := range []Delivery{"delivered", "refused", "timeout", "unreachable", "url_not_allowed"} {
		counts = append(counts, count{func() { WebhookAttempt(d) }, "agentfm_webhook_attempts_total " + string(d), 1})
	}
	for _, e := range []WebhookEnd{"delivered", "disabled", "given_up"} {
		counts = append(counts, count{func() { WebhookEnded(e) }, "agentfm_webhooks_ended_total " + string(e), 1})
	}
	for _, c := range counts {
		before, ok := values(t, reg)[c.name]
		if !ok {
			t.Errorf("%s is not there from the start", c.name)
		}
		c.do()
		if got := values(t, reg)[c.name] - before; got != c.by {
			t.Errorf("%s moved by %v, want %v", c.name, got, c.by)
		}
	}
}

// TestBuckets wants those that dashboards know.
func TestBuckets(t *testing.T) {
	var m dto.Metric
	if err := duration.Write(&m); err != nil {
		t.Fatal(err)
	}
	want := []float64{1, 5, 15, 60, 180, 300, 600, 1800}
	for i, b := range m.GetHistogram().GetBucket() {
		if i >= len(want) || b.GetUpperBound() != want[i] {
			t.Errorf("bucket %d is up to %v", i, b.GetUpperBound())
		}
	}
}
