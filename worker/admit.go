// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// refusal says why a task is not run: for the protocols, and in words.
type refusal struct {
	reason wire.Refusal
	line   string // as mesh protocol 1 has it
}

// words returns it for who is not bound to mesh protocol 1.
func (r *refusal) words() string { return wire.RefusalText(r.line) }

// busy and unfit are refusals.
func busy(line string) *refusal  { return &refusal{wire.RefusalCapacity, line} }
func unfit(text string) *refusal { return &refusal{wire.RefusalRequest, wire.Refuse(text)} }

// notReady is the refusal of an agent that is being prepared, or cannot be.
func (a *agent) notReady() *refusal {
	why := ""
	if g, ok := a.Newest(); ok {
		if cause := g.failed.Load(); cause != nil && *cause != wire.CauseRuntimeError {
			why = " (" + string(*cause) + ")"
		}
	}
	return &refusal{wire.RefusalUnavailable, wire.Refuse("Worker is not ready yet: busy with its preparation" + why + ". Try another worker.")}
}

// admit takes a slot for a task whose frame is complete, or says why not.
func (a *agent) admit(gateway peer.ID, conn network.Conn, req wire.TaskRequest) (*running, *generation, *refusal) {
	g := a.active.Load()
	switch {
	case req.Version != wire.Version:
		return nil, nil, &refusal{wire.RefusalRequest, wire.RefuseVersion()}
	case g == nil:
		return nil, nil, a.notReady()
	case g.away() != "":
		return nil, nil, &refusal{wire.RefusalUnavailable, wire.Refuse("Worker cannot start its agent now: busy (" + string(g.away()) + "). Try another worker.")}
	}
	if refused := g.unfitPrompt(req.Data); refused != nil {
		return nil, nil, refused
	}
	t, refused := a.take(g, req.TaskID, gateway, conn)
	return t, g, refused
}

// unfitPrompt is the refusal of a prompt that the runtime cannot take; nil for none.
func (g *generation) unfitPrompt(prompt string) *refusal {
	switch {
	case len(prompt) > g.runtime.PromptLimit():
		return unfit(fmt.Sprintf("The prompt has %d bytes; this agent takes at most %d.", len(prompt), g.runtime.PromptLimit()))
	case strings.Contains(prompt, "\x00") && !g.runtime.PromptNUL():
		return unfit("The prompt contains a NUL byte, which this agent cannot be given.")
	}
	return nil
}

// take takes a slot, or says why there is none.
func (a *agent) take(g *generation, id string, gateway peer.ID, conn network.Conn) (*running, *refusal) {
	if line := g.overloaded(machine.sample(a.closing)); line != "" {
		return nil, busy(line)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	_, taken := a.tasks[id]
	switch {
	case taken:
		return nil, unfit("A task of that id is running.")
	case a.leaving || !a.Lease():
		return nil, busy(wire.Refuse("Worker is shutting down: busy. Try another worker."))
	case len(a.tasks) >= g.config.MaxTasks:
		a.Release()
		return nil, busy(wire.RefuseTasks(len(a.tasks), g.config.MaxTasks))
	}
	t := &running{gateway: gateway, conn: conn, watched: make(chan struct{}), end: time.Now().Add(time.Duration(g.config.Timeout))}
	t.ctx, t.stop = context.WithCancelCause(a.base)
	a.tasks[id] = t
	a.working.Add(1)
	a.touch()
	return t, nil
}

// done gives back what take took beside the slot.
func (a *agent) done() {
	a.working.Done()
	a.Release()
}
