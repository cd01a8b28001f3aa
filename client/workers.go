// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"
)

// WorkerService is about the workers on the mesh.
type WorkerService struct{ c *Client }

// Statuses of a worker.
const (
	StatusAvailable = "AVAILABLE"
	StatusBusy      = "BUSY"
)

// Worker is a worker on the mesh. All but PeerID is what it says of itself: on an open
// mesh, anybody may say anything.
type Worker struct {
	PeerID      string `json:"peer_id"`
	Author      string `json:"author"`
	Name        string `json:"name"`
	Status      string `json:"status"`
	Hardware    string `json:"hardware"`
	Description string `json:"description"`
	// Model is the engine; it is the begin of Hardware.
	Model string `json:"model,omitzero"`

	CPUPercent   float64 `json:"cpu_usage_pct"`
	RAMFreeGB    float64 `json:"ram_free_gb"`
	CurrentTasks int     `json:"current_tasks"`
	MaxTasks     int     `json:"max_tasks"`
	HasGPU       bool    `json:"has_gpu"`
	GPUUsedGB    float64 `json:"gpu_used_gb"`
	GPUTotalGB   float64 `json:"gpu_total_gb"`
	GPUPercent   float64 `json:"gpu_usage_pct"`

	// Preparing is what the worker does before it takes tasks, such as "pulling image";
	// empty when it is ready. PreparingPercent is how far that is.
	Preparing        string  `json:"preparing,omitzero"`
	PreparingPercent float64 `json:"preparing_pct,omitzero"`

	ImageRef    string `json:"agent_image_ref,omitzero"`
	ImageDigest string `json:"agent_image_digest,omitzero"`
	Capability  string `json:"agent_capability,omitzero"`

	// What the gateway knows of it; see [PeerSummary].
	HonestyScore    float64   `json:"honesty_score"`
	IsEquivocator   bool      `json:"is_equivocator"`
	DispatchAllowed bool      `json:"dispatch_allowed"`
	RefuseReason    string    `json:"dispatch_refuse_reason,omitzero"`
	OnProbation     bool      `json:"on_probation,omitzero"`
	Online          bool      `json:"online"`
	LastSeen        time.Time `json:"last_seen,omitzero"`
}

// Available reports whether the worker is online, has room for a task and may be given one.
func (w Worker) Available() bool {
	return w.Online && w.DispatchAllowed && w.Status == StatusAvailable && (w.MaxTasks == 0 || w.CurrentTasks < w.MaxTasks)
}

// WorkerFilter chooses workers. The zero value chooses all that are online. Names are
// compared without regard to case.
type WorkerFilter struct {
	Model  string
	Name   string // of the agent
	Author string
	// AvailableOnly leaves out who is not [Worker.Available].
	AvailableOnly bool
	// IncludeOffline also lists workers that were online lately.
	IncludeOffline bool
}

// matches reports whether the filter chooses the worker.
func (f WorkerFilter) matches(w *Worker) bool {
	is := func(want, got string) bool {
		return want == "" || strings.EqualFold(strings.TrimSpace(want), strings.TrimSpace(got))
	}
	return is(f.Model, w.Model) && is(f.Name, w.Name) && is(f.Author, w.Author) && (!f.AvailableOnly || w.Available())
}

// List returns the workers that the filter chooses: those that are online first, the newest
// first.
func (s *WorkerService) List(ctx context.Context, f WorkerFilter) ([]Worker, error) {
	var query url.Values
	if f.IncludeOffline {
		query = url.Values{"include_offline": {"true"}}
	}
	var list struct {
		Agents []Worker `json:"agents"`
	}
	if err := s.c.get(ctx, "/api/workers", query, &list); err != nil {
		return nil, err
	}
	chosen := make([]Worker, 0, len(list.Agents))
	for _, w := range list.Agents {
		if w.Model == "" {
			w.Model, _, _ = strings.Cut(w.Hardware, " (")
		}
		if f.matches(&w) {
			chosen = append(chosen, w)
		}
	}
	return chosen, nil
}

// Get returns the worker of a peer id, also one that was online lately. The error is
// [ErrWorkerNotFound] when the gateway knows none.
func (s *WorkerService) Get(ctx context.Context, peerID string) (*Worker, error) {
	list, err := s.List(ctx, WorkerFilter{IncludeOffline: true})
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].PeerID == peerID {
			return &list[i], nil
		}
	}
	return nil, &Error{Kind: ErrWorkerNotFound, Code: CodeWorkerNotFound, Param: "worker_id", Message: "the gateway knows no worker of this peer id"}
}

// workerPoll is how often [WorkerService.Wait] looks. A variable for tests.
var workerPoll = 500 * time.Millisecond

// Wait waits until the filter chooses at least n workers, and returns them. A gateway that
// cannot be reached yet is waited for, too. The error is [ErrContext] when the context ends
// first, and wraps what the last look found wrong, if anything.
func (s *WorkerService) Wait(ctx context.Context, n int, f WorkerFilter) ([]Worker, error) {
	for {
		list, err := s.List(ctx, f)
		if err == nil && len(list) >= n {
			return list, nil
		}
		if e, ok := errors.AsType[*Error](err); ok && !e.temporary() && e.Kind != ErrContext {
			return nil, err
		}
		if !pause(ctx, workerPoll) {
			ended := transportError(ctx, ctx.Err(), "waiting for workers")
			ended.Err = errors.Join(ended.Err, err)
			return nil, ended
		}
	}
}
