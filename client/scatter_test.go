// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// mill is a gateway whose workers do what their peer ids say: "ok…", "busy…" and so on.
type mill struct {
	mu     sync.Mutex
	given  map[string]int // by worker
	now    int
	most   int // at once
	block  chan struct{}
	failed atomic.Int64
}

func (m *mill) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var req RunRequest
	if err := json.NewDecoder(r.Body).Decode(&struct {
		Worker *string `json:"worker_id"`
		Prompt *string `json:"prompt"`
	}{&req.WorkerID, &req.Prompt}); err != nil {
		problem(400, CodeInvalidRequest)(w, r)
		return
	}
	m.mu.Lock()
	m.given[req.WorkerID]++
	m.now++
	m.most = max(m.most, m.now)
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.now--
	}()
	if m.block != nil {
		select {
		case <-m.block:
		case <-r.Context().Done():
			return
		}
	}
	kind, _, _ := strings.Cut(req.WorkerID, "-")
	switch {
	case req.Prompt == "bad":
		problem(400, CodeContextLength)(w, r)
	case kind == "busy":
		problem(503, CodeMeshOverloaded)(w, r)
	case kind == "gone":
		problem(404, CodeWorkerNotFound)(w, r)
	case kind == "half":
		execution("half", "error")(w, r)
	case kind == "dead":
		broken(w, r)
	case kind == "locked":
		m.failed.Add(1)
		problem(401, CodeInvalidAPIKey)(w, r)
	default:
		execution("did "+req.Prompt+"\n[AGENTFM: NO_FILES]\n", "ok")(w, r)
	}
}

// newMill returns one, and a client of it.
func newMill(t *testing.T) (*mill, *Client) {
	m := &mill{given: map[string]int{}}
	return m, fake(t, routes{"POST /api/execute": m.ServeHTTP, "GET /api/workers": fleetRoute})
}

func TestScatter(t *testing.T) {
	m, c := newMill(t)
	prompts := []string{"0", "1", "bad", "3", "4", "5", "6", "7"}
	told := map[int]bool{}
	results, err := c.Tasks.Scatter(t.Context(), prompts, ScatterOptions{
		Peers: []string{"busy-1", "gone-1", "ok-1", "ok-2", "half-1", "dead-1", "ok-1"}, MaxConcurrency: 3, MaxRetries: 5,
		OnResult: func(r ScatterResult) { told[r.Index] = true },
	})
	if err != nil || len(results) != len(prompts) || len(told) != len(prompts) {
		t.Fatal(len(results), told, err)
	}
	for i, r := range results {
		if i == 2 {
			if r.Status != ScatterFailed || !errors.Is(r.Err, CodeContextLength) || r.Attempts < 1 || r.WorkerID == "" {
				t.Errorf("%+v", r)
			}
			continue
		}
		if r.Index != i || r.Status != ScatterSuccess || r.Err != nil || r.Text != "did "+prompts[i]+"\n" || !strings.HasPrefix(r.WorkerID, "ok-") || r.Duration <= 0 {
			t.Errorf("%d: %+v", i, r)
		}
	}
	if m.most > 3 || m.given["ok-1"] == 0 || m.given["ok-2"] == 0 {
		t.Error(m.most, m.given)
	}
}

// TestScatterFails wants a prompt that no worker can do to be a result, after so many tries.
func TestScatterFails(t *testing.T) {
	for _, f := range []struct {
		peers    []string
		retries  int
		attempts int
		is       error
	}{
		{[]string{"busy-1", "busy-2"}, 0, 3, ErrMeshOverloaded},
		{[]string{"gone-1"}, 1, 2, ErrWorkerNotFound},
		{[]string{"half-1", "half-2"}, 1, 2, ErrWorkerStream},
		{[]string{"dead-1"}, -1, 1, ErrConnection},
	} {
		m, c := newMill(t)
		results, err := c.Tasks.Scatter(t.Context(), []string{"x"}, ScatterOptions{Peers: f.peers, MaxRetries: f.retries})
		if err != nil {
			t.Fatal(err)
		}
		if r := results[0]; r.Status != ScatterFailed || !errors.Is(r.Err, f.is) || r.Attempts != f.attempts || !slices.Contains(f.peers, r.WorkerID) {
			t.Errorf("%v: %+v, %v", f.peers, r, m.given)
		}
		if f.attempts > 1 && len(f.peers) > 1 && len(m.given) != len(f.peers) {
			t.Errorf("%v: no failover: %v", f.peers, m.given)
		}
	}
}

// TestScatterFiles wants an agent that has ended well to run no more because its files cannot
// be had, whatever the reason, and what it said to be there.
func TestScatterFiles(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"gone":        problem(404, CodeTaskNotFound),
		"limited":     problem(429, CodeRateLimited),
		"unavailable": problem(503, CodeTaskStoreUnavailable),
		"fault":       problem(500, CodeInternal),
		"broken":      func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"no zip":      answer(200, "x"),
		"a link out":  func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(zipOf(t, map[string]string{"../x": ""})) },
	} {
		runs := 0
		c := fake(t, routes{"GET /api/tasks/task-1/artifacts": h, "POST /api/execute": func(w http.ResponseWriter, r *http.Request) {
			runs++
			execution("done\n[AGENTFM: FILES_INCOMING]\n", "ok")(w, r)
		}}, WithRetries(0))
		results, err := c.Tasks.Scatter(t.Context(), []string{"x"}, ScatterOptions{Peers: []string{"A", "B"}, MaxConcurrency: 1, ArtifactsDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		r := results[0]
		if e, ok := errors.AsType[*Error](r.Err); !ok || e.Kind != ErrArtifact || r.Status != ScatterFailed {
			t.Errorf("%s: %+v", name, r)
		}
		if runs != 1 || r.Attempts != 1 || r.Text != "done\n" || !r.HasFiles || r.TaskID != "task-1" {
			t.Errorf("%s: %d runs, %+v", name, runs, r)
		}
	}
}

// TestScatterKey wants a wrong key not to be sent with each prompt: that locks a client out.
func TestScatterKey(t *testing.T) {
	m, c := newMill(t)
	results, err := c.Tasks.Scatter(t.Context(), make([]string, 50), ScatterOptions{Peers: []string{"locked"}, MaxConcurrency: 2})
	if err != nil || len(results) != 50 {
		t.Fatal(err)
	}
	for _, r := range results { // an empty prompt is not sent
		if r.Status != ScatterFailed || !errors.Is(r.Err, ErrInvalidRequest) {
			t.Fatalf("%+v", r)
		}
	}
	prompts := slices.Repeat([]string{"x"}, 50)
	results, _ = c.Tasks.Scatter(t.Context(), prompts, ScatterOptions{Peers: []string{"locked"}, MaxConcurrency: 2})
	for _, r := range results {
		if !errors.Is(r.Err, ErrAuthentication) {
			t.Fatalf("%+v", r)
		}
	}
	if n := m.failed.Load(); n < 1 || n > 2 {
		t.Errorf("%d requests with a wrong key", n)
	}
}

// TestScatterEnds wants a context that ends to end the batch, with a result for each prompt.
func TestScatterEnds(t *testing.T) {
	m, c := newMill(t)
	m.block = make(chan struct{}, 2)
	m.block <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	results, err := c.Tasks.Scatter(ctx, slices.Repeat([]string{"x"}, 20), ScatterOptions{
		Peers: []string{"ok-1", "ok-2"}, MaxConcurrency: 4, OnResult: func(ScatterResult) { cancel() },
	})
	if err != nil || len(results) != 20 {
		t.Fatal(err)
	}
	good := 0
	for _, r := range results {
		if r.Status == ScatterSuccess {
			good++
		} else if !errors.Is(r.Err, ErrContext) || !errors.Is(r.Err, context.Canceled) {
			t.Errorf("%+v", r)
		}
	}
	if good != 1 {
		t.Error(good)
	}
}

func TestScatterByModel(t *testing.T) {
	for name, f := range map[string]struct {
		o    ScatterByModelOptions
		want []string
		is   error
	}{
		"available": {ScatterByModelOptions{Model: "LLAMA3.2"}, []string{"A"}, nil},
		"none free": {ScatterByModelOptions{Model: "flux.2"}, []string{"B", "C"}, nil},
		"at most":   {ScatterByModelOptions{Model: "flux.2", MaxWorkers: 1}, []string{"B"}, nil},
		"picked": {ScatterByModelOptions{Model: "flux.2", Pick: func(ws []Worker) []Worker {
			slices.SortFunc(ws, func(a, b Worker) int { return int(a.GPUPercent - b.GPUPercent) })
			return ws[:1]
		}}, []string{"C"}, nil},
		"none picked":  {ScatterByModelOptions{Model: "flux.2", Pick: func([]Worker) []Worker { return nil }}, nil, ErrModelNotFound},
		"nobody":       {ScatterByModelOptions{Model: "gpt"}, nil, CodeModelNotFound},
		"no model":     {ScatterByModelOptions{}, nil, ErrInvalidRequest},
		"peers, too":   {ScatterByModelOptions{Model: "flux.2", ScatterOptions: ScatterOptions{Peers: []string{"A"}}}, nil, ErrInvalidRequest},
		"less than 0":  {ScatterByModelOptions{Model: "flux.2", MaxWorkers: -1}, nil, ErrInvalidRequest},
		"concurrency":  {ScatterByModelOptions{Model: "flux.2", ScatterOptions: ScatterOptions{MaxConcurrency: -1}}, nil, ErrInvalidRequest},
		"no such peer": {ScatterByModelOptions{Model: "flux.2", Pick: func([]Worker) []Worker { return make([]Worker, 1) }}, nil, ErrInvalidRequest},
	} {
		m, c := newMill(t)
		results, err := c.Tasks.ScatterByModel(t.Context(), []string{"1", "2", "3", "4"}, f.o)
		if !errors.Is(err, f.is) || (f.is == nil) != (len(results) == 4) {
			t.Errorf("%s: %v, %v", name, results, err)
		}
		for peer := range m.given {
			if !slices.Contains(f.want, peer) {
				t.Errorf("%s: %v", name, m.given)
			}
		}
		if len(m.given) != len(f.want) {
			t.Errorf("%s: %v", name, m.given)
		}
	}
}
