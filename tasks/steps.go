// SPDX-License-Identifier: Apache-2.0

package tasks

import "time"

// maxSteps is how many steps of a task are kept: the latest.
const maxSteps = 32

// Step is a change of a task that its owner can see. The steps are part of the record, and
// written with what they tell of: a record and what was told of it cannot differ. Kept as
// revisions of the record, which has three and more, they would need as much again for
// each, and the older ones would outlive the last.
type Step struct {
	// Number is 1 for the first step of a task, and grows by one.
	Number   int       `json:"n"`
	State    State     `json:"state"`
	Reason   string    `json:"reason,omitempty"`
	Message  string    `json:"message,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Attempts int       `json:"attempts,omitempty"`
	Worker   Worker    `json:"worker,omitzero"`
	Webhook  *Webhook  `json:"webhook,omitempty"` // where the step is an attempt to deliver it; without URL and base
}

// note adds a step when a change of the record is one.
func (r *Record) note(before *Record) {
	s := Step{Number: 1, State: r.State, Started: r.Started, Attempts: r.Attempts}
	if n := len(r.Steps); n > 0 {
		s.Number = r.Steps[n-1].Number + 1
	}
	told := before != nil && before.Webhook != nil && r.Webhook != nil &&
		(before.Webhook.State != r.Webhook.State || before.Webhook.Attempts != r.Webhook.Attempts)
	switch {
	case told:
		w := *r.Webhook
		w.URL, w.Base, w.History = "", "", w.History[max(0, len(w.History)-1):]
		s.Webhook = &w
	case before != nil && before.State == r.State && before.Attempts == r.Attempts && before.Lost == r.Lost:
		return
	}
	if !s.State.Ended() { // the end is in the record
		s.Reason, s.Message = r.Reason, r.Message
	}
	if s.State == Running {
		s.Worker = r.Worker
	}
	r.Steps = append(r.Steps, s)
	if n := len(r.Steps); n > maxSteps {
		r.Steps = r.Steps[n-maxSteps:]
	}
}

// Event is what is told of a step of a task.
type Event struct {
	Number int
	// Name is the state of the task after the step; or "webhook".
	Name string
	// Record is the task as it was then.
	Record *Record
}

// webhookEvent is the name of events that tell of webhooks.
const webhookEvent = "webhook"

// Events returns what is told of the steps after the one of a number.
func (r *Record) Events(after int) []Event {
	var events []Event
	var worker Worker
	for _, s := range r.Steps {
		if s.State == Running {
			worker = s.Worker
		}
		if s.Number <= after {
			continue
		}
		then := *r
		then.State, then.Attempts, then.Started, then.Worker = s.State, s.Attempts, s.Started, worker
		if !s.State.Ended() {
			then.Reason, then.Message, then.Ended, then.Bytes, then.Files, then.Result = s.Reason, s.Message, time.Time{}, 0, false, Result{}
		}
		e := Event{Number: s.Number, Name: string(s.State), Record: &then}
		if r.Webhook != nil {
			w := Webhook{State: WebhookPending}
			if s.Webhook != nil {
				w, e.Name = *s.Webhook, webhookEvent
			}
			w.URL, w.Base = r.Webhook.URL, r.Webhook.Base
			then.Webhook = &w
		}
		events = append(events, e)
	}
	return events
}

// LastStep is the number of the latest step.
func (r *Record) LastStep() int {
	if len(r.Steps) == 0 {
		return 0
	}
	return r.Steps[len(r.Steps)-1].Number
}
