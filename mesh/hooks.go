// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"
)

// hook joins the app to Caddy's events: it hears when all of the configuration
// runs, and when Caddy exits.
func (a *App) hook(ctx caddy.Context) error {
	mod, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("loading the app events: %w", err)
	}
	a.caddyEvents = mod.(*caddyevents.App)
	return errors.Join(
		a.caddyEvents.On("started", onEvent{a.started}),
		a.caddyEvents.On("stopping", onEvent{a.stopping}))
}

// started gives the node's events to this configuration, from now on. Before,
// the app of events may still be taking in who subscribes.
func (a *App) started() {
	if n := a.node.Load(); n != nil {
		n.emitter.Store(a)
		n.emitting.Do(func() { close(n.emit) })
	}
}

// stopping ends the streams of events when Caddy exits: it waits for open
// requests, and these would not end.
func (a *App) stopping() {
	if n := a.node.Load(); n != nil && caddy.Exiting() {
		n.directory.events.Close()
		for _, s := range a.services {
			if s, ok := s.(interface{ EndFollowing() }); ok {
				s.EndFollowing()
			}
		}
	}
}

// emit tells Caddy's subscribers of an event. It returns when they have handled it.
func (a *App) emit(ev Event) {
	data := map[string]any{"peer_id": ev.Peer, "agent_name": ev.Agent, "model": ev.Model}
	if ev.Name == EntryAppended {
		data["kind"] = ev.Kind
	}
	a.caddyEvents.Emit(a.ctx, "agentfm."+ev.Name, data)
}

// emitEvents gives the node's events to Caddy, each with the configuration that
// is the newest then, until ctx ends. The first of them waits for all the rest of
// its configuration.
func (n *node) emitEvents(ctx context.Context) {
	defer close(n.emitted)
	select {
	case <-n.emit:
	case <-ctx.Done():
		return
	}
	for from := "0"; ctx.Err() == nil; { // no event's id: all that there are
		s, err := n.directory.events.Subscribe("", from)
		if errors.Is(err, ErrSubscribers) { // until one has left
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		if err != nil {
			return
		}
		for {
			var ev Event
			if ev, err = s.Next(ctx); err != nil {
				break
			}
			from = ev.ID
			if a := n.emitter.Load(); a != nil && a.ctx.Err() == nil {
				a.emit(ev)
			}
		}
		s.Close()
		if errors.Is(err, ErrSlow) {
			n.log().Warn("events were lost: their handlers did not keep up", zap.Error(err))
		}
	}
}

// handlerGrace is how long the node's end waits for a handler of an event.
const handlerGrace = time.Second

// awaitEmitter waits until no more events are emitted. A handler is somebody
// else's code, which must not keep the node open.
func (n *node) awaitEmitter() {
	grace := time.NewTimer(handlerGrace)
	defer grace.Stop()
	select {
	case <-n.emitted:
	case <-grace.C:
	}
}

// onEvent is a function as a handler of Caddy's events. It is a struct because
// Caddy logs its handlers as JSON.
type onEvent struct{ do func() }

// Handle implements caddyevents.Handler.
func (f onEvent) Handle(context.Context, caddy.Event) error {
	f.do()
	return nil
}

// Interface guard
var _ caddyevents.Handler = onEvent{}
