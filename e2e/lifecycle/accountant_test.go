// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

// accountant submits tasks to a gateway that is killed again and again, and counts at
// the end what became of each that was accepted.
type accountant struct {
	t    *testing.T
	sink *httptest.Server

	mu       sync.Mutex
	accepted map[string]string     // prompts of the tasks with a 202, by their ids
	ends     map[string]taskReport // the first end that was seen of a task
	told     map[string][]string   // bodies of webhooks, by the ids of tasks
	settled  map[string]bool       // tasks with an end that was told of
	regress  []string              // tasks that had another end later
}

// taskReport is a task as the gateway shows it.
type taskReport struct {
	ID       string `json:"task_id"`
	Status   string `json:"status"`
	Reason   string `json:"reason"`
	Attempts int    `json:"attempts"`
	Webhook  struct {
		Status string `json:"status"`
	} `json:"webhook"`
}

func (r taskReport) ended() bool { return r.Status != "queued" && r.Status != "running" }

// newAccountant returns one that receives webhooks.
func newAccountant(t *testing.T) *accountant {
	a := &accountant{t: t, accepted: make(map[string]string), ends: make(map[string]taskReport), told: make(map[string][]string), settled: make(map[string]bool)}
	a.sink = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var v taskReport
		if err != nil || json.Unmarshal(body, &v) != nil {
			return
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		a.told[v.ID] = append(a.told[v.ID], string(body))
	}))
	t.Cleanup(a.sink.Close)
	return a
}

// call sends a request; the status is 0 when there was no whole answer.
func (a *accountant) call(ctx context.Context, g gateway, method, path string, body, into any) int {
	data, err := json.Marshal(body)
	if err != nil {
		a.t.Error(err)
		return 0
	}
	req, err := http.NewRequestWithContext(ctx, method, g.place.url(path), bytes.NewReader(data))
	if err != nil {
		a.t.Error(err)
		return 0
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return 0
	}
	return resp.StatusCode
}

// submit submits tasks for the agent "counted", one after the other, until ctx ends.
func (a *accountant) submit(ctx context.Context, g gateway, client int) {
	for n := 0; ctx.Err() == nil; n++ {
		a.submitOne(ctx, g, "counted", fmt.Sprintf("%d-%d", client, n))
	}
}

// submitOne submits a task. Where it is not accepted for now, it waits a moment.
func (a *accountant) submitOne(ctx context.Context, g gateway, model, prompt string) {
	var v taskReport
	switch a.call(ctx, g, "POST", "/api/execute/async", map[string]string{"model": model, "prompt": prompt, "webhook_url": a.sink.URL}, &v) {
	case http.StatusAccepted:
		a.mu.Lock()
		a.accepted[v.ID] = prompt
		a.mu.Unlock()
	case http.StatusServiceUnavailable, http.StatusNotFound, 0: // full, no worker yet, or killed
		sleep(ctx, 20*time.Millisecond)
	default:
		a.t.Errorf("a submission was refused: %+v", v)
	}
}

// count returns how many tasks were accepted so far.
func (a *accountant) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.accepted)
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// some returns ids of tasks that were accepted, so many or all; of those that are to settle
// yet, or of any.
func (a *accountant) some(most int, open bool) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var ids []string
	for id := range a.accepted {
		if len(ids) < most && !(open && a.settled[id]) {
			ids = append(ids, id)
		}
	}
	return ids
}

// lookers is how many tasks are looked at together.
const lookers = 16

// look asks for tasks, and notes their ends.
func (a *accountant) look(ctx context.Context, g gateway, ids []string) (open, untold int) {
	next := make(chan string)
	var all sync.WaitGroup
	for range lookers {
		all.Go(func() {
			for id := range next {
				o, u := a.lookAt(ctx, g, id)
				a.mu.Lock()
				open, untold = open+o, untold+u
				a.mu.Unlock()
			}
		})
	}
	for _, id := range ids {
		next <- id
	}
	close(next)
	all.Wait()
	return open, untold
}

// lookAt asks for one. It is open without an end, and untold while nobody was told of that.
func (a *accountant) lookAt(ctx context.Context, g gateway, id string) (open, untold int) {
	var v taskReport
	if status := a.call(ctx, g, "GET", "/api/tasks/"+id, nil, &v); status == http.StatusNotFound {
		a.t.Errorf("task %s is gone", id)
		return 0, 0
	} else if status != http.StatusOK || !v.ended() {
		return 1, 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	first, seen := a.ends[id]
	if !seen {
		a.ends[id] = v
	} else if first.Status != v.Status || first.Reason != v.Reason {
		a.regress = append(a.regress, id)
	}
	if v.Webhook.Status != "delivered" || len(a.told[id]) == 0 {
		return 0, 1
	}
	a.settled[id] = true
	return 0, 0
}

// settle waits until every task has its end and every webhook was delivered, for as long as
// there are fewer and fewer of the others.
func (a *accountant) settle(g gateway) {
	a.t.Helper()
	left, deadline := math.MaxInt, time.Time{}
	for ids := a.some(math.MaxInt, true); len(ids) > 0; ids = a.some(math.MaxInt, true) {
		open, untold := a.look(a.t.Context(), g, ids) // of 50,000, it takes minutes
		switch n := len(a.some(math.MaxInt, true)); {
		case n < left:
			left, deadline = n, time.Now().Add(2*time.Minute)
		case time.Now().After(deadline):
			a.t.Fatalf("%d tasks without an end, %d webhooks undelivered", open, untold)
		}
		sleep(a.t.Context(), 200*time.Millisecond)
	}
}

// verdict counts.
func (a *accountant) verdict(g gateway) {
	a.t.Helper()
	a.look(a.t.Context(), g, a.some(math.MaxInt, false)) // once more, against the first
	counts := make(map[string]int)
	for id, prompt := range a.accepted {
		end := a.ends[id]
		counts[end.Status+" "+end.Reason]++
		if end.Attempts > 1 {
			counts["run again"]++
		}
		if len(a.told[id]) > 1 {
			counts["told again"]++
		}
		for _, body := range a.told[id] {
			if body != a.told[id][0] {
				a.t.Errorf("task %s has two results: %s and %s", id, a.told[id][0], body)
			}
		}
		want := fmt.Sprintf("begun %s\ndone %[1]s\n", prompt)
		if got := g.get("/api/tasks/" + id + "/output"); end.Status == "completed" && got != want {
			a.t.Errorf("task %s said %q, want %q", id, got, want)
		}
	}
	if len(a.regress) > 0 {
		a.t.Errorf("tasks with another end later: %q", a.regress)
	}
	if err := a.unknown(g); err != nil {
		a.t.Error(err)
	}
	a.t.Logf("%d accepted: %v", len(a.accepted), counts)
}

// unknown looks at the tasks whose answer the client never got: they must have ended, too.
func (a *accountant) unknown(g gateway) error {
	for before := ""; ; {
		var page struct {
			Tasks []taskReport `json:"tasks"`
			More  bool         `json:"has_more"`
		}
		if a.call(a.t.Context(), g, "GET", "/api/tasks?limit=200"+before, nil, &page) != http.StatusOK {
			return errors.New("the list of tasks is not there")
		}
		for _, r := range page.Tasks {
			if !r.ended() {
				return fmt.Errorf("task %s, of which no client knows, has no end", r.ID)
			}
			before = "&before=" + r.ID
		}
		if !page.More {
			return nil
		}
	}
}
