// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// fleet is a list of workers as a gateway gives it.
const fleet = `{"success":true,"online_count":3,"offline_count":1,"agents":[
{"peer_id":"A","author":"Ann","name":"HR Assistant","status":"AVAILABLE","hardware":"llama3.2 (CPU: 8 Cores)","current_tasks":0,"max_tasks":2,"online":true,"dispatch_allowed":true,"gpu_usage_pct":50,"honesty_score":0.5,"last_seen":"2026-01-02T03:04:05Z"},
{"peer_id":"B","author":"bob","name":"Painter","status":"BUSY","hardware":"flux.2 (GPU VRAM: 1.0/8.0 GB)","current_tasks":2,"max_tasks":2,"has_gpu":true,"online":true,"dispatch_allowed":true,"gpu_usage_pct":10},
{"peer_id":"C","author":"bob","name":"Painter","status":"AVAILABLE","hardware":"flux.2 (GPU VRAM: 1.0/8.0 GB)","current_tasks":1,"max_tasks":2,"has_gpu":true,"online":true,"dispatch_allowed":false,"dispatch_refuse_reason":"reputation_below_floor"}`

// offline is one more, that is asked for.
const offline = `,{"peer_id":"D","name":"gone","status":"AVAILABLE","hardware":"llama3.2","online":false,"dispatch_allowed":true}`

// fleetRoute answers with the workers.
func fleetRoute(w http.ResponseWriter, r *http.Request) {
	list := fleet
	if r.URL.Query().Get("include_offline") == "true" {
		list += offline
	}
	answer(200, list+"]}")(w, r)
}

// ids are the peer ids of workers.
func ids(workers []Worker) (ids []string) {
	for _, w := range workers {
		ids = append(ids, w.PeerID)
	}
	return ids
}

func TestWorkersList(t *testing.T) {
	c := fake(t, routes{"GET /api/workers": fleetRoute})
	list, err := c.Workers.List(t.Context(), WorkerFilter{Name: "Painter"})
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	if w := list[0]; w.Author != "bob" || w.Model != "flux.2" || w.CurrentTasks != 2 || w.MaxTasks != 2 || !w.HasGPU || w.GPUPercent != 10 || !w.DispatchAllowed {
		t.Errorf("%+v", w)
	}
	for _, f := range []struct {
		filter WorkerFilter
		want   string
	}{
		{WorkerFilter{}, "ABC"},
		{WorkerFilter{IncludeOffline: true}, "ABCD"},
		{WorkerFilter{AvailableOnly: true, IncludeOffline: true}, "A"},
		{WorkerFilter{Model: " Llama3.2 "}, "A"},
		{WorkerFilter{Model: "llama"}, ""},
		{WorkerFilter{Name: "painter"}, "BC"},
		{WorkerFilter{Author: "ANN"}, "A"},
		{WorkerFilter{Author: "bob", Model: "flux.2", AvailableOnly: true}, ""},
	} {
		list, err := c.Workers.List(t.Context(), f.filter)
		got := ""
		for _, id := range ids(list) {
			got += id
		}
		if err != nil || got != f.want || list == nil {
			t.Errorf("%+v: %s, %v", f.filter, got, err)
		}
	}
	w, err := c.Workers.Get(t.Context(), "A")
	if err != nil || w.Name != "HR Assistant" || w.Model != "llama3.2" || w.LastSeen != time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) || w.HonestyScore != 0.5 {
		t.Error(w, err)
	}
	if w, err := c.Workers.Get(t.Context(), "D"); err != nil || w.Online {
		t.Error(w, err)
	}
	if _, err := c.Workers.Get(t.Context(), "E"); !errors.Is(err, ErrWorkerNotFound) || !errors.Is(err, CodeWorkerNotFound) {
		t.Error(err)
	}
	peers, err := c.Peers.List(t.Context(), true)
	if err != nil || !slices.Equal(ids(peers), []string{"A", "B", "C", "D"}) {
		t.Error(ids(peers), err)
	}
}

func TestWorkersWait(t *testing.T) {
	var calls atomic.Int64
	c := fake(t, routes{"GET /api/workers": func(w http.ResponseWriter, r *http.Request) {
		switch calls.Add(1) {
		case 1:
			problem(503, CodeMeshOverloaded)(w, r)
		case 2:
			answer(200, `{"agents":[]}`)(w, r)
		default:
			fleetRoute(w, r)
		}
	}}, WithRetries(0))
	list, err := c.Workers.Wait(t.Context(), 1, WorkerFilter{Model: "flux.2"})
	if err != nil || len(list) != 2 || calls.Load() != 3 {
		t.Error(list, err, calls.Load())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Workers.Wait(ctx, 4, WorkerFilter{}); !errors.Is(err, ErrContext) || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	refused := fake(t, routes{"/": problem(401, CodeInvalidAPIKey)})
	if _, err := refused.Workers.Wait(t.Context(), 1, WorkerFilter{}); !errors.Is(err, ErrAuthentication) {
		t.Error(err)
	}
}
