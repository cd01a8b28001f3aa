// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// nightly reports whether tests have their whole size.
func nightly() bool { return os.Getenv("AGENTFM_TEST_NIGHTLY") != "" }

// clients is how many submit at one time.
const clients = 64

// prompt2K is a prompt of 2 KiB.
var prompt2K = strings.Repeat("x", 2<<10)

// intake submits n tasks, at most rate a second, and returns their ids and how long each
// took; shortest first.
func intake(t testing.TB, p *Part, n, rate int) ([]string, []time.Duration) {
	t.Helper()
	var mu sync.Mutex
	var ids []string
	var took []time.Duration
	work := make(chan int)
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for i := range work {
				begun := time.Now()
				r, err := p.Submit(context.Background(), Submission{
					Owner: "ann", Site: "site", Target: Target{Model: fmt.Sprint("model", i%8)}, Prompt: prompt2K,
				})
				if err != nil {
					t.Error(err)
					continue
				}
				mu.Lock()
				ids, took = append(ids, r.ID), append(took, time.Since(begun))
				mu.Unlock()
			}
		})
	}
	begun := time.Now()
	for i := range n {
		if rate > 0 {
			time.Sleep(time.Until(begun.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		}
		work <- i
	}
	close(work)
	wg.Wait()
	slices.Sort(took)
	return ids, took
}

// p99 returns what all but a hundredth are below, in milliseconds.
func p99(took []time.Duration) float64 { return float64(took[len(took)*99/100].Microseconds()) / 1e3 }

// counted counts the runs of tasks by their ids, and passes them on.
type counted struct {
	Runner
	mu   sync.Mutex
	runs map[string]int
}

// count makes a runner that ends tasks after a time.
func count(took time.Duration) *counted {
	return &counted{runs: make(map[string]int), Runner: &fakeRunner{run: func(ctx context.Context, j Job) (Attempt, error) {
		a, err := says("done", nil)(ctx, j)
		pause(ctx, took)
		return a, err
	}}}
}

// Run implements Runner.
func (c *counted) Run(ctx context.Context, j Job) (Attempt, error) {
	a, err := c.Runner.Run(ctx, j)
	if err == nil {
		c.mu.Lock()
		c.runs[j.Record.ID]++
		c.mu.Unlock()
	}
	return a, err
}

// total returns how many tasks were run.
func (c *counted) total() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.runs)
}

// verdict wants each task to have completed once.
func (c *counted) verdict(t *testing.T, p *Part, ids []string) {
	t.Helper()
	drain(t, p)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		if r, err := p.Get(t.Context(), "ann", id); err != nil || r.State != Completed || r.Lost != 0 || c.runs[id] != 1 {
			t.Fatalf("task %s: %+v, %v, run %d times", id, r, err, c.runs[id])
		}
	}
	if len(c.runs) != len(ids) {
		t.Errorf("%d accepted, %d run", len(ids), len(c.runs))
	}
}

// drain waits until the queue is empty, for as long as it becomes shorter.
func drain(t *testing.T, p *Part) {
	t.Helper()
	before, deadline := -1, time.Time{}
	for n := queueLength(t, p); n > 0; n = queueLength(t, p) {
		if n != before {
			before, deadline = n, time.Now().Add(time.Minute)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d tasks stay in the queue", n)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// queueLength returns how many tasks are in the queue.
func queueLength(t *testing.T, p *Part) int {
	t.Helper()
	n, _, err := p.service.Load().current.Load().store.length(t.Context(), queueName)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestIntake wants all that is accepted at a high rate to be run once.
func TestIntake(t *testing.T) {
	runner := count(10 * time.Millisecond)
	p := open(t, t.TempDir(), runner, Options{InFlight: MaxInFlight})
	seconds := 2
	if nightly() {
		seconds = 600
	}
	seconds = await.Times(t, "AGENTFM_TEST_INTAKE_SECONDS", seconds)
	begun := time.Now()
	ids, took := intake(t, p, 500*seconds, 500)
	t.Logf("%d in %s, %.1f ms at p99", len(ids), time.Since(begun).Round(time.Millisecond), p99(took))
	begun = time.Now()
	more, took := intake(t, p, 75*seconds, 1500)
	t.Logf("burst: %d in %s, %.1f ms at p99", len(more), time.Since(begun).Round(time.Millisecond), p99(took))
	runner.verdict(t, p, append(ids, more...))
	t.Logf("all had ended %s after the last was accepted", time.Since(begun).Round(time.Millisecond))
}

// TestOverload wants all tasks for a worker that has room for a few to be run in the end.
func TestOverload(t *testing.T) {
	runner := count(time.Millisecond)
	run, slots := runner.Runner.(*fakeRunner).run, make(chan struct{}, 4)
	runner.Runner.(*fakeRunner).run = func(ctx context.Context, j Job) (Attempt, error) {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
			return run(ctx, j)
		default:
			return nil, &Failure{Kind: Busy}
		}
	}
	p := open(t, t.TempDir(), runner, Options{InFlight: 1200})
	n := 100
	if nightly() {
		n = 1000
	}
	ids, _ := intake(t, p, n, 0)
	runner.verdict(t, p, ids)
}

// deepIntake is how many tasks each process submits to the queue that is deep.
const deepIntake = 500

// TestDeepQueue wants a long queue not to be felt: not at a submission, nor at a start, nor
// in memory; and nothing of it to be lost.
func TestDeepQueue(t *testing.T) {
	depth := 2000
	if nightly() {
		depth = MaxInFlight - 8*deepIntake
	}
	depth = await.Times(t, "AGENTFM_TEST_QUEUE_DEPTH", depth)
	dir := filepath.Join(t.TempDir(), "store")
	deepChild(t, dir, "empty")
	s, err := openStore(t.Context(), place{dir: dir}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	fill(t, s, depth)
	s.close()
	deepChild(t, dir, "deep")
	deepChild(t, dir, "deep, before kill -9")
	deepChild(t, dir, "deep, after it")
	runner := count(0)
	p := open(t, dir, runner, Options{InFlight: MaxInFlight})
	if n := queueLength(t, p) + runner.total(); n < depth {
		t.Errorf("%d of %d tasks are in the queue", n, depth)
	}
	if depth <= 2000 {
		drain(t, p)
		if n := runner.total(); n != depth+4*deepIntake {
			t.Errorf("%d were run of %d", n, depth+4*deepIntake)
		}
	}
}

// fill puts tasks of 16 owners into the queue, as fast as that goes.
func fill(t *testing.T, s *store, n int) {
	t.Helper()
	js, err := jetstream.New(s.conn, jetstream.WithPublishAsyncMaxPending(4000), jetstream.WithPublishAsyncTimeout(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		target := Target{Model: fmt.Sprint("model", i%100)}
		now := time.Now().UTC()
		owner := "ann"
		if i%16 > 0 {
			owner += fmt.Sprint(i % 16)
		}
		r := &Record{ID: newID(now, laneOf(owner, target)), Owner: owner, Site: "site", Target: target, PromptSize: len(prompt2K), State: Queued, Created: now}
		header, err := r.encodeHeader()
		if err != nil {
			t.Fatal(err)
		}
		for {
			_, err := js.PublishMsgAsync(&nats.Msg{Subject: inQueue(r.key()), Header: header, Data: []byte(prompt2K)})
			if err == nil {
				break
			}
			if !errors.Is(err, jetstream.ErrTooManyStalledMsgs) {
				t.Fatal(err)
			}
		}
	}
	<-js.PublishAsyncComplete()
}

// deepChild has another process open the store, and submit tasks.
func deepChild(t *testing.T, dir, what string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestDeepChild$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), "TASKS_DEEP_CHILD="+dir, "TASKS_DEEP_KILL="+what)
	out, err := cmd.CombinedOutput()
	if err != nil && !strings.Contains(what, "before kill") {
		t.Fatalf("%v\n%s", err, out[:min(len(out), 100_000)])
	}
	for line := range strings.Lines(string(out)) {
		if line, ok := strings.CutPrefix(line, "saw "); ok {
			t.Logf("%s: %s, %s of processor time", what, strings.TrimSpace(line), cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
		}
	}
}

// TestDeepChild is that process. The workers have no room.
func TestDeepChild(t *testing.T) {
	dir := os.Getenv("TASKS_DEEP_CHILD")
	if dir == "" {
		return
	}
	begun := time.Now()
	p := open(t, dir, &fakeRunner{run: func(context.Context, Job) (Attempt, error) { return nil, &Failure{Kind: Busy} }}, Options{InFlight: MaxInFlight})
	if err := p.Ready(); err != nil {
		t.Fatal(err)
	}
	ready := time.Since(begun)
	intake(t, p, deepIntake/4, 250) // with what there is to do at a start, which takes a moment
	_, took := intake(t, p, 3*deepIntake/4, 250)
	begun = time.Now()
	page, _, err := p.List(t.Context(), "ann", Query{Limit: 50})
	if err != nil || len(page) != 50 {
		t.Fatal(len(page), err)
	}
	fmt.Printf("saw ready in %s, intake %.1f ms at p99, a list in %s, %s\n", ready.Round(time.Millisecond), p99(took), time.Since(begun).Round(time.Millisecond), memory())
	if strings.Contains(os.Getenv("TASKS_DEEP_KILL"), "before kill") {
		self, _ := os.FindProcess(os.Getpid())
		_ = self.Kill()
		select {}
	}
}

// memory returns what the process has of it.
func memory() string {
	b, _ := os.ReadFile("/proc/self/status")
	var got []string
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "VmHWM") {
			got = append(got, strings.Join(strings.Fields(line), " "))
		}
	}
	return strings.Join(got, ", ")
}

// BenchmarkSubmit submits tasks that nobody runs, BenchmarkLife such that end at once.
func BenchmarkSubmit(b *testing.B) {
	benchmarkIntake(b, func(context.Context, Job) (Attempt, error) { return nil, &Failure{Kind: Busy} })
}
func BenchmarkLife(b *testing.B) { benchmarkIntake(b, says("done", nil)) }

func benchmarkIntake(b *testing.B, run func(context.Context, Job) (Attempt, error)) {
	p, err := New(Options{Dir: b.TempDir(), InFlight: MaxInFlight, Logger: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	p.Register("site", &fakeRunner{run: run})
	if err := p.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = p.Cleanup() }()
	b.ResetTimer()
	_, took := intake(b, p, b.N, 0)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
	b.ReportMetric(p99(took), "p99-ms")
}
