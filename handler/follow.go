// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/tasks"
)

// taskEvents serves GET /api/tasks/{id}/events: what happens to a task, as server-sent
// events, from its first step or the one after Last-Event-ID. The stream ends with the task,
// and as that of [exchange.events] does. To who has seen all of a task that has ended, the
// answer is 204: browsers ask no more then.
func (x *exchange) taskEvents() error {
	f, err := x.follow()
	if err != nil {
		return err
	}
	defer f.Close()
	after, _ := strconv.Atoi(x.lastEventID()) // what is none of ours gets all
	if after > f.Record.LastStep() {
		after = 0
	}
	if f.Record.State.Ended() && after == f.Record.LastStep() {
		x.writeHeader(http.StatusNoContent)
		return nil
	}
	if x.r.Method == http.MethodHead {
		x.begin("text/event-stream")
		return nil
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), eventsLife)
	defer cancel()
	var events []tasks.Event
	err = x.sendEvents(ctx, func(ctx context.Context) (text string, err error) {
		if len(events) == 0 {
			if events, err = f.Events(ctx, after); err != nil {
				return "", err
			}
		}
		e := events[0]
		events, after = events[1:], e.Number
		return taskEventText(e)
	})
	x.log().Debug("stream of events ended", zap.Error(err))
	return nil
}

// taskEventText returns an event of a task as it is sent. Its data is the task as it was then.
func taskEventText(e tasks.Event) (string, error) {
	b, err := encode(newTaskEntry(e.Record))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("event: %s\nid: %d\ndata: %s\n\n", e.Name, e.Number, b), nil
}

// follow begins to follow the task of the path.
func (x *exchange) follow() (*tasks.Follower, error) {
	f, err := x.h.tasks.Follow(x.r.Context(), x.client(), x.identity.ID, x.param)
	switch {
	case errors.Is(err, tasks.ErrFollowers), errors.Is(err, tasks.ErrFollowing):
		return nil, subscriptionProblem(err)
	case err != nil:
		return nil, taskStoreProblem(err)
	}
	_ = x.rc.SetReadDeadline(time.Time{})
	return f, nil
}

// Headers beside the output of a task.
const (
	headerTaskStatus = "X-AgentFM-Task-Status" // how far the task is
	headerTaskRun    = "X-AgentFM-Task-Run"    // which attempts the output is of
)

// outputQuery is the query of GET /api/tasks/{id}/output.
type outputQuery struct {
	follow bool
	offset int64
	run    string // what is continued; empty for anything
}

// outputQuery reads the query.
func (x *exchange) outputQuery() (q outputQuery, err error) {
	values := x.r.URL.Query()
	switch values.Get("follow") {
	case "", "false":
	case "true":
		q.follow = true
	default:
		return q, badRequest("follow", "follow: want true or false")
	}
	if s := values.Get("offset"); s != "" {
		if q.offset, err = strconv.ParseInt(s, 10, 64); err != nil || q.offset < 0 {
			return q, badRequest("offset", "offset: want a number of bytes")
		}
	}
	q.run = values.Get("run")
	return q, nil
}

// sameRun refuses to go on with an output that has begun anew.
func (q outputQuery) sameRun(r *tasks.Record) error {
	if q.run == "" || q.run == r.RunID() {
		return nil
	}
	return &problem{status: http.StatusConflict, code: "output_restarted", param: "run",
		message: "the attempt whose output that was is lost, and the task was begun anew; read the output from its beginning"}
}

// taskOutput serves GET /api/tasks/{id}/output: what the agent has said so far, and with
// follow what it still says.
func (x *exchange) taskOutput() error {
	q, err := x.outputQuery()
	if err != nil {
		return err
	}
	if q.follow && x.r.Method != http.MethodHead {
		return x.followOutput(q)
	}
	err = x.h.tasks.Output(x.r.Context(), x.identity.ID, x.param, q.offset, func(r *tasks.Record, o *tasks.Output) error {
		if err := q.sameRun(r); err != nil {
			return err
		}
		x.w.Header().Set(headerTaskStatus, string(r.State))
		if r.State == tasks.Completed {
			x.w.Header().Set("Content-Length", strconv.FormatInt(r.Bytes-q.offset, 10))
		}
		x.sendOutput(r, o.Next)
		return nil
	})
	if err != nil {
		return taskStoreProblem(err)
	}
	return nil
}

// followOutput answers with an output as it comes. When the task ends, so does the answer,
// and a trailer says how; in any other case it is broken off.
func (x *exchange) followOutput(q outputQuery) error {
	f, err := x.follow()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := q.sameRun(f.Record); err != nil {
		return err
	}
	ctx := x.r.Context()
	if err := f.Seek(ctx, q.offset); err != nil {
		return taskStoreProblem(err)
	}
	x.w.Header().Set("Trailer", headerTaskStatus)
	x.sendOutput(f.Record, func() ([]byte, error) { return f.Output(ctx) })
	x.w.Header().Set(headerTaskStatus, string(f.Record.State))
	return nil
}

// sendOutput answers with an output, piece by piece up to io.EOF.
func (x *exchange) sendOutput(r *tasks.Record, next func() ([]byte, error)) {
	h := x.w.Header()
	h.Set(headerTaskRun, r.RunID())
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	out := x.begin("text/plain; charset=utf-8")
	if x.r.Method == http.MethodHead {
		return
	}
	_ = x.rc.Flush() // there may be nothing to read for long
	for {
		piece, err := next()
		switch {
		case err == io.EOF:
			return
		case err != nil:
			x.gone(err)
			panic(http.ErrAbortHandler) // so that the client sees that it is not whole
		}
		if _, err := out.Write(piece); err != nil {
			x.gone(err)
			return
		}
	}
}
