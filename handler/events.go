// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// eventsHeartbeat is how often a silent stream of events says that it lives. A
// variable for tests.
var eventsHeartbeat = 15 * time.Second

// eventsLife is how long one stream of events lasts. Then its client comes back,
// with the rights that it has by then: keys expire, and are taken back. A variable
// for tests.
var eventsLife = time.Hour

// events serves GET /v1/events: what happens on the mesh, as server-sent events.
// The stream ends after an hour, when its client does not read, when the node
// closes and when Caddy exits. It holds no lease, so that it does not keep the node open.
func (x *exchange) events() error {
	l, err := x.takeLease()
	if err != nil {
		return err
	}
	if x.r.Method == http.MethodHead {
		x.begin("text/event-stream")
		return nil
	}
	s, err := l.Events(x.client(), x.lastEventID())
	if err != nil {
		return subscriptionProblem(err)
	}
	defer s.Close()
	l.Release()
	_ = x.rc.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithTimeout(x.r.Context(), eventsLife)
	defer cancel()
	err = x.sendEvents(ctx, func(ctx context.Context) (string, error) { return x.nextText(ctx, s) })
	x.log().Debug("stream of events ended", zap.Error(err))
	return nil
}

// sendEvents sends the texts of events until ctx ends, there are no more, or the client
// does not take them; the error says which. next returns the next one by the end of its
// context.
func (x *exchange) sendEvents(ctx context.Context, next func(context.Context) (string, error)) error {
	w := x.begin("text/event-stream")
	for text := ":ready\n\n"; ; {
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
		silent, cancel := context.WithTimeout(ctx, eventsHeartbeat)
		var err error
		text, err = next(silent)
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
			text = ":heartbeat\n\n"
		case err != nil:
			return err
		}
	}
}

// nextText returns the next event that the client may see, as it is sent. A heartbeat
// comes when it is time for one, whatever else happens on the mesh.
func (x *exchange) nextText(ctx context.Context, s *mesh.Subscription) (string, error) {
	for {
		ev, err := s.Next(ctx)
		switch {
		case err != nil:
			return "", err
		case x.identity.MayUse(ev.Peer, ev.Agent, ev.Model):
			return x.eventText(ev)
		}
	}
}

// eventText returns an event as it is sent. The data is one line: JSON escapes
// what would end it.
func (x *exchange) eventText(ev mesh.Event) (string, error) {
	var data any
	switch ev.Name {
	case mesh.WorkerOnline:
		id, _ := decodePeer(ev.Peer) // that of a worker
		data = struct {
			Peer    string  `json:"peer_id"`
			Agent   string  `json:"agent_name"`
			Honesty float64 `json:"honesty_score"`
		}{ev.Peer, ev.Agent, x.h.ledger.Standing(id).Score}
	case mesh.EntryAppended:
		id, err := decodePeer(ev.Peer)
		if err != nil {
			return "", err
		}
		data = struct {
			Subject string `json:"subject_peer_id"`
			Kind    string `json:"kind"`
		}{hex.EncodeToString([]byte(id)), ev.Kind}
	default:
		data = struct {
			Peer string `json:"peer_id"`
		}{ev.Peer}
	}
	b, err := encode(data)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("event: %s\nid: %s\ndata: %s\n\n", ev.Name, ev.ID, b), nil
}

// lastEventID is the id of the last event that the client has seen. The
// parameter is for those who cannot set the header on their first request.
func (x *exchange) lastEventID() string {
	if id := x.r.Header.Get("Last-Event-ID"); id != "" {
		return id
	}
	return x.r.URL.Query().Get("last_event_id")
}

// subscriptionProblem is the answer to who gets no events.
func subscriptionProblem(err error) error {
	switch {
	case errors.Is(err, mesh.ErrSubscriptions), errors.Is(err, tasks.ErrFollowing):
		return &problem{status: http.StatusTooManyRequests, code: "rate_limited", retryAfter: 10,
			message: "too many streams of events are open for this client", cause: err}
	case errors.Is(err, mesh.ErrSubscribers), errors.Is(err, tasks.ErrFollowers):
		return overloaded("too many streams of events are open")
	}
	return mesh.ErrNotRunning
}
