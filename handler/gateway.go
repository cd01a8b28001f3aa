// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"io"
	"os"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// gateway is what the handler needs of the mesh.
type gateway interface {
	// Lease gives access for the time of one request. The error is
	// [mesh.ErrNotRunning] while there is none.
	Lease() (lease, error)
}

// lease is the use of the mesh by one request.
type lease interface {
	// Workers returns the known workers: online first, newest first.
	Workers(includeOffline bool) []*mesh.WorkerInfo
	// Worker returns what is known of a worker; nil for none.
	Worker(peer string) *mesh.WorkerInfo
	// Online counts the workers that are online.
	Online() int
	// Serves returns the routes that workers serve to whom a request may go, and
	// whether any takes a text instead.
	Serves(req *router.Request) (routes router.Routes, text bool)
	// Dispatch sends a task to a worker and returns once its output begins, or
	// it ended well without any. The end of ctx stops the task.
	Dispatch(ctx context.Context, c mesh.Call) (run, error)
	// NoteResponse remembers for a client which worker has a response.
	NoteResponse(id, peer, client string)
	// ResponseOf returns the worker that has a response of a client.
	ResponseOf(id, client string) (peer string, ok bool)
	// OpenArtifact opens the zip of a task; the error is fs.ErrNotExist when
	// there is none.
	OpenArtifact(taskID string) (*os.File, error)
	// KeepArtifact gives the zip of a task another id, in place of what has it.
	KeepArtifact(from, to string) error
	// Roomy returns a [mesh.ErrNoRoom] when there is no room for files of tasks.
	Roomy() error
	// DropArtifact removes the zip of a task, if there is one.
	DropArtifact(taskID string) error
	// About describes the node.
	About() mesh.About
	// Events begins a subscription for an owner, after the event of lastID; see
	// [mesh.Events.Subscribe]. It outlives the lease.
	Events(owner, lastID string) (*mesh.Subscription, error)
	// TestRelay dials an address and returns the id of the peer that answers
	// there. The error is [mesh.ErrRelayTests] when there are too many tests.
	TestRelay(ctx context.Context, addr string) (string, error)
	// Release ends the use.
	Release()
}

// run is a task that a worker answers.
type run interface {
	// Read gives out the agent's output. io.EOF says that the agent succeeded,
	// any other error that it did not; it comes at once when the context of
	// Dispatch ends.
	io.Reader
	// Close stops the task if it still runs.
	io.Closer
	// Enough says that no more is wanted of an answer that is well so far. Without it,
	// one that is not read to its end says nothing of its worker.
	Enough()
	// Served names who serves the task.
	Served() mesh.Served
	// HasFiles reports, after io.EOF, whether the task left files.
	HasFiles() bool
	// Artifact says, after io.EOF, what the zip of these is; nil where there are none.
	Artifact() *wire.Artifact
	// Usage returns, after io.EOF, what the agent's model has counted; nil where that is
	// not known.
	Usage() *wire.Usage
	// Response returns the head of the answer of a worker that serves the request
	// itself; nil when what is read is an agent's output.
	Response() *mesh.Response
}
