// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"os"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

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

// observeStream counts a failure of a stream to a worker, if err is one. The cause
// for which a client went away can be that of another stream.
func observeStream(o router.Outcome, err error) {
	switch {
	case o == router.Unjudged:
	case errors.Is(err, ErrUnreachable):
		metrics.StreamError(metrics.Task, metrics.Dial)
	case errors.Is(err, ErrStream):
		metrics.StreamError(metrics.Task, StreamFailure(err))
	case errors.Is(err, wire.ErrTruncated):
		metrics.StreamError(metrics.Task, metrics.Malformed)
	}
}
