// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

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
	// ErrUnavailable says that a worker's back-end does not answer it.
	ErrUnavailable = errors.New("worker is not available")
	// ErrNoModel says that a worker does not have the model that it was asked for, or
	// not any more. It is a [wire.ErrRefused].
	ErrNoModel = fmt.Errorf("%w: no such model", wire.ErrRefused)
	// ErrStream says that the connection to the worker broke.
	ErrStream = errors.New("worker stream failed")
	// ErrTaskID says that a task of that id runs, or left files, already.
	ErrTaskID = errors.New("task id is in use")
	// ErrArtifact says that the worker announced files and did not deliver them.
	ErrArtifact = errors.New("artifact was not delivered")
	// ErrNoRoom says that the gateway has no room for files.
	ErrNoRoom = errors.New("no room for files")
	// ErrArtifactSize says that the files of a task are larger than all that may be kept.
	ErrArtifactSize = errors.New("files are too large to be kept")
)

// AttemptError is the failure of a call for which workers were tried.
type AttemptError struct {
	// Served names the worker whose failure it is, and says how many were tried.
	Served Served
	// Err is that failure.
	Err error
}

// Error implements error.
func (e *AttemptError) Error() string { return e.Err.Error() }

// Unwrap returns what the worker's failure was.
func (e *AttemptError) Unwrap() error { return e.Err }

// Call is one task for the mesh.
type Call struct {
	// Target says who may serve it. Its PromptSize is set by Dispatch.
	Target router.Request
	// Selector chooses among the matching workers.
	Selector router.Selector
	// Queue says how the call waits when all of them are full.
	Queue Queue
	// Prompt is the prompt, in UTF-8.
	Prompt string
	// Original is the client's request that Prompt was made of, as JSON, for agents that
	// read it; nil for none. Workers get it where it fits into the frame beside Prompt.
	Original []byte
	// Request is what is sent in place of a task, to a worker that serves one of the
	// Target's Routes. There is no Prompt then.
	Request *Request
	// Aside says that the Request is no work: it needs no slot, is no task in the
	// metrics, and says nothing of its worker.
	Aside bool
	// TaskID names the task; one is minted when it is empty.
	TaskID string
	// Retries is how many other workers are tried when one fails before the
	// first byte of its output. Refusals of workers that turn out to be full do
	// not count; of these there may be four, and more for a call that may wait.
	Retries int
	// FirstByte bounds the time from the sending of the task to the first byte
	// of output, in each attempt; 0 for no such limit.
	FirstByte time.Duration
	// Timeout bounds the task in all its attempts, from the first slot to the
	// last byte; 0 for [TaskTimeout].
	Timeout time.Duration
	// EagerNewline gives newlines out at once; see [wire.OutputReader].
	EagerNewline bool
	// Begin, if not nil, is called before each worker is given the task. Its error ends the
	// call, and is returned as it is.
	Begin func(Served) error
	// Again says that the caller tries again when there is no slot, and counts a
	// rejection itself.
	Again bool
}

// Request is a request of OpenAI's API, as it is sent to a worker that serves it.
type Request struct {
	Method string
	// Target is the path, which begins with the route, and the query.
	Target string
	// Header holds what the worker is to have of the client's. It is not changed.
	Header http.Header
	Body   []byte
}

// Response is the head of a worker's answer to a [Request].
type Response struct {
	Status int
	Header http.Header
	// Length is the size of the body in bytes; -1 when it is not known.
	Length int64
}

// Queue is how a call waits for a slot.
type Queue struct {
	// Wait is how long; 0 for not at all.
	Wait time.Duration
	// Size is how many calls may wait at one time, of everybody.
	Size int
	// Client is whose call it is: slots go to the clients in turn.
	Client string
}

// Served names who serves a call.
type Served struct {
	// Peer, Agent and Model are those of the worker.
	Peer, Agent, Model string
	// Tier says by which of these the worker was found.
	Tier router.Tier
	// TaskID is the task's id.
	TaskID string
	// Attempts counts the workers that were tried, this one included.
	Attempts int
	// Queued is how long the call waited for a slot.
	Queued time.Duration
}

// WorkerInfo is what is known of a worker at one time. It is shared by all who have it, and
// not to be changed.
type WorkerInfo struct {
	wire.Telemetry
	// Models are the models that the worker offers beside [wire.Telemetry.Model].
	Models []string
	// Routes are the routes of OpenAI's API that it serves itself.
	Routes router.Routes
	// Online says that the worker's telemetry is fresh.
	Online bool
	// FirstSeen is when the worker first appeared, LastSeen when its last
	// telemetry arrived.
	FirstSeen, LastSeen time.Time

	// ID is [wire.Telemetry.PeerID], decoded; empty when it cannot be.
	ID peer.ID
	// Memo is for what a reader makes of the telemetry. It is new with each one; nil where
	// nothing is to be kept.
	Memo *Memo
}

// Memo keeps what was made of something, for those who need it again. Its methods may be called
// by several at one time.
type Memo struct {
	once sync.Once
	text []byte
	err  error
}

// Text returns what make returns, which is called once. The bytes are not to be changed.
func (m *Memo) Text(make func() ([]byte, error)) ([]byte, error) {
	if m == nil {
		return make()
	}
	m.once.Do(func() { m.text, m.err = make() })
	return m.text, m.err
}
