// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"time"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// Errors of a call, beside those of packages router and wire, which pass
// through. Test with errors.Is.
var (
	// ErrNotRunning says that the node is not open: it is starting or closing.
	ErrNotRunning = errors.New("mesh node is not running")
	// ErrUnreachable says that no chosen worker could be dialled.
	ErrUnreachable = errors.New("worker cannot be reached")
	// ErrStream says that the connection to the worker broke.
	ErrStream = errors.New("worker stream failed")
	// ErrTaskID says that a task of that id runs, or left files, already.
	ErrTaskID = errors.New("task id is in use")
	// ErrArtifact says that the worker announced files and did not deliver them.
	ErrArtifact = errors.New("artifact was not delivered")
)

// Call is one task for the mesh.
type Call struct {
	// Target says who may serve it. Its PromptSize and Exclude are set by Dispatch.
	Target router.Request
	// Selector chooses among the matching workers.
	Selector router.Selector
	// Prompt is the prompt, in UTF-8.
	Prompt string
	// TaskID names the task; one is minted when it is empty.
	TaskID string
	// Retries is how many other workers are tried when one fails before the
	// first byte of its output.
	Retries int
	// EagerNewline gives newlines out at once; see [wire.OutputReader].
	EagerNewline bool
}

// Served names who serves a call.
type Served struct {
	// Peer, Agent and Model are those of the worker.
	Peer, Agent, Model string
	// TaskID is the task's id.
	TaskID string
	// Attempts counts the workers that were tried, this one included.
	Attempts int
}

// WorkerInfo is an entry of the directory of workers.
type WorkerInfo struct {
	wire.Telemetry
	// Online says that the worker's telemetry is fresh.
	Online bool
	// FirstSeen is when the worker first appeared, LastSeen when its last
	// telemetry arrived.
	FirstSeen, LastSeen time.Time
}
