// SPDX-License-Identifier: Apache-2.0

package client

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"
)

// TaskService runs tasks, and fetches what they leave.
type TaskService struct{ c *Client }

// RunRequest is a task that its client waits for.
type RunRequest struct {
	// WorkerID is the peer id of the worker that shall run it.
	WorkerID string `json:"worker_id"`
	Prompt   string `json:"prompt"`
	// TaskID names the task; the gateway chooses a name where it is empty.
	TaskID string `json:"task_id,omitzero"`
	// Feedback and FeedbackRating, from -1 to 1, go to the ledger after success.
	Feedback       string   `json:"feedback,omitzero"`
	FeedbackRating *float64 `json:"feedback_rating,omitzero"`
	// ArtifactsDir is the folder for the files of [TaskService.Run], as that of
	// [WithArtifactsDir].
	ArtifactsDir string `json:"-"`
}

// check returns an error for what would be refused.
func (r RunRequest) check() error {
	switch {
	case r.WorkerID == "":
		return invalid("worker_id", "the worker's peer id is missing")
	case r.Prompt == "":
		return invalid("prompt", "the prompt is missing")
	case r.TaskID != "" && !validTaskID(r.TaskID):
		return invalid("task_id", "the task's id: want a letter or digit, then at most 127 letters, digits, dots, underscores and hyphens")
	}
	return nil
}

// ChunkKind is what a [Chunk] is.
type ChunkKind string

// The kinds of chunks.
const (
	ChunkText   ChunkKind = "text"   // what the agent says
	ChunkMarker ChunkKind = "marker" // the line at the end: MarkerFiles or MarkerNoFiles
)

// Chunk is a piece of a task's output.
type Chunk struct {
	Kind ChunkKind
	Text string
}

// Stream runs a task and returns its output as it comes. The last chunk is a marker, unless
// the agent fails, which is an error of [ErrWorkerStream]. A connection that breaks is one
// of [ErrConnection]. To close the stream stops the agent.
func (s *TaskService) Stream(ctx context.Context, r RunRequest, opts ...CallOption) (*Stream[Chunk], error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	stream, err := openStream(ctx, s.c, request{
		method: http.MethodPost, path: "/api/execute", body: r, accept: "text/plain",
	}.with(opts), readChunks)
	if err != nil {
		return nil, err
	}
	stream.Served.WorkerID = cmp.Or(stream.Served.WorkerID, r.WorkerID)
	stream.Served.TaskID = cmp.Or(stream.Served.TaskID, r.TaskID)
	return stream, nil
}

// readSize is how much of an output is read at once, in bytes.
const readSize = 32 << 10

// readChunks reads the output of a task.
func readChunks(s *Stream[Chunk], yield func(Chunk, error) bool) {
	var split splitter
	text := func(t string) bool { return t == "" || yield(Chunk{ChunkText, t}, nil) }
	buf := make([]byte, readSize)
	for {
		n, err := s.resp.Body.Read(buf)
		if !text(split.next(buf[:n])) {
			return
		}
		if err == nil {
			continue
		}
		rest, marker := split.end()
		if !text(rest) {
			return
		}
		if err == io.EOF {
			err = endOfOutput(marker, s.resp.Trailer.Get("X-AgentFM-Status"))
		}
		if err != nil {
			yield(Chunk{}, s.failed(err, "reading the output"))
			return
		}
		yield(Chunk{ChunkMarker, marker}, nil)
		return
	}
}

// endOfOutput returns what the end of an output says went wrong. The status is that of the
// trailer; a gateway of AgentFM has none, and a proxy may lose it.
func endOfOutput(marker, status string) error {
	code, failed := errorCode(marker)
	switch {
	case failed:
		e := &Error{Kind: kindOf(0, code), Code: code, Message: "the agent failed after it had begun to answer"}
		return e
	case status != "" && status != "ok":
		return &Error{Kind: ErrWorkerStream, Code: CodeWorkerStreamFailed, Message: "the agent failed after it had begun to answer"}
	case marker != MarkerFiles && marker != MarkerNoFiles:
		return &Error{Kind: ErrWorkerStream, Code: CodeWorkerStreamFailed, Message: "the output ended early: its last line is missing"}
	}
	return nil
}

// Result is what a task has given.
type Result struct {
	// Text is the output, without the marker. A newline at its end may be the gateway's.
	Text string
	// Artifacts are the paths of the files that the agent left, when they were fetched.
	Artifacts []string
	// HasFiles says that the agent left files.
	HasFiles bool
	WorkerID string
	TaskID   string
	Duration time.Duration
}

// maxOutput bounds the output that is kept in memory, in bytes. A variable for tests.
var maxOutput int64 = 64 << 20

// Run runs a task and returns what it has given when it has ended. Its files are unpacked
// into the folder ArtifactsDir of the request, or of [WithArtifactsDir], where each task
// has a folder by its id. When they cannot be had, the error is [ErrArtifact], which wraps
// the cause, and the result is there as well: the agent has run.
func (s *TaskService) Run(ctx context.Context, r RunRequest, opts ...CallOption) (*Result, error) {
	begin := time.Now()
	stream, err := s.Stream(ctx, r, opts...)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	result := &Result{WorkerID: stream.Served.WorkerID, TaskID: stream.Served.TaskID}
	var b strings.Builder
	for chunk, err := range stream.All() {
		if err != nil {
			return nil, err
		}
		if chunk.Kind == ChunkMarker {
			result.HasFiles = chunk.Text == MarkerFiles
			continue
		}
		if int64(b.Len()+len(chunk.Text)) > maxOutput {
			return nil, &Error{Kind: ErrWorkerStream, Code: ReasonOutputTooLarge, Message: "the output is too large to be kept in memory; use Stream"}
		}
		b.WriteString(chunk.Text)
	}
	result.Text = b.String()
	if dir := cmp.Or(r.ArtifactsDir, s.c.artifacts); result.HasFiles && dir != "" {
		result.Artifacts, err = s.Artifacts(ctx, result.TaskID, filepath.Join(dir, result.TaskID))
	}
	result.Duration = time.Since(begin)
	return result, filesError(err)
}
