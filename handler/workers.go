// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
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

// listedWorker is what the telemetry says in an entry of GET /api/workers. What this gateway
// thinks of the worker comes after it; see [appendWorker].
type listedWorker struct {
	PeerID       string  `json:"peer_id"`
	Author       string  `json:"author"`
	Name         string  `json:"name"`
	Status       string  `json:"status"`
	Hardware     string  `json:"hardware"`
	Description  string  `json:"description"`
	CPUPercent   float64 `json:"cpu_usage_pct"`
	RAMFreeGB    float64 `json:"ram_free_gb"`
	CurrentTasks int     `json:"current_tasks"`
	MaxTasks     int     `json:"max_tasks"`
	HasGPU       bool    `json:"has_gpu"`
	GPUUsedGB    float64 `json:"gpu_used_gb"`
	GPUTotalGB   float64 `json:"gpu_total_gb"`
	GPUPercent   float64 `json:"gpu_usage_pct"`
	Preparing    string  `json:"preparing,omitzero"`
	Percent      float64 `json:"preparing_pct,omitzero"`
	ImageRef     string  `json:"agent_image_ref,omitzero"`
	ImageDigest  string  `json:"agent_image_digest,omitzero"`
	Capability   string  `json:"agent_capability,omitzero"`
	LastSeen     string  `json:"last_seen,omitzero"`
}

// workerText returns that of a worker as JSON. It is made once for each telemetry, when it is
// needed: a list of 10,000 workers has little time.
func workerText(w *mesh.WorkerInfo) ([]byte, error) {
	return w.Memo.Text(func() ([]byte, error) {
		t := &w.Telemetry
		return encode(listedWorker{
			PeerID: t.PeerID, Author: t.Author, Name: t.AgentName, Status: t.Status, Hardware: hardware(t), Description: t.Description,
			CPUPercent: t.CPUPercent, RAMFreeGB: t.RAMFreeGB, CurrentTasks: t.CurrentTasks, MaxTasks: t.MaxTasks,
			HasGPU: t.HasGPU, GPUUsedGB: t.GPUUsedGB, GPUTotalGB: t.GPUTotalGB, GPUPercent: t.GPUPercent,
			Preparing: t.Preparing, Percent: t.PreparingPercent,
			ImageRef: t.ImageRef, ImageDigest: t.ImageDigest, Capability: t.Capability, LastSeen: timeText(w.LastSeen),
		})
	})
}

// ledgerText is about as long as what [appendWorker] adds.
const ledgerText = 160

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
	recent := &x.h.recent.online
	if includeOffline {
		recent = &x.h.recent.all
	}
	shared := !x.identity.Restricted()
	if r := recent.Load(); shared && r != nil && time.Since(r.made) < recentAge {
		x.answer(http.StatusOK, r.text)
		return nil
	}
	list := x.workersFor(l.Workers(true))
	text, err := listText(list, includeOffline, x.h.ledger.Standing)
	if err != nil {
		return err
	}
	switch {
	case !shared:
	case len(list) >= longList:
		recent.Store(&recentList{text, time.Now()})
	default:
		recent.Store(nil)
	}
	x.answer(http.StatusOK, text)
	return nil
}

// A list of so many workers serves all who ask within that time: it takes milliseconds to
// make, and a worker tells of itself every two seconds.
const (
	longList  = 1000
	recentAge = 500 * time.Millisecond
)

// recentLists are the answers of GET /api/workers that were made last, to those who see all
// workers.
type recentLists struct{ online, all atomic.Pointer[recentList] }

// recentList is one of them.
type recentList struct {
	text []byte
	made time.Time
}

// listText returns a list of workers as JSON.
func listText(list []*mesh.WorkerInfo, includeOffline bool, standing func(peer.ID) ledger.Standing) ([]byte, error) {
	online := 0
	for _, w := range list {
		if w.Online {
			online++
		}
	}
	offline := len(list) - online
	if !includeOffline {
		list = list[:online] // which come first
	}
	texts, size := make([][]byte, len(list)), 0
	for i, w := range list {
		var err error
		if texts[i], err = workerText(w); err != nil {
			return nil, err
		}
		size += len(texts[i]) + ledgerText
	}
	body := append(make([]byte, 0, size+ledgerText), `{"success":true,"online_count":`...)
	body = strconv.AppendInt(body, int64(online), 10)
	body = append(body, `,"offline_count":`...)
	body = strconv.AppendInt(body, int64(offline), 10)
	body = append(body, `,"agents":[`...)
	for i, w := range list {
		if i > 0 {
			body = append(body, ',')
		}
		body = appendWorker(body, texts[i], w.Online, standing(w.ID))
	}
	return append(body, "]}"...), nil
}

// appendWorker adds the entry of a worker.
func appendWorker(b, text []byte, online bool, s ledger.Standing) []byte {
	b = append(b, text[:len(text)-len("}")]...)
	b = append(b, `,"honesty_score":`...)
	b = strconv.AppendFloat(b, s.Score, 'g', -1, 64)
	b = append(b, `,"is_equivocator":`...)
	b = strconv.AppendBool(b, s.Equivocator)
	b = append(b, `,"dispatch_allowed":`...)
	b = strconv.AppendBool(b, s.Refused == "")
	if s.Refused != "" {
		b = append(b, `,"dispatch_refuse_reason":"`...)
		b = append(append(b, s.Refused...), '"')
	}
	b = append(b, `,"on_probation":`...)
	b = strconv.AppendBool(b, s.Probation)
	b = append(b, `,"online":`...)
	b = strconv.AppendBool(b, online)
	return append(b, '}')
}

// hardware describes a worker in a line. Clients take the model from before the
// first " (".
func hardware(t *wire.Telemetry) string {
	if t.HasGPU {
		return fmt.Sprintf("%s (GPU VRAM: %.1f/%.1f GB)", t.Model, t.GPUUsedGB, t.GPUTotalGB)
	}
	return fmt.Sprintf("%s (CPU: %d Cores)", t.Model, t.CPUCores)
}

// timeText writes a time as RFC 3339; empty for none.
func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
