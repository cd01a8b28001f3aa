// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"os"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// observeRejected counts a task that no worker took.
func observeRejected(begun time.Time) { metrics.TaskEnded(metrics.Rejected, time.Since(begun)) }

// observeTask counts a task that ended; nil is well.
func observeTask(begun time.Time, err error) {
	status := metrics.Error
	switch {
	case err == nil:
		status = metrics.OK
	case errors.Is(err, wire.ErrCapacity):
		status = metrics.Rejected
	case errors.Is(err, os.ErrDeadlineExceeded):
		status = metrics.Timeout
	}
	metrics.TaskEnded(status, time.Since(begun))
}

// observeAttempt counts an attempt, which failed when err is not nil.
func observeAttempt(o router.Outcome, err error) {
	switch {
	case err == nil:
		metrics.Attempt(metrics.AttemptOK)
	case o == router.Refused:
		metrics.Attempt(metrics.AttemptBusy)
	case o == router.Unjudged:
		metrics.Attempt(metrics.AttemptCancelled)
	default:
		metrics.Attempt(metrics.AttemptFailed)
	}
}

// observeStream counts a failure of a stream to a worker, if err is one.
func observeStream(err error) {
	switch {
	case errors.Is(err, context.Canceled):
	case errors.Is(err, ErrUnreachable):
		metrics.StreamError(metrics.Task, metrics.Dial)
	case errors.Is(err, ErrStream):
		metrics.StreamError(metrics.Task, StreamFailure(err))
	case errors.Is(err, wire.ErrTruncated):
		metrics.StreamError(metrics.Task, metrics.Malformed)
	}
}
