// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/Agent-FM/caddy-agentfm/ledger"
	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// health serves GET /health: that the gateway can take requests, and keep tasks, and
// how many workers it has.
func (x *exchange) health() error {
	l, err := x.takeLease()
	if err != nil {
		return err
	}
	if err := x.h.tasks.Ready(); err != nil {
		return taskStoreProblem(err)
	}
	if err := roomFor(l); err != nil {
		return err
	}
	return x.answerJSON(struct {
		Status string `json:"status"`
		Online int    `json:"online_workers"`
	}{"ok", l.Online()})
}

// answerJSON answers with v.
func (x *exchange) answerJSON(v any) error {
	body, err := encode(v)
	if err != nil {
		return err
	}
	x.answer(http.StatusOK, body)
	return nil
}

// workerList is the answer of GET /api/workers.
type workerList struct {
	Success bool          `json:"success"`
	Online  int           `json:"online_count"`
	Offline int           `json:"offline_count"`
	Agents  []workerEntry `json:"agents"`
}

// workerEntry is one worker of the list.
type workerEntry struct {
	PeerID        string  `json:"peer_id"`
	Author        string  `json:"author"`
	Name          string  `json:"name"`
	Status        string  `json:"status"`
	Hardware      string  `json:"hardware"`
	Description   string  `json:"description"`
	CPUPercent    float64 `json:"cpu_usage_pct"`
	RAMFreeGB     float64 `json:"ram_free_gb"`
	CurrentTasks  int     `json:"current_tasks"`
	MaxTasks      int     `json:"max_tasks"`
	HasGPU        bool    `json:"has_gpu"`
	GPUUsedGB     float64 `json:"gpu_used_gb"`
	GPUTotalGB    float64 `json:"gpu_total_gb"`
	GPUPercent    float64 `json:"gpu_usage_pct"`
	Preparing     string  `json:"preparing,omitzero"`
	Percent       float64 `json:"preparing_pct,omitzero"`
	ImageRef      string  `json:"agent_image_ref,omitzero"`
	ImageDigest   string  `json:"agent_image_digest,omitzero"`
	Capability    string  `json:"agent_capability,omitzero"`
	HonestyScore  float64 `json:"honesty_score"`
	IsEquivocator bool    `json:"is_equivocator"`
	Dispatchable  bool    `json:"dispatch_allowed"`
	RefuseReason  string  `json:"dispatch_refuse_reason,omitzero"`
	Probation     bool    `json:"on_probation"`
	Online        bool    `json:"online"`
	LastSeen      string  `json:"last_seen,omitzero"`
}

// workers serves GET /api/workers.
func (x *exchange) workers() error {
	includeOffline := false
	if v := x.r.URL.Query().Get("include_offline"); v != "" {
		var err error
		if includeOffline, err = strconv.ParseBool(v); err != nil {
			return badRequest("include_offline", "include_offline: want true or false")
		}
	}
	l, err := x.takeLease()
	if err != nil {
		return err
	}
	list := workerList{Success: true, Agents: []workerEntry{}}
	for _, w := range x.workersFor(l.Workers(true)) {
		if w.Online {
			list.Online++
		} else {
			list.Offline++
		}
		if w.Online || includeOffline {
			list.Agents = append(list.Agents, newWorkerEntry(w, x.h.ledger.Standing(w.PeerID)))
		}
	}
	return x.answerJSON(list)
}

// newWorkerEntry returns the entry of a worker.
func newWorkerEntry(w mesh.WorkerInfo, s ledger.Standing) workerEntry {
	return workerEntry{
		PeerID: w.PeerID, Author: w.Author, Name: w.AgentName, Status: w.Status,
		Hardware: hardware(w), Description: w.Description,
		CPUPercent: w.CPUPercent, RAMFreeGB: w.RAMFreeGB,
		CurrentTasks: w.CurrentTasks, MaxTasks: w.MaxTasks,
		HasGPU: w.HasGPU, GPUUsedGB: w.GPUUsedGB, GPUTotalGB: w.GPUTotalGB, GPUPercent: w.GPUPercent,
		Preparing: w.Preparing, Percent: w.PreparingPercent,
		ImageRef: w.ImageRef, ImageDigest: w.ImageDigest, Capability: w.Capability,
		HonestyScore: s.Score, IsEquivocator: s.Equivocator, Dispatchable: s.Refused == "", RefuseReason: s.Refused, Probation: s.Probation,
		Online: w.Online, LastSeen: timeText(w.LastSeen),
	}
}

// hardware describes a worker in a line. Clients take the model from before the
// first " (".
func hardware(w mesh.WorkerInfo) string {
	if w.HasGPU {
		return fmt.Sprintf("%s (GPU VRAM: %.1f/%.1f GB)", w.Model, w.GPUUsedGB, w.GPUTotalGB)
	}
	return fmt.Sprintf("%s (CPU: %d Cores)", w.Model, w.CPUCores)
}

// timeText writes a time as RFC 3339; empty for none.
func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
