// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"github.com/Agent-FM/caddy-agentfm/openai"
)

// TaskEvent is a step of a task.
type TaskEvent struct {
	// ID is for a later call of [TaskService.Events], which goes on after it.
	ID string
	// Name is what happened: a state, such as "running", or "webhook" for an attempt to
	// deliver that.
	Name string
	// Task is the task as it was then.
	Task Task
}

// Events returns what happens to a task, from its beginning, or after the event of an id,
// until the task has ended. When the connection breaks it goes on where it was. An error is
// the last.
func (s *TaskService) Events(ctx context.Context, id, after string) iter.Seq2[TaskEvent, error] {
	return func(yield func(TaskEvent, error) bool) {
		path, err := taskPath(id, "/events")
		if err != nil {
			yield(TaskEvent{}, err)
			return
		}
		for idle := 0; ; idle++ {
			last := after
			more, err := s.readEvents(ctx, path, &after, yield)
			if !more {
				return
			}
			if last != after {
				idle = 0
			}
			if e, ok := errors.AsType[*Error](err); ok && (!e.broken() || idle >= s.c.retries) {
				yield(TaskEvent{}, err)
				return
			}
			if !pause(ctx, s.c.wait(idle, 0)) {
				yield(TaskEvent{}, transportError(ctx, ctx.Err(), "following the task"))
				return
			}
		}
	}
}

// readEvents reads one stream of events, after the one of an id, which it moves on. more
// says that there may be others, and the loop wants them.
func (s *TaskService) readEvents(ctx context.Context, path string, after *string, yield func(TaskEvent, error) bool) (more bool, err error) {
	r := request{method: http.MethodGet, path: path, accept: "text/event-stream", again: true}
	r.set("Last-Event-ID", *after)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := s.c.open(ctx, r)
	if err != nil {
		return true, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNoContent { // all has been seen
		return false, nil
	}
	if !isEventStream(resp.Header.Get("Content-Type")) {
		return true, withID(protocolError(nil, "%s: the answer is no stream of events", r.doing()), resp)
	}
	ended := false
	for events := newEventReader(resp.Body); ; {
		got, err := events.next()
		switch {
		case err == io.EOF: // the gateway ends each stream after an hour
			return !ended, nil
		case errors.Is(err, errEventSize):
			return true, withID(protocolError(err, "%s", r.doing()), resp)
		case err != nil:
			return true, withID(transportError(ctx, err, r.doing()), resp)
		}
		ev := TaskEvent{ID: got.id, Name: got.name}
		if err := decode(got.data, &ev.Task, r.doing()); err != nil {
			return true, err
		}
		*after, ended = ev.ID, ev.Task.Status.Ended()
		if !yield(ev, nil) {
			return false, nil
		}
	}
}

// Output is what the agent of a task has said.
type Output struct {
	Text string
	// Status is how far the task is: while it runs, the text is what there is so far.
	Status TaskStatus
}

// Output returns what the agent of a task has said: all of it, or so far.
func (s *TaskService) Output(ctx context.Context, id string) (*Output, error) {
	path, err := taskPath(id, "/output")
	if err != nil {
		return nil, err
	}
	var out Output
	r := request{method: http.MethodGet, path: path, accept: "text/plain", again: true}
	err = s.c.retry(ctx, r, func(ctx context.Context, resp *http.Response) error {
		defer resp.Body.Close()
		body, err := readAll(ctx, resp, maxOutput, r.doing())
		var cut openai.Cutter
		out = Output{Text: cut.Next(body) + cut.Rest(), Status: TaskStatus(resp.Header.Get("X-AgentFM-Task-Status"))}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &out, nil
}

// Follow returns what the agent of a task says as it comes, from the beginning, until the
// task has ended. When the connection breaks it goes on where it was. An error is the last:
// one of [CodeOutputRestarted] says that the attempt whose output that was is lost, and the
// task was begun anew. How the task ended is what [TaskService.Get] says.
func (s *TaskService) Follow(ctx context.Context, id string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		path, err := taskPath(id, "/output")
		if err != nil {
			yield("", err)
			return
		}
		f := follower{s: s, path: path, yield: yield}
		for idle := 0; ; idle++ {
			last := f.offset
			err := f.read(ctx)
			if f.done {
				return
			}
			if last != f.offset {
				idle = 0
			}
			if e, ok := errors.AsType[*Error](err); ok && (!e.broken() || idle >= s.c.retries) {
				yield("", err)
				return
			}
			if !pause(ctx, s.c.wait(idle, 0)) {
				yield("", transportError(ctx, ctx.Err(), "following the output"))
				return
			}
		}
	}
}

// follower is an output that is followed.
type follower struct {
	s      *TaskService
	path   string
	yield  func(string, error) bool
	cutter openai.Cutter
	offset int64
	run    string
	done   bool
}

// read reads one answer, from the offset on, which it moves.
func (f *follower) read(ctx context.Context) error {
	query := url.Values{"follow": {"true"}}
	if f.offset > 0 {
		query.Set("offset", strconv.FormatInt(f.offset, 10))
		query.Set("run", f.run)
	}
	r := request{method: http.MethodGet, path: f.path, query: query, accept: "text/plain", again: true}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := f.s.c.open(ctx, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	f.run = resp.Header.Get("X-AgentFM-Task-Run")
	buf := make([]byte, readSize)
	for {
		n, err := resp.Body.Read(buf)
		f.offset += int64(n)
		if text := f.cutter.Next(buf[:n]); text != "" && !f.yield(text, nil) {
			f.done = true
			return nil
		}
		if err == io.EOF {
			if rest := f.cutter.Rest(); rest == "" || f.yield(rest, nil) {
				f.ended(resp)
			}
			f.done = true
			return nil
		}
		if err != nil {
			return withID(transportError(ctx, err, r.doing()), resp)
		}
	}
}

// ended tells of an answer that ended well while the task had not: a gateway that cannot
// follow answers with what there is.
func (f *follower) ended(resp *http.Response) {
	status := TaskStatus(resp.Trailer.Get("X-AgentFM-Task-Status"))
	if status == "" {
		status = TaskStatus(resp.Header.Get("X-AgentFM-Task-Status"))
	}
	if status != "" && !status.Ended() {
		f.yield("", withID(protocolError(nil, "the output ended before the task"), resp))
	}
}
