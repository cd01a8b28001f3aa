// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// L14: a tenant that floods the gateway with ten times of what its workers can do
// is told to slow down, and takes nothing from one that sends five requests a
// second.
func TestL14FairShare(t *testing.T) {
	t.Parallel()
	const slots, room = 4, 16
	dir := t.TempDir()
	writeFile(t, dir, "keys", "flooder "+otherKey+"\nmodest "+aliceKey+"\n")
	f := startFront(t, "", "agentfm {\n\t\tapi_keys_file "+dir+"/keys\n\t\tqueue {\n\t\t\tsize "+fmt.Sprint(room)+"\n\t\t\twait 1m\n\t\t}\n\t}",
		replaceOnce(t, agent("work", "Work", "work", command(writeScript(t, "sleep 0.1\nprintf done\n"))), "max_tasks 4", fmt.Sprintf("max_tasks %d", slots)))
	f.await("the worker", func() bool {
		a := wantAsk(t, httpClient, "GET", f.url+"/api/workers", "", bearer(aliceKey)...)
		return strings.Contains(a.body, `"AVAILABLE"`)
	})
	length := scaled(3*time.Second, time.Minute)
	alone := f.modest(t, length/3)

	ctx, end := context.WithCancel(t.Context())
	defer end()
	flooder := newClient(t, 1)
	flooder.Transport.(*http.Transport).MaxIdleConnsPerHost = 100
	var flood sync.WaitGroup
	var mu sync.Mutex
	statuses := make(map[int]int)
	for range 10 * slots {
		flood.Go(func() {
			for ctx.Err() == nil {
				a, err := ask(ctx, flooder, "POST", f.url+"/v1/completions", strings.NewReader(`{"model":"work","prompt":"x"}`), bearer(otherKey)...)
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				statuses[a.status]++
				mu.Unlock()
				switch a.status {
				case http.StatusTooManyRequests:
					if a.failed(t, 429, "rate_limit_exceeded"); a.header.Get("Retry-After") == "" {
						t.Error("no Retry-After")
					}
				case http.StatusServiceUnavailable:
					if a.failed(t, 503, "mesh_overloaded"); a.header.Get("Retry-After") == "" {
						t.Error("no Retry-After")
					}
				case http.StatusOK:
					continue
				}
				select { // not at once: 429s alone would take the machine
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
			}
		})
	}
	await(t, "the flood fills the queue", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return statuses[429]+statuses[503] > 0
	})
	beside := f.modest(t, length)
	end()
	flood.Wait()
	t.Logf("the flooder got %v; of the other, alone p50 %v p99 %v, beside the flood p50 %v p99 %v", statuses,
		alone[len(alone)/2], alone[len(alone)*99/100], beside[len(beside)/2], beside[len(beside)*99/100])
	if statuses[429] == 0 || statuses[200] == 0 {
		t.Errorf("the flooder got %v", statuses)
	}
}

// modest sends five requests a second, none of which may fail, and returns how
// long they took, in order of that.
func (f *front) modest(t *testing.T, length time.Duration) []time.Duration {
	t.Helper()
	c := newClient(t, 1)
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	tick := time.NewTicker(time.Second / 5)
	defer tick.Stop()
	for range int(length / (time.Second / 5)) {
		<-tick.C
		wg.Go(func() {
			began := time.Now()
			a, err := ask(t.Context(), c, "POST", f.url+"/v1/completions", strings.NewReader(`{"model":"work","prompt":"x"}`), bearer(aliceKey)...)
			var whole struct{ Choices []struct{ Text string } }
			if err != nil || a.status != 200 || json.Unmarshal([]byte(a.body), &whole) != nil || len(whole.Choices) != 1 || whole.Choices[0].Text != "done" {
				t.Errorf("%d %s %v", a.status, a.body, err)
			}
			mu.Lock()
			took = append(took, time.Since(began))
			mu.Unlock()
		})
	}
	wg.Wait()
	slices.Sort(took)
	return took
}
