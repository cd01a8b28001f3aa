// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"strings"
	"time"
)

// Wait waits for the end of a task and returns it then. That the task failed is no error
// of Wait: see [Task.Err].
func (s *TaskService) Wait(ctx context.Context, id string) (*Task, error) {
	var last *Task
	for ev, err := range s.Events(ctx, id, "") {
		if e, ok := errors.AsType[*Error](err); ok && noEvents(e) {
			return s.poll(ctx, id)
		}
		if err != nil {
			return nil, err
		}
		if last = &ev.Task; last.Status.Ended() {
			break
		}
	}
	if last == nil || !last.Status.Ended() {
		return s.poll(ctx, id)
	}
	return last, nil
}

// noEvents reports whether a gateway has no events of tasks, or no room for another stream
// of them.
func noEvents(e *Error) bool {
	return e.Code == CodeNotFound || e.Kind == ErrRateLimited || e.Kind == ErrMeshOverloaded
}

// taskPoll is how often a task is looked at where there are no events. A variable for tests.
var taskPoll = 2 * time.Second

// poll is Wait without events.
func (s *TaskService) poll(ctx context.Context, id string) (*Task, error) {
	for {
		t, err := s.Get(ctx, id)
		if err != nil || t.Status.Ended() {
			return t, err
		}
		if !pause(ctx, taskPoll) {
			return nil, transportError(ctx, ctx.Err(), "waiting for task "+strings.TrimSpace(id))
		}
	}
}
