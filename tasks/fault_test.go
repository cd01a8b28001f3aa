// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tasks

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// points are the steps that decide what is known after a crash: before and after each.
func points() []string {
	var all []string
	for _, step := range []string{
		"write $KV." + bucket, "write " + queueSubject, "write " + hookSubject, "write " + outputSubject + "[0-9a-f]",
		"sync " + recordName, "sync " + queueName, "sync " + hookName, "sync " + outputName,
		"acknowledge " + queueSubject, "acknowledge " + hookSubject,
	} {
		all = append(all, "before "+step, "after "+step)
	}
	return all
}

// some are as many of the points as a short run has time for; all of them with
// AGENTFM_TEST_NIGHTLY=1.
func some(all []string) []string {
	if nightly() {
		return all
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:5]
}

// isAt reports whether a step is that of a point. Output has a probe, which is none.
func isAt(point, when, verb, what string) bool {
	got := when + " " + verb + " " + what
	point, ofTask := strings.CutSuffix(point, "[0-9a-f]")
	return strings.HasPrefix(got, point) && !(ofTask && strings.HasSuffix(what, "probe"))
}

// dieAt has this process end at the third time that it comes to a point.
func dieAt(point string) {
	if point == "" {
		return
	}
	var times atomic.Int32
	defaultLimits.fault = func(when, verb, what string) error {
		if isAt(point, when, verb, what) && times.Add(1) == 3 {
			os.Exit(3)
		}
		return nil
	}
}

// listener counts the bodies of webhooks that come, by their ids.
type listener struct {
	*httptest.Server
	mu     sync.Mutex
	bodies map[string][]string
}

func newListener(t *testing.T) *listener {
	t.Setenv("AGENTFM_WEBHOOK_ALLOW_PRIVATE", "1")
	s := &listener{bodies: make(map[string][]string)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		defer s.mu.Unlock()
		id := strings.TrimPrefix(r.Header.Get("Webhook-Id"), "msg_")
		s.bodies[id] = append(s.bodies[id], string(body))
	}))
	t.Cleanup(s.Close)
	return s
}

// check wants a task that has ended to have been told of, with one body.
func (s *listener) check(t *testing.T, p *Part, id string) {
	t.Helper()
	until(t, p, id, "a delivery", func(r *Record) bool { return r.Webhook.State == WebhookDelivered })
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := slices.Compact(slices.Clone(s.bodies[id])); len(got) != 1 {
		t.Errorf("task %s was told of with %q", id, got)
	}
}

// TestFailingSteps wants nothing to be lost when a step fails, whether it was done or not,
// or takes long.
func TestFailingSteps(t *testing.T) {
	slow := 200 * time.Millisecond
	if nightly() {
		slow = 5 * time.Second
	}
	for _, point := range some(points()) {
		t.Run(strings.ReplaceAll(point, " ", "_"), func(t *testing.T) {
			old := defaultLimits
			t.Cleanup(func() { defaultLimits = old })
			var times atomic.Int32
			defaultLimits.fault = func(when, verb, what string) error {
				if !isAt(point, when, verb, what) {
					return nil
				}
				switch times.Add(1) {
				case 2:
					time.Sleep(slow)
				case 3:
					return errors.New("input/output error")
				}
				return nil
			}
			sink := newListener(t)
			p := open(t, t.TempDir(), &fakeRunner{run: says("done", nil)}, Options{})
			accepted := submitMany(t, p, sink.URL, 8)
			for id, cancelled := range accepted {
				r := ended(t, p, id)
				if r.State != Completed && !(cancelled && r.State == Cancelled) {
					t.Errorf("got %+v", r)
				}
				sink.check(t, p, id)
			}
			empty(t, p)
			if times.Load() < 3 {
				t.Error("no step failed")
			}
		})
	}
}

// TestBadDisk wants right answers of a disk that is slow, and that fails now and then: what
// was accepted ends, in one way, and is told of.
func TestBadDisk(t *testing.T) {
	slow, n := 100*time.Millisecond, 15
	if nightly() {
		slow, n = 2*time.Second, 50
	}
	old := defaultLimits
	t.Cleanup(func() { defaultLimits = old })
	var failed, syncs atomic.Int32
	defaultLimits.fault = func(_, verb, _ string) error {
		if verb != "sync" {
			return nil
		}
		switch k := syncs.Add(1); {
		case k < 20: // it opens
		case rand.N(100) == 0:
			failed.Add(1)
			return errors.New("input/output error")
		case rand.N(50) == 0:
			time.Sleep(slow)
		}
		return nil
	}
	sink := newListener(t)
	p := open(t, t.TempDir(), &fakeRunner{run: says("done", nil)}, Options{})
	ends := make(map[string]State)
	for id, cancelled := range submitMany(t, p, sink.URL, n) {
		r := ended(t, p, id)
		if r.State != Completed && r.Reason != ReasonLost && !(cancelled && r.State == Cancelled) {
			t.Errorf("got %+v", r)
		}
		ends[id] = r.State
	}
	for id, state := range ends {
		sink.check(t, p, id)
		if r := ended(t, p, id); r.State != state {
			t.Errorf("task %s was %s, and is %s", id, state, r.State)
		}
	}
	t.Logf("%d syncs, of which %d failed", syncs.Load(), failed.Load())
}

// TestDamagedConsumers wants the store to open, and to do what is queued, when the power has left
// damaged what the server keeps of those who read.
func TestDamagedConsumers(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir, &fakeRunner{run: func(context.Context, Job) (Attempt, error) { return nil, &Failure{Kind: Busy} }}, Options{})
	id := submit(t, p, "")
	state := filepath.Join(streamDir(dir, queueName), "obs", "gateway-"+string(lanes[0]), "o.dat")
	await.Until(t, "the server to write "+state, func() bool { _, err := os.Stat(state); return err == nil })
	if err := p.Cleanup(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(state, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(filepath.Dir(state), "meta.inf")); err != nil {
		t.Fatal(err)
	}
	p = open(t, dir, &fakeRunner{run: says("done", nil)}, Options{})
	if r := ended(t, p, id); r.State != Completed {
		t.Errorf("got %+v", r)
	}
}

// submitMany has tasks accepted, and cancels one. While the store is being opened anew it
// tries again.
func submitMany(t *testing.T, p *Part, url string, n int) map[string]bool {
	t.Helper()
	accepted := make(map[string]bool) // whether it was cancelled
	for len(accepted) < n {
		await.Until(t, "a task to be accepted", func() bool {
			r, err := p.Submit(t.Context(), Submission{Owner: "ann", Site: "site", Prompt: "prompt", WebhookURL: url, Base: "https://gw.example"})
			if err != nil {
				return false
			}
			accepted[r.ID] = false
			if len(accepted) == n/2 {
				_, _ = p.Cancel(t.Context(), "ann", r.ID)
				accepted[r.ID] = true
			}
			return true
		})
	}
	return accepted
}

// TestDyingSteps wants nothing to be lost when the process ends at a step.
func TestDyingSteps(t *testing.T) {
	for _, point := range some(points()) {
		t.Run(strings.ReplaceAll(point, " ", "_"), func(t *testing.T) {
			sink, dir := newListener(t), filepath.Join(t.TempDir(), "store")
			t.Setenv("TASKS_DIE_AT", point)
			t.Setenv("TASKS_WEBHOOK", sink.URL)
			w := startWriter(t, dir)
			select {
			case <-w.done:
			case <-time.After(time.Minute):
				t.Error("it does not end")
			}
			w.stop()
			accepted, ends := make(map[string]bool), make(map[string]State)
			for _, line := range w.seen() {
				id, end, _ := strings.Cut(line, " ")
				if accepted[id] = true; end != "" {
					ends[id] = State(end)
				}
			}
			checkStore(t, dir, 0, accepted, ends)
			p := open(t, dir, &fakeRunner{run: says("done", nil)}, Options{})
			for id := range accepted {
				if r := ended(t, p, id); r.State != Completed || output(t, p, id) != "done" {
					t.Errorf("got %+v", r)
				}
				sink.check(t, p, id)
			}
			t.Logf("%d accepted, %d ends seen", len(accepted), len(ends))
		})
	}
}
