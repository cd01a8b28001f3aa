// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
)

// F25: a gateway with few open files, little memory and one processor gets more clients
// than it has files for. What it cannot do it refuses with 503, or it makes the client
// wait; it does not end, loses no task that it has accepted, and works again afterwards.
func TestF25SmallGateway(t *testing.T) {
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	small := writeScript(t, fmt.Sprintf("#!/bin/sh\nulimit -n 256\nexec %q \"$@\"\n", program))
	m := joinMesh(t, small, "off", withKey, "GOMEMLIMIT=256MiB", "GOMAXPROCS=1")
	clients := scaled(600, 2000)
	m.worker(openAIAgent("mock", "mock", newModelServer(t).url, clients))
	m.gateway.awaitModel("mock")

	var (
		mu            sync.Mutex
		accepted      []string
		well, refused atomic.Int64
	)
	submit := func() int {
		status, id := m.gateway.submit(t, "mock", "echo hello")
		mu.Lock()
		defer mu.Unlock()
		if status == http.StatusAccepted {
			accepted = append(accepted, id)
		}
		return status
	}
	each(clients, clients, func(i int) {
		if i%10 == 0 {
			if status := submit(); status != http.StatusAccepted && status != http.StatusServiceUnavailable {
				t.Errorf("a submission got %d", status)
			}
			return
		}
		switch r := m.gateway.stream(t.Context(), chatRequest("mock", "count 5 200ms", true)); {
		case r.well():
			well.Add(1)
		case r.status == http.StatusServiceUnavailable:
			refused.Add(1)
		default:
			t.Errorf("a chat got %+v", r)
		}
	})
	t.Logf("%d chats: %d went well, %d were refused; %d of %d tasks were accepted", clients*9/10, well.Load(), refused.Load(), len(accepted), clients/10)
	m.gateway.await("a submission afterwards", func() bool { return submit() == http.StatusAccepted })
	for _, id := range accepted {
		m.gateway.await("the end of "+id, func() bool { return m.gateway.taskAs(t, testKey, id).Status == "completed" })
	}
	if r := m.gateway.stream(t.Context(), chatRequest("mock", "count 2 1ms", true)); !r.well() {
		t.Errorf("afterwards, a chat got %+v", r)
	}
}

// submit submits a task, and returns the status and its id.
func (p *process) submit(t *testing.T, model, prompt string) (int, string) {
	t.Helper()
	resp, err := p.send(t.Context(), http.MethodPost, "/api/execute/async", map[string]any{"model": model, "prompt": prompt})
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer resp.Body.Close()
	var answer struct {
		ID string `json:"task_id"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Error(err)
	}
	return resp.StatusCode, answer.ID
}
