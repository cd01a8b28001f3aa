// SPDX-License-Identifier: Apache-2.0

// Package wire reads and writes the frames of the AgentFM 1.3 mesh protocols:
// the task request, the marker lines around an agent's output, the artifact
// header and the telemetry object. It knows no libp2p and no Caddy; everything
// that it reads comes from strangers, so every read has a limit.
package wire

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"unicode/utf8"
)

// Identifiers of the mesh protocols that AgentFM 1.3 nodes speak.
const (
	// TaskProtocol carries one task from a gateway to a worker, and the
	// agent's output back.
	TaskProtocol = "/agentfm/task/1.0.0"
	// ArtifactProtocol carries the zip of a task's files from the worker to
	// the gateway.
	ArtifactProtocol = "/agentfm/artifacts/1.0.0"
	// TelemetryTopic is the GossipSub topic on which workers announce themselves.
	TelemetryTopic = "agentfm-telemetry-v1"
	// Version is the protocol version that both ends of a task must name.
	Version = "1.3.0"
)

// Limits of the wire. A frame that is larger is refused, never cut.
const (
	// MaxTaskFrame is the largest task request in bytes, as encoded.
	MaxTaskFrame = 1 << 20
	// MaxArgumentPrompt is the largest prompt, in bytes, that can be handed to
	// an agent as a command-line argument: Linux ends an argument at 128 KiB,
	// the closing NUL included. Every AgentFM 1.3 worker has this limit.
	MaxArgumentPrompt = 128<<10 - 1
	// MaxArtifact is the largest artifact zip in bytes.
	MaxArtifact = 5 << 30
	// MaxTelemetry is the largest telemetry object in bytes.
	MaxTelemetry = 8 << 10
)

// taskID is the form of a task id. It is also a safe file name.
var taskID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// ValidTaskID reports whether id is a task id: a letter or digit, then at most
// 127 letters, digits, dots, underscores and hyphens.
func ValidTaskID(id string) bool { return taskID.MatchString(id) }

// NewTaskID returns a fresh task id: "task_" and 24 random hex digits.
func NewTaskID() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails: see crypto/rand
	return string(hex.AppendEncode([]byte("task_"), b[:]))
}

// TaskRequest is the one JSON object that a gateway writes on a task stream.
type TaskRequest struct {
	// Version must equal the worker's own; see [Version].
	Version string `json:"version"`
	// Task is the kind of task; "agent_task" is the only one.
	Task string `json:"task"`
	// Data is the prompt.
	Data string `json:"data"`
	// TaskID names the task; see [ValidTaskID].
	TaskID string `json:"task_id"`
	// Request is the request of OpenAI's API that Data was made of, as the client sent
	// it. It comes by mesh protocol 2 alone, and not where it does not fit.
	Request RawJSON `json:"request,omitempty"`
}

// RawJSON is a JSON value as it stands; empty for none.
type RawJSON string

// MarshalJSON implements json.Marshaler.
func (r RawJSON) MarshalJSON() ([]byte, error) { return []byte(r), nil }

// UnmarshalJSON implements json.Unmarshaler.
func (r *RawJSON) UnmarshalJSON(b []byte) error {
	*r = RawJSON(b)
	if *r == "null" {
		*r = ""
	}
	return nil
}

// kindAgentTask is the only kind of task that protocol 1 knows.
const kindAgentTask = "agent_task"

// Errors of the task frame.
var (
	// ErrFrameTooLarge says that a frame is over its limit.
	ErrFrameTooLarge = errors.New("frame is too large")
	// ErrBadFrame says that a frame is not what the protocol asks for.
	ErrBadFrame = errors.New("malformed frame")
)

// EncodeTask returns the frame of a task for prompt. It returns
// [ErrFrameTooLarge] when the encoded frame is over [MaxTaskFrame], and
// [ErrBadFrame] for a task id that is not one or a prompt that is not UTF-8.
func EncodeTask(id, prompt string) ([]byte, error) { return encodeTask(id, prompt, "") }

// EncodeTaskOf is like [EncodeTask], with the request that the prompt was made of: a
// JSON value, in UTF-8.
func EncodeTaskOf(id, prompt string, request []byte) ([]byte, error) {
	return encodeTask(id, prompt, RawJSON(request))
}

func encodeTask(id, prompt string, request RawJSON) ([]byte, error) {
	if !ValidTaskID(id) {
		return nil, fmt.Errorf("%w: task id %q", ErrBadFrame, id)
	}
	if !utf8.ValidString(prompt) {
		return nil, fmt.Errorf("%w: the prompt is not UTF-8", ErrBadFrame)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // < > & stay one byte each: less of the limit is lost
	if err := enc.Encode(TaskRequest{Version: Version, Task: kindAgentTask, Data: prompt, TaskID: id, Request: request}); err != nil {
		return nil, err
	}
	frame := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if len(frame) > MaxTaskFrame {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrFrameTooLarge, len(frame), MaxTaskFrame)
	}
	return frame, nil
}

// ReadTask reads one task request from r. It does not wait for the end of the
// stream, so that a gateway may keep its side open and reset it later; nothing
// but white space may have come after the object by then. A frame over
// [MaxTaskFrame], a wrong task id or a missing field is an error. A version
// other than [Version] is not: the caller answers it with [RefuseVersion].
func ReadTask(r io.Reader) (TaskRequest, error) {
	var req TaskRequest
	limited := &io.LimitedReader{R: r, N: MaxTaskFrame + 1}
	dec := json.NewDecoder(limited)
	var frame json.RawMessage
	err := dec.Decode(&frame)
	switch {
	case limited.N == 0:
		return req, fmt.Errorf("%w: over %d bytes", ErrFrameTooLarge, MaxTaskFrame)
	case err != nil:
		return req, fmt.Errorf("%w: %w", ErrBadFrame, err)
	}
	if rest, _ := io.ReadAll(dec.Buffered()); len(bytes.TrimSpace(rest)) > 0 {
		return req, fmt.Errorf("%w: data after the object", ErrBadFrame)
	}
	return DecodeTask(frame)
}

// DecodeTask reads a task request that is there as a whole; see [ReadTask].
func DecodeTask(frame []byte) (TaskRequest, error) {
	var req TaskRequest
	switch {
	case len(frame) > MaxTaskFrame:
		return req, fmt.Errorf("%w: over %d bytes", ErrFrameTooLarge, MaxTaskFrame)
	case !utf8.Valid(frame):
		return req, fmt.Errorf("%w: not UTF-8", ErrBadFrame)
	}
	if err := json.Unmarshal(frame, &req); err != nil {
		return req, fmt.Errorf("%w: %w", ErrBadFrame, err)
	}
	switch {
	case req.Version == "":
		return req, fmt.Errorf("%w: no version", ErrBadFrame)
	case req.Version != Version:
		return req, nil
	case req.Task != kindAgentTask:
		return req, fmt.Errorf("%w: task %q is not %q", ErrBadFrame, req.Task, kindAgentTask)
	case !ValidTaskID(req.TaskID):
		return req, fmt.Errorf("%w: task id %q", ErrBadFrame, req.TaskID)
	}
	return req, nil
}
