// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// State is how far a task has come.
type State string

// The states of a task. The last three are its end, of which it has one.
const (
	Queued    State = "queued"
	Running   State = "running"
	Completed State = "completed"
	Failed    State = "failed"
	Cancelled State = "cancelled"
)

// States are all of them.
var States = []State{Queued, Running, Completed, Failed, Cancelled}

// Valid reports whether s is one of [States].
func (s State) Valid() bool { return slices.Contains(States, s) }

// Ended reports whether a task in this state has ended.
func (s State) Ended() bool { return s == Completed || s == Failed || s == Cancelled }

// Reasons for the end of a task that this package gives. Others come from whoever
// runs it.
const (
	// ReasonCancelled says that the client did not want it any more.
	ReasonCancelled = "cancelled"
	// ReasonQueue says that no worker took the task in the time that it may wait for one.
	ReasonQueue = "queue_timeout"
	// ReasonNoWorker says that no worker was there to take it for [OfflineLimit].
	ReasonNoWorker = "no_worker_online"
	// ReasonLost says that the task was begun and broken off too often.
	ReasonLost = "attempts_lost"
	// ReasonTimeout says that the task did not end in the time that it had in all.
	ReasonTimeout = "timeout"
	// ReasonOutput says that the output is over [MaxOutput].
	ReasonOutput = "output_too_large"
	// ReasonStopped says that the gateway was stopped, or killed, while the task ran.
	ReasonStopped = "gateway_stopped"
	// ReasonNotAccepted says that the task did not get into the queue: its client was
	// not told that it was accepted.
	ReasonNotAccepted = "not_accepted"
)

// Target says who may run a task.
type Target struct {
	// Worker is the peer id of the one worker; or else Model is a peer id, the name of
	// an agent or a model engine.
	Worker string `json:"worker,omitempty"`
	Model  string `json:"model,omitempty"`
	// Only is the one worker that the client wants of those that match; empty for any.
	Only string `json:"only,omitempty"`
	// Exclude are peer ids of workers that the client does not want.
	Exclude []string `json:"exclude,omitempty"`
	// Models are those that the client's key may use, when Limited.
	Models  []string `json:"models,omitempty"`
	Limited bool     `json:"limited,omitempty"`
}

// Worker is who runs a task.
type Worker struct {
	Peer  string `json:"peer_id"`
	Agent string `json:"agent"`
	Model string `json:"model"`
}

// Record is what is kept of a task.
type Record struct {
	ID string `json:"id"`
	// Owner is the user or the name of the key that submitted the task; empty where
	// nobody is told apart.
	Owner string `json:"owner"`
	// Sync says that the client waits for the task, and gets the output: see [Call]. Holder
	// is the process that runs it.
	Sync   bool   `json:"sync,omitempty"`
	Holder string `json:"holder,omitempty"`
	// Keyed says that the task was submitted with an idempotency key.
	Keyed bool `json:"keyed,omitempty"`
	// Site names the settings of the site that took the task; see [Part.Register].
	Site   string `json:"site"`
	Target Target `json:"target"`
	Bounds Bounds `json:"bounds,omitzero"`
	// PromptSize is in bytes. The prompt itself is in the queue, as long as the task is.
	PromptSize int `json:"prompt_size"`

	State State `json:"state"`
	// Reason is a code that says why the task ended as it did, empty when it completed; or why
	// it waits for a worker again. Message says it to people.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`

	Created time.Time `json:"created"`
	Started time.Time `json:"started,omitzero"` // the latest attempt
	Ended   time.Time `json:"ended,omitzero"`

	// Attempts counts the workers that were given the task.
	Attempts int `json:"attempts"`
	// Lost counts how often the task was begun and broken off: by the death of the
	// gateway, or of the connection to the worker. Output and files are kept apart by it.
	Lost   int    `json:"lost"`
	Worker Worker `json:"worker,omitzero"` // of the latest attempt

	// Bytes is the size of the output that is kept, once ended but for a task that was
	// cancelled; Files says that there are files, Result says more of them, once completed.
	Bytes  int64  `json:"bytes"`
	Files  bool   `json:"files,omitempty"`
	Result Result `json:"result,omitzero"`

	// Late are the newest results that came when the task had an end, or was another
	// gateway's. They changed nothing.
	Late []LateResult `json:"late,omitempty"`

	Webhook *Webhook `json:"webhook,omitempty"`

	Steps []Step `json:"steps,omitempty"`
}

// LateResult is the result of an attempt that does not count.
type LateResult struct {
	Attempt int       `json:"attempt"`
	Worker  Worker    `json:"worker,omitzero"`
	State   State     `json:"state"`
	Reason  string    `json:"reason,omitempty"`
	At      time.Time `json:"at"`
}

// maxLate bounds how many late results are kept.
const maxLate = 8

// RunID is the id of the task on the mesh. After the loss of an attempt it is another:
// what that one still delivers is none of the new one.
func (r *Record) RunID() string { return r.runID(r.Lost) }

// LostRunID is the one before it; empty for none.
func (r *Record) LostRunID() string {
	if r.Lost == 0 {
		return ""
	}
	return r.runID(r.Lost - 1)
}

// runID is the id after so many losses.
func (r *Record) runID(lost int) string {
	if lost == 0 {
		return r.ID
	}
	return fmt.Sprintf("%s.%d", r.ID, lost)
}

// key is the record's place in the store. It begins with the owner's: what is another's
// is not found.
func (r *Record) key() string {
	if r.Sync {
		return ownerKey(r.Owner) + "." + callToken(r.ID)
	}
	return ownerKey(r.Owner) + "." + r.ID
}

// order says when the task was submitted.
func (r *Record) order() order {
	if !r.Sync {
		return orderOf(r.ID)
	}
	return orderOf(fmt.Sprintf("%012x", r.Created.UnixMilli()) + strings.TrimPrefix(callToken(r.ID), callPrefix))
}

// ownerKey is the part of a key for an owner, whose name may have any form.
func ownerKey(owner string) string {
	sum := sha256.Sum256([]byte(owner))
	return hex.EncodeToString(sum[:16])
}

// mintedID is the form of the ids of this package.
var (
	mintedID = regexp.MustCompile(`^task_[0-9a-f]{36}$`)
	runID    = regexp.MustCompile(`^task_[0-9a-f]{36}(\.[0-9]+)?$`)
)

// ValidID reports whether id has the form of the ids that this package gives to tasks.
func ValidID(id string) bool { return mintedID.MatchString(id) }

// Reserved reports whether id has the form of those by which such tasks go on the mesh; see
// [Record.RunID]. What has it belongs to their owners.
func Reserved(id string) bool { return runID.MatchString(id) }

// NewID returns an id for a task of an owner and for a target.
func NewID(owner string, target Target) string { return newID(time.Now(), laneOf(owner, target)) }

// newID returns a fresh id: "task_", the time in milliseconds and a random number, whose
// last digit is that of a lane. Later ids are greater.
func newID(now time.Time, lane byte) string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails: see crypto/rand
	b[11] = b[11]&0xf0 | lane&0x0f
	return fmt.Sprintf("task_%012x%s", now.UnixMilli(), hex.EncodeToString(b[:]))
}

// lanes are the parts of the queue, by their digits.
const lanes = "0123456789abcdef"

// laneOf returns the lane of the tasks of an owner for a target. They wait behind each
// other, and not, or seldom, behind those of others.
func laneOf(owner string, target Target) byte {
	sum := sha256.Sum256([]byte(owner + "\x00" + target.Worker + "\x00" + target.Model))
	return sum[0] & 0x0f
}

// clone returns a copy, which can be changed.
func (r *Record) clone() *Record {
	c := *r
	c.Late, c.Steps = slices.Clone(r.Late), slices.Clone(r.Steps)
	if r.Webhook != nil {
		webhook := *r.Webhook
		webhook.History = slices.Clone(r.Webhook.History)
		c.Webhook = &webhook
	}
	return &c
}

// encode returns the record as it is stored.
func (r *Record) encode() ([]byte, error) {
	b, err := json.Marshal(r)
	if err == nil && len(b) > maxRecord {
		err = fmt.Errorf("the record of task %s has %d bytes, and at most %d are kept", r.ID, len(b), maxRecord)
	}
	return b, err
}

// decode reads a stored record.
func decode(b []byte) (*Record, error) {
	r := new(Record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamaged, err)
	}
	if r.Sync == ValidID(r.ID) || !callID.MatchString(r.ID) || !r.State.Valid() {
		return nil, errDamaged
	}
	r.Bounds.Attempts, r.Bounds.Queue = cmp.Or(r.Bounds.Attempts, MaxLost), cmp.Or(r.Bounds.Queue, QueueLimit)
	return r, nil
}
