// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// keyed is clients that send each request with an Idempotency-Key, again and again until
// they know what became of it.
type keyed struct {
	t *testing.T
	g gateway

	mu      sync.Mutex
	answers map[string]keyAnswer // the last word on each key
	tries   int
}

// keyAnswer is an answer as it is compared.
type keyAnswer struct {
	path   string
	status int
	body   string
}

// The routes that are tried.
const (
	keyedChat   = "/v1/completions"
	keyedStream = "/v1/completions?stream"
	keyedSubmit = "/api/execute/async"
)

// ask sends the request of a key once; ok is false when its outcome is not known yet.
func (c *keyed) ask(ctx context.Context, path, key string) (a keyAnswer, ok bool) {
	body := fmt.Sprintf(`{"model":"noted","prompt":%q,"stream":%t}`, key, path == keyedStream)
	req, err := http.NewRequestWithContext(ctx, "POST", c.g.place.url(path), strings.NewReader(body))
	if err != nil {
		c.t.Error(err)
		return a, false
	}
	req.Header.Set("Idempotency-Key", key)
	resp, err := client.Do(req)
	if err != nil {
		return a, false
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return a, false
	}
	a = keyAnswer{path, resp.StatusCode, string(b)}
	switch {
	case a.status == http.StatusOK, a.status == http.StatusAccepted:
		return a, true
	case a.status == http.StatusConflict && strings.Contains(a.body, "idempotency_answer_not_kept"):
		return keyAnswer{path, a.status, ""}, true
	case a.status == http.StatusConflict && strings.Contains(a.body, "idempotency_key_in_use"),
		a.status == http.StatusServiceUnavailable, a.status == http.StatusNotFound: // starting, or no worker yet
		return a, false
	}
	c.t.Errorf("key %s: got %d %s", key, a.status, a.body)
	return a, true
}

// run sends requests until ctx ends; the last one, too, comes to an answer.
func (c *keyed) run(ctx context.Context, client int) {
	for n := 0; ctx.Err() == nil; n++ {
		path := []string{keyedChat, keyedSubmit, keyedStream}[n%3]
		key := fmt.Sprintf("%d-%d", client, n)
		for tries := 1; ; tries++ {
			a, ok := c.ask(c.t.Context(), path, key)
			if ok || c.t.Context().Err() != nil {
				c.mu.Lock()
				c.answers[key] = a
				c.tries += tries
				c.mu.Unlock()
				break
			}
			sleep(c.t.Context(), 20*time.Millisecond)
		}
	}
}

// A gateway that is killed does nothing twice for one Idempotency-Key, and afterwards each
// key leads to its answer, or says that there is none.
func TestKillKeys(t *testing.T) {
	script, err := filepath.Abs("testdata/noted.sh")
	if err != nil {
		t.Fatal(err)
	}
	runs := filepath.Join(t.TempDir(), "runs")
	conf := config{name: "run", agents: []agent{{key: "noted", runtime: "process {\n\t\t\t\tcommand sh " + script + "\n\t\t\t\tenv RUNS " + runs + "\n\t\t\t}"}}}
	at := newPlace(t)
	p := start(t, at, conf)
	c := &keyed{t: t, g: p.gateway, answers: make(map[string]keyAnswer)}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var clients sync.WaitGroup
	for n := range 8 {
		clients.Go(func() { c.run(ctx, n) })
	}
	for n := range kills(t, 10) {
		p.awaitWorker("noted")
		sleep(ctx, time.Duration(100+rand.N(1500))*time.Millisecond)
		if n%3 == 2 {
			p.reload(conf.with(fmt.Sprint("again-", n)))
		}
		p.kill()
		p = start(t, at, conf)
	}
	stop()
	clients.Wait()
	p.awaitWorker("noted")
	c.verdict(runs)
	p.terminate()
	p.awaitExit()
}

// verdict asks once more with each key, and counts.
func (c *keyed) verdict(runs string) {
	t := c.t
	t.Helper()
	counts := make(map[string]int)
	submitted := make(map[string]bool) // tasks, by their ids
	for key, want := range c.answers {
		var got keyAnswer
		await(t, "an answer to "+key, func() (ok bool) { got, ok = c.ask(t.Context(), want.path, key); return ok })
		late := want.path == keyedStream && want.status == http.StatusOK && got.status == http.StatusConflict
		if late { // it was killed after the last event, before that was stored
			counts["stored too late"]++
		} else if got != want {
			t.Errorf("key %s: got %+v, before %+v", key, got, want)
		}
		counts[fmt.Sprint(want.path, " ", want.status)]++
		var v taskReport
		if want.path == keyedSubmit && (json.Unmarshal([]byte(want.body), &v) != nil || submitted[v.ID]) {
			t.Errorf("key %s: got %q", key, want.body)
		}
		submitted[v.ID] = true
	}
	b, err := os.ReadFile(runs)
	if err != nil {
		t.Fatal(err)
	}
	times := make(map[string]int)
	for key := range strings.Lines(string(b)) {
		times[strings.TrimSpace(key)]++
	}
	for key, n := range times {
		if n > 1 && c.answers[key].path != keyedSubmit {
			t.Errorf("the agent ran %d times for key %s", n, key)
		}
	}
	for key, a := range c.answers {
		if a.path != keyedSubmit && a.status == http.StatusOK && times[key] != 1 {
			t.Errorf("the agent ran %d times for key %s, which has an answer", times[key], key)
		}
	}
	c.tasks(submitted)
	t.Logf("%d keys, %d tries: %v", len(c.answers), c.tries, counts)
	if len(c.answers) < 10 {
		t.Error("there were too few")
	}
}

// tasks wants there to be no tasks but those that clients know, and those that were not accepted.
func (c *keyed) tasks(known map[string]bool) {
	a := newAccountant(c.t)
	for before := ""; ; {
		var page struct {
			Tasks []taskReport `json:"tasks"`
			More  bool         `json:"has_more"`
		}
		if status := a.call(c.t.Context(), c.g, "GET", "/api/tasks?limit=200"+before, nil, &page); status != http.StatusOK {
			c.t.Fatalf("the list of tasks: got %d", status)
		}
		for _, r := range page.Tasks {
			if !known[r.ID] && r.Reason != "not_accepted" {
				c.t.Errorf("no client knows of task %+v", r)
			}
			before = "&before=" + r.ID
		}
		if !page.More {
			return
		}
	}
}
