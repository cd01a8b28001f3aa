// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"time"

	"github.com/Agent-FM/caddy-agentfm/openai"
)

// SubmitRequest is a task that nobody waits for. It has a worker or a model.
type SubmitRequest struct {
	// WorkerID is the peer id of the worker that shall run it, and no other.
	WorkerID string `json:"worker_id,omitzero"`
	// Model is a peer id, an agent's name or a model engine: who offers it runs the task.
	Model  string `json:"model,omitzero"`
	Prompt string `json:"prompt"`
	// WebhookURL is told of the end; see [WebhookHandler].
	WebhookURL string `json:"webhook_url,omitzero"`
	// MaxAttempts is how often it may be begun and broken off; 0 is what the gateway says.
	MaxAttempts int `json:"max_attempts,omitzero"`
	// QueueTimeout is how long it may wait for a worker, RunTimeout how long a worker may
	// take, and Timeout how long it may take in all, each in whole seconds, rounded up; 0
	// is what the gateway says.
	QueueTimeout time.Duration `json:"-"`
	RunTimeout   time.Duration `json:"-"`
	Timeout      time.Duration `json:"-"`
}

// submitBody is a [SubmitRequest] as it is sent.
type submitBody struct {
	SubmitRequest
	Queue int64 `json:"queue_timeout_seconds,omitzero"`
	Run   int64 `json:"run_timeout_seconds,omitzero"`
	Total int64 `json:"timeout_seconds,omitzero"`
}

// seconds rounds up to whole ones.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// Ack says that a task was taken: it is on the gateway's disk.
type Ack struct {
	TaskID  string     `json:"task_id"`
	Status  TaskStatus `json:"status"`
	Message string     `json:"message"`
}

// Submit gives the gateway a task that it runs while nobody waits. Its id is safe as the
// name of a file.
func (s *TaskService) Submit(ctx context.Context, r SubmitRequest, opts ...CallOption) (*Ack, error) {
	switch {
	case r.WorkerID == "" && r.Model == "":
		return nil, invalid("worker_id", "the worker's peer id is missing, or the model")
	case r.Prompt == "":
		return nil, invalid("prompt", "the prompt is missing")
	case r.MaxAttempts < 0 || min(r.QueueTimeout, r.RunTimeout, r.Timeout) < 0:
		return nil, invalid("", "the attempts and timeouts of a task cannot be less than 0")
	}
	body := submitBody{r, seconds(r.QueueTimeout), seconds(r.RunTimeout), seconds(r.Timeout)}
	var ack Ack
	if _, err := s.c.call(ctx, request{method: http.MethodPost, path: "/api/execute/async", body: body}.with(opts), &ack); err != nil {
		return nil, err
	}
	if !validTaskID(ack.TaskID) {
		return nil, protocolError(nil, "the gateway took a task and says no id of a task: %q", openai.Clip(ack.TaskID, maxText))
	}
	return &ack, nil
}

// TaskStatus is how far a task is.
type TaskStatus string

// The states of a task. The last three are final.
const (
	TaskQueued    TaskStatus = "queued"
	TaskRunning   TaskStatus = "running"
	TaskCompleted TaskStatus = "completed"
	TaskFailed    TaskStatus = "failed"
	TaskCancelled TaskStatus = "cancelled"
)

// Ended reports whether the state is final.
func (s TaskStatus) Ended() bool {
	return s == TaskCompleted || s == TaskFailed || s == TaskCancelled
}

// Task is a task that was submitted.
type Task struct {
	ID string `json:"task_id"`
	// Mode is "async" for a task of [TaskService.Submit], and "sync" for one whose client
	// waits for it.
	Mode   string     `json:"mode,omitzero"`
	Status TaskStatus `json:"status"`
	// Reason and Message say why it failed.
	Reason   Code   `json:"reason,omitzero"`
	Message  string `json:"message,omitzero"`
	WorkerID string `json:"worker_id"`
	Agent    string `json:"agent_name,omitzero"`
	Model    string `json:"model,omitzero"`
	// Attempts is how many workers were given it.
	Attempts int       `json:"attempts"`
	Created  time.Time `json:"created_at,omitzero"`
	Started  time.Time `json:"started_at,omitzero"`
	Ended    time.Time `json:"ended_at,omitzero"`

	PromptBytes int64 `json:"prompt_bytes"`
	OutputBytes int64 `json:"output_bytes"`
	HasFiles    bool  `json:"has_files"`
	// Artifact is the zip of its files, and Usage its tokens, where the gateway tells.
	Artifact *TaskArtifact `json:"artifacts,omitzero"`
	Usage    *openai.Usage `json:"usage,omitzero"`
	// LateResults are results that came when the task had an end, or another worker.
	LateResults []LateResult `json:"late_results,omitzero"`
	// Webhook is nil where nobody is to be told.
	Webhook *TaskWebhook `json:"webhook,omitzero"`
}

// TaskArtifact is the zip of a task's files.
type TaskArtifact struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
	Files  int    `json:"files,omitzero"` // how many; 0 where nobody knows
}

// LateResult is the result of an attempt that does not count.
type LateResult struct {
	Attempt  int        `json:"attempt"`
	WorkerID string     `json:"worker_id"`
	Status   TaskStatus `json:"status"`
	Reason   Code       `json:"reason,omitzero"`
	At       time.Time  `json:"at,omitzero"`
}

// TaskWebhook is how far the delivery of a task's webhook is.
type TaskWebhook struct {
	URL string `json:"url"`
	// Status is "pending", "delivered", "disabled" or "given_up".
	Status     string    `json:"status"`
	Attempts   int       `json:"attempts"`
	LastStatus int       `json:"last_status,omitzero"`
	LastError  string    `json:"last_error,omitzero"`
	Last       time.Time `json:"last_attempt_at,omitzero"`
	Next       time.Time `json:"next_attempt_at,omitzero"`
	// History are the last attempts.
	History []WebhookAttempt `json:"history,omitzero"`
}

// WebhookAttempt is an attempt to deliver a webhook.
type WebhookAttempt struct {
	At              time.Time `json:"at,omitzero"`
	DurationSeconds float64   `json:"duration_seconds"`
	Status          int       `json:"status,omitzero"` // of the answer
	Error           string    `json:"error,omitzero"`  // where there was none
}

// Err returns nil for a task that has not failed, and else an error of [ErrTaskFailed]
// whose code is the reason.
func (t *Task) Err() error {
	if !t.Status.Ended() || t.Status == TaskCompleted {
		return nil
	}
	message := t.Message
	if message == "" {
		message = "the task has ended as " + string(t.Status)
	}
	return &Error{Kind: ErrTaskFailed, Code: t.Reason, Message: message}
}

// taskID is the form of a task id. It is also a safe name of a file.
var taskID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// validTaskID reports whether a gateway may call a task so. What it says itself is checked,
// too: programs name folders by it.
func validTaskID(id string) bool { return taskID.MatchString(id) }

// taskPath is the path of a task, and of what it has.
func taskPath(id, what string) (string, error) {
	if id == "" || id == "." || id == ".." {
		return "", invalid("task_id", "the id of the task is missing")
	}
	return "/api/tasks/" + url.PathEscape(id) + what, nil
}

// Get returns a task.
func (s *TaskService) Get(ctx context.Context, id string) (*Task, error) {
	return s.task(ctx, http.MethodGet, id)
}

// Cancel cancels a task, and stops its agent. The error is [CodeTaskEnded] when it has
// another end.
func (s *TaskService) Cancel(ctx context.Context, id string) (*Task, error) {
	return s.task(ctx, http.MethodDelete, id)
}

// RedeliverWebhook sends the webhook of a task that has ended again, with the same id. The
// error is [CodeWebhookPending] while it is to be delivered anyway.
func (s *TaskService) RedeliverWebhook(ctx context.Context, id string) (*Task, error) {
	path, err := taskPath(id, "/webhook")
	if err != nil {
		return nil, err
	}
	var t Task
	if _, err := s.c.call(ctx, request{method: http.MethodPost, path: path}, &t); err != nil {
		return nil, err
	}
	return &t, nil
}

// task sends a request about one task. Either may be sent again: what is cancelled can be
// cancelled once more.
func (s *TaskService) task(ctx context.Context, method, id string) (*Task, error) {
	path, err := taskPath(id, "")
	if err != nil {
		return nil, err
	}
	var t Task
	if _, err := s.c.call(ctx, request{method: method, path: path, again: true}, &t); err != nil {
		return nil, err
	}
	return &t, nil
}

// TaskQuery chooses tasks. The zero value chooses all.
type TaskQuery struct {
	Status TaskStatus
	// Webhook is the state of the webhook, such as "given_up".
	Webhook string
	// Before is the id of a task: older ones are chosen.
	Before string
	// PageSize is how many are fetched at once; 0 is the gateway's own number.
	PageSize int
}

// List returns the tasks of this client's key, the newest first, and fetches them page by
// page while they are looped over. An error is the last.
func (s *TaskService) List(ctx context.Context, q TaskQuery) iter.Seq2[Task, error] {
	return func(yield func(Task, error) bool) {
		for {
			var page struct {
				Tasks []Task `json:"tasks"`
				More  bool   `json:"has_more"`
			}
			if err := s.c.get(ctx, "/api/tasks", q.values(), &page); err != nil {
				yield(Task{}, err)
				return
			}
			for _, t := range page.Tasks {
				if !yield(t, nil) {
					return
				}
				q.Before = t.ID
			}
			if !page.More || len(page.Tasks) == 0 {
				return
			}
		}
	}
}

// values returns the query as it is sent.
func (q TaskQuery) values() url.Values {
	v := url.Values{}
	if q.Status != "" {
		v.Set("status", string(q.Status))
	}
	if q.Webhook != "" {
		v.Set("webhook", q.Webhook)
	}
	if q.Before != "" {
		v.Set("before", q.Before)
	}
	if q.PageSize > 0 {
		v.Set("limit", strconv.Itoa(q.PageSize))
	}
	return v
}
