// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"strings"

	"github.com/Agent-FM/caddy-agentfm/ledger"
	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/openai"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// models serves GET /v1/models: the workers that are online.
func (x *exchange) models() error {
	l, err := x.takeLease()
	if err != nil {
		return err
	}
	list := openai.ModelList{Object: openai.ObjectList, Data: []openai.Model{}}
	for _, w := range x.workersFor(l.Workers(false)) {
		list.Data = append(list.Data, newModel(w, x.h.ledger.Standing(w.ID)))
	}
	return x.answerJSON(list)
}

// model serves GET /v1/models/{id}. The id may be whatever a request may have as
// its model. Clients expect the id back that they asked for; of several workers
// the first of the list is described, and named.
func (x *exchange) model() error {
	l, err := x.takeLease()
	if err != nil {
		return err
	}
	found := x.h.matching(x.workersFor(l.Workers(false)), router.Request{Model: x.param})
	if len(found) == 0 {
		return modelNotFound(x.param)
	}
	m := newModel(found[0], x.h.ledger.Standing(found[0].ID))
	if asked := strings.TrimSpace(x.param); asked != m.ID {
		m.ID, m.PeerID = asked, m.ID
	}
	return x.answerJSON(m)
}

// newModel returns the entry of a worker.
func newModel(w *mesh.WorkerInfo, s ledger.Standing) openai.Model {
	return openai.Model{
		ID: w.PeerID, Object: openai.ObjectModel, Created: w.FirstSeen.Unix(), OwnedBy: w.Author,
		Description: w.Description,
		Name:        w.AgentName, Engine: w.Model, Models: w.Models, Status: w.Status, Hardware: hardware(&w.Telemetry),
		CurrentTasks: w.CurrentTasks, MaxTasks: w.MaxTasks,
		CPUPercent: w.CPUPercent, RAMFreeGB: w.RAMFreeGB,
		HasGPU: w.HasGPU, GPUUsedGB: w.GPUUsedGB, GPUTotalGB: w.GPUTotalGB, GPUPercent: w.GPUPercent,
		Preparing: w.Preparing, Percent: w.PreparingPercent,
		ImageRef: w.ImageRef, ImageDigest: w.ImageDigest, Capability: w.Capability,
		HonestyScore: s.Score, IsEquivocator: s.Equivocator, Dispatchable: s.Refused == "", RefuseReason: s.Refused, Probation: s.Probation,
		Online: w.Online, LastSeen: timeText(w.LastSeen),
	}
}
