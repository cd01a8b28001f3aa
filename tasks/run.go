// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/webhook"
)

// Limits of a task.
const (
	// QueueLimit is how long after its submission a task may wait for a worker, unless
	// the operator says otherwise.
	QueueLimit = 24 * time.Hour
	// OfflineLimit is how long a task waits while no worker is there that may take it.
	OfflineLimit = 10 * time.Minute
	// MaxLost is how often a task may be begun and broken off, unless the operator says
	// otherwise.
	MaxLost = 5

	// A task for which there was no room is tried again after minPause, and then after
	// ever longer, up to maxPause.
	minPause = 250 * time.Millisecond
	maxPause = 5 * time.Second
)

// Job is a task that is to be run.
type Job struct {
	Record *Record
	Prompt string
	// Wait is how long it may still wait for a worker, above 0. How long a worker may take
	// is in the record.
	Wait time.Duration
	// Begin is called before each worker is given the task. With an error, it is not.
	Begin func(Worker) error
}

// Runner runs tasks. It belongs to a site, of which it has the settings.
type Runner interface {
	// Run gives a task to a worker and returns when its output begins. The end of ctx
	// stops the task. An error that is no [*Failure] is an internal one.
	Run(ctx context.Context, j Job) (Attempt, error)
	// Signer signs the webhooks of an owner that has a secret of its own; nil for others.
	Signer(owner string) *webhook.Signer
	// Failure makes an error of [Attempt.Read] one of those.
	Failure(err error) *Failure
	// Keep gives the files of a task that has completed the task's own id. It may be
	// called more than once.
	Keep(*Record) error
}

// Attempt is a task that a worker runs.
type Attempt interface {
	// Read gives out the agent's output. io.EOF says that it succeeded.
	io.Reader
	// Close stops the task if it still runs.
	io.Closer
	// Result says, after io.EOF, what the task has left. Files have the id of the run.
	Result() Result
}

// Result is what a task has left beside its output.
type Result struct {
	// Artifact is the zip of its files; nil where there are none.
	Artifact *Artifact `json:"artifact,omitempty"`
	// Usage is nil where nothing was counted.
	Usage *Usage `json:"usage,omitempty"`
}

// Artifact is the zip of the files of a task.
type Artifact struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`          // in hex
	Files  int    `json:"files,omitempty"` // 0 where that is not known
}

// Usage counts the tokens of a task.
type Usage struct {
	Prompt     int  `json:"prompt"`
	Completion int  `json:"completion"`
	Estimated  bool `json:"estimated,omitempty"` // and not counted by the agent's model
}

// Kind says what to do about a failure.
type Kind int

// Kinds of failures.
const (
	// Final is the end of the task.
	Final Kind = iota
	// Busy says that no worker had room; no agent has begun.
	Busy
	// Away says that there was no worker, or none that could be reached; no agent has begun.
	Away
	// Broken says that an agent began, and that how it ended is not known.
	Broken
)

// Failure is why a task was not run to its end.
type Failure struct {
	Kind Kind
	// Reason is a code; Message says it to people.
	Reason, Message string
	// Err is for the log.
	Err error
}

// Error implements error.
func (f *Failure) Error() string { return f.Message }

// Unwrap returns what is for the log.
func (f *Failure) Unwrap() error { return f.Err }

// asFailure makes a failure of an error.
func asFailure(err error) *Failure {
	if f, ok := errors.AsType[*Failure](err); ok {
		return f
	}
	if errors.Is(err, ErrStore) {
		return &Failure{Kind: Broken, Err: err}
	}
	return &Failure{Reason: "internal_error", Message: "internal error", Err: err}
}
