// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Runtime runs the tasks of one agent. Runtimes are guest modules in the
// namespace agentfm.runtimes; their Provision and Validate must open nothing,
// since `caddy validate` calls them beside a running server.
//
// A runtime outlives the configuration that it came with while tasks run on it.
// It must not tie them to its caddy.Context.
type Runtime interface {
	// Prepare makes the runtime ready: checks that a command exists, builds an
	// image, removes what an earlier process left behind. It is called once
	// before the first task, and again after a failure or when the runtime asks for it,
	// and may take long; ctx ends when the agent goes away. Until it succeeds for the
	// first time, the agent takes no tasks.
	Prepare(ctx context.Context, agent Agent) (Image, error)

	// Run runs one task to its end and returns how the agent ended. An error
	// says that the agent could not be started or was lost; a [Failure] among them
	// says why. When ctx ends, the
	// agent is stopped. Nothing that Run started is left when it returns.
	// Calls are concurrent.
	Run(ctx context.Context, task Task) (Exit, error)

	// PromptLimit is the largest prompt in bytes that can be handed to the
	// agent unchanged.
	PromptLimit() int

	// PromptNUL reports whether a prompt may contain NUL bytes.
	PromptNUL() bool
}

// MayBeAway is implemented by a Runtime that depends on something outside of this
// process that may go away, and come back.
type MayBeAway interface {
	// Away returns why no task can begin now, after a Prepare that succeeded; empty when
	// one can. The agent is busy meanwhile. It is called often, and must not block; a
	// change is to be told to the Changed of [Agent].
	Away() wire.Cause
}

// MayBeLate is implemented by a Runtime for which something outside of this process is to be
// there, which may come at any moment.
type MayBeLate interface {
	// RetryEvery bounds the wait before a Prepare that failed is tried again, which is a
	// minute for others.
	RetryEvery() time.Duration
}

// MayServe is implemented by a Runtime that is a [Server] by its settings.
type MayServe interface {
	// Server returns the server, or nil when it is none.
	Server() Server
}

// serverOf returns what answers OpenAI's API in a runtime; nil for nothing.
func serverOf(rt Runtime) Server {
	switch rt := rt.(type) {
	case Server:
		return rt
	case MayServe:
		return rt.Server()
	}
	return nil
}

// Server is a [Runtime] that answers OpenAI's API itself, with all that the API can
// do, for gateways that speak HTTP over the mesh. Gateways that do not, send it
// prompts, which come to Run.
//
// ServeHTTP answers one request, whose path is a route of the Offer, or below one
// ("/v1/responses/resp_1"). The agent has taken a slot for it and has decided who
// may send it; the body is as the client sent it, and bounded. The context of the
// request ends when the gateway goes away or the time of the task is over. An
// answer with [wire.HeaderRefusal] says that another worker may serve it.
type Server interface {
	http.Handler

	// Offer says what is served now; false says that nothing is, because the
	// back-end does not answer. It is called often, and must not block.
	Offer() (Offer, bool)
}

// Offer is what a Server serves.
type Offer struct {
	// Models are the names by which clients may ask for one of its models, the
	// first of them that which is meant by the name of the agent. There is at
	// least one, and at most [MaxModels].
	Models []string
	// Routes are the routes of OpenAI's API that are served, such as
	// "/v1/chat/completions".
	Routes []string
}

// MaxModels is how many models one agent may offer.
const MaxModels = wire.MaxModels

// Agent tells a runtime whom it runs.
type Agent struct {
	// Key is the agent's name in the configuration.
	Key string
	// Name is the agent's public name, by which clients may ask for it.
	Name string
	// PeerID is the agent's identity on the mesh. No other process has it, so
	// what carries its label is this agent's own.
	PeerID string
	// Model is the advertised model engine; the agent finds it in the
	// environment variable AGENTFM_MODEL.
	Model string
	// TasksDir is the absolute path of a private folder on the file system of the
	// OutputDir of each [Task], for folders that the runtime makes before there is a
	// task. It is emptied when the agent opens.
	TasksDir string
	// MaxDisk is how many bytes of the disk such a folder may take; see [Guard]. 0 is any.
	MaxDisk int64
	// Changed is to be called when the Offer of a [Server] has changed, or what
	// [MayBeAway] tells. It does not block.
	Changed func()
	// Again has Prepare called again, because what it made is gone. It does not block.
	Again func()
	// Progress is to be told what takes long in Prepare, such as "pulling image", and how
	// far it is, in percent. It does not block.
	Progress func(what string, percent float64)
	// Context ends when the runtime gets no more tasks and requests: another one
	// has taken over, or the agent goes away. Those that it has may go on.
	Context context.Context
	// Go runs a function beside the agent, which waits for it at its end; by then
	// Context has ended.
	Go func(func())
}

// Image identifies what a runtime runs, for telemetry. Both may be empty.
type Image struct {
	// Ref is the image reference, for example "hr:v1".
	Ref string
	// Digest is the id of the image, "sha256:" and 64 hex digits.
	Digest string
}

// Task is one task for a runtime.
type Task struct {
	// ID is unique among the tasks of the agent, and safe as a file name.
	ID string
	// Prompt is handed to the agent unchanged; it is within PromptLimit and
	// has a NUL byte only where PromptNUL allows it.
	Prompt string
	// Request is the request of OpenAI's API that the prompt was made of, as JSON; empty
	// where there is none, or the gateway did not send it.
	Request string
	// Model is the advertised model engine, for AGENTFM_MODEL.
	Model string
	// Output takes the agent's standard output and standard error as they
	// come. It may be written to by one goroutine at a time. A failed write
	// means that nobody listens any more.
	Output io.Writer
	// OutputDir is the absolute path of an empty folder. What the agent leaves in it (a container
	// sees it as /tmp/output, a process finds it in AGENTFM_OUTPUT) becomes
	// the task's artifact. The runtime may put another folder in its place.
	OutputDir string
}

// Exit is how an agent ended.
type Exit struct {
	// Code is the exit status; 0 is success. It is -1, or 128 and the signal's
	// number as a shell has it, when a signal ended the agent.
	Code int
	// Reason says more, where there is more to say: "killed by signal 9
	// (out of memory)", for example. Empty stands for "exit status <Code>".
	Reason string
	// Cause is the same for machines. Empty stands for what Code says.
	Cause wire.Cause
	// Usage is what the agent's model has counted; nil where that is not known.
	Usage *wire.Usage
}

// codeSignal is where the exit status of a process that a signal has ended begins.
const codeSignal = 128

// cause returns how the agent ended, for machines.
func (e Exit) cause() wire.Cause {
	switch {
	case e.Cause != "":
		return e.Cause
	case e.Code < 0 || e.Code > codeSignal && e.Code <= codeSignal+64:
		return wire.CauseSignal
	case e.Code != 0 || e.Reason != "":
		return wire.CauseExitCode
	}
	return wire.CauseOK
}

// Failure is an error of a [Runtime] with what machines should know of it.
type Failure struct {
	// Cause tells why there is no agent, such as [wire.CauseImageUnavailable].
	Cause wire.Cause
	Err   error
}

// Error implements error.
func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap returns the error without its cause.
func (f *Failure) Unwrap() error { return f.Err }

// causeOf returns the cause that an error tells, or else the other.
func causeOf(err error, other wire.Cause) wire.Cause {
	if f, ok := errors.AsType[*Failure](err); ok {
		return f.Cause
	}
	return other
}

// told is what a gateway may know of an error: more of it can be the operator's own
// business.
func told(cause wire.Cause) string {
	switch cause {
	case wire.CauseOutputLimit:
		return "it said more than it may"
	case wire.CauseImageUnavailable:
		return "its image is not there"
	case wire.CauseDigestMismatch:
		return "its image is not the one that it should be"
	}
	return "the worker's log says why"
}

// String says how the agent ended, in words.
func (e Exit) String() string {
	if e.Reason != "" {
		return e.Reason
	}
	return "exit status " + strconv.Itoa(e.Code)
}
