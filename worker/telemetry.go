// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"encoding/json"
	"time"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

const (
	// publishInterval is how often an agent announces itself.
	publishInterval = 2 * time.Second
	// publishSpacing is the least time between two announcements when something
	// has changed.
	publishSpacing = 250 * time.Millisecond
	// publishPatience is how long an agent that is being prepared is not announced.
	publishPatience = time.Second
)

// publish announces the agent every two seconds, and soon after a change, until
// ctx ends.
func (a *agent) publish(ctx context.Context) {
	machine.sample(ctx) // so that the GPUs are known by the first task

	select { // most agents are ready at once, and need not be BUSY first
	case <-ctx.Done():
		return
	case <-a.isReady:
	case <-time.After(publishPatience):
	}
	tick := time.NewTicker(publishInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-a.changed:
		}
		a.announce(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(publishSpacing):
		}
	}
}

// announce publishes the telemetry once.
func (a *agent) announce(ctx context.Context) {
	t, ok := a.current(ctx)
	if !ok {
		return
	}
	b, err := json.Marshal(t)
	if err == nil {
		err = a.topic.Publish(ctx, b)
	}
	if err != nil && ctx.Err() == nil {
		a.log().Warn("telemetry was not published", zap.Error(err))
	}
}

// current returns the agent's telemetry; false while no configuration has it.
func (a *agent) current(ctx context.Context) (wire.Telemetry, bool) {
	g := a.active.Load()
	ready := g != nil
	if !ready {
		var ok bool
		if g, ok = a.Newest(); !ok {
			return wire.Telemetry{}, false
		}
	}
	l := machine.sample(ctx)
	a.mu.Lock()
	running, leaving := len(a.tasks), a.leaving
	a.mu.Unlock()
	busy := !ready || leaving || running >= g.config.MaxTasks || g.overloaded(l) != "" || !g.available()
	return g.telemetry(a.host.ID().String(), l, running, busy), true
}

// profile returns the agent's profile; false while no configuration has it.
func (a *agent) profile(ctx context.Context) (wire.Profile, bool) {
	t, ok := a.current(ctx)
	p := wire.Profile{Telemetry: t}
	if g := a.active.Load(); g != nil {
		if o := g.offered(); o != nil {
			p.Models, p.Routes, p.MaxBody = o.Models, o.Routes, maxBody
		}
	}
	return p, ok
}

// overloaded returns the refusal for a machine that is over the agent's limits,
// or nothing.
func (g *generation) overloaded(l load) string {
	switch c := g.config; {
	case c.MaxCPU != -1 && l.cpuPercent >= c.MaxCPU:
		return wire.RefuseCPU(l.cpuPercent)
	case c.MaxGPU != -1 && l.hasGPU && l.gpuPercent > c.MaxGPU:
		return wire.RefuseGPU(l.gpuPercent)
	default:
		return ""
	}
}

// telemetry returns what the agent announces.
func (g *generation) telemetry(peerID string, l load, running int, busy bool) wire.Telemetry {
	c := g.config
	t := wire.Telemetry{
		PeerID: peerID, Status: wire.StatusAvailable,
		AgentName: c.Name, Model: c.Model, Description: c.Description, Author: c.Author, Capability: c.Capability,
		CPUCores: l.cores, CPUPercent: l.cpuPercent, RAMFreeGB: l.ramFreeGB,
		HasGPU: l.hasGPU, GPUUsedGB: l.gpuUsedGB, GPUTotalGB: l.gpuTotalGB, GPUPercent: l.gpuPercent,
		CurrentTasks: running, MaxTasks: c.MaxTasks,
		MaxPrompt: g.runtime.PromptLimit(), Duplex: true, Protocol: wire.ProtocolHTTP,
	}
	if o := g.offered(); o != nil {
		t.Model, t.ProfileTag = o.Models[0], o.tag
	}
	if busy {
		t.Status = wire.StatusBusy
	}
	if p := g.doing.Load(); p != nil {
		t.Preparing, t.PreparingPercent = p.what, p.percent
	}
	if image := g.image.Load(); image != nil {
		t.ImageRef, t.ImageDigest = image.Ref, image.Digest
	}
	return t
}
