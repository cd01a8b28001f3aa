// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

// warmFixture is an agent whose containers are started ahead.
type warmFixture struct {
	*fixture
	retire context.CancelFunc
	beside sync.WaitGroup
}

// startWarm prepares an agent with n containers that are started ahead, and returns when
// these are there. None of them may be left when the test ends.
func startWarm(t testing.TB, mode string, n int, set func(*Runtime)) *warmFixture {
	t.Helper()
	f := &warmFixture{fixture: startProbe(t, mode, func(r *Runtime) { r.Prompt = promptStdin })}
	f.agent.TasksDir = t.TempDir()
	f.agent.Go, f.agent.Changed, f.agent.Again = f.beside.Go, func() {}, func() {}
	f.agent.Context, f.retire = context.WithCancel(context.Background())
	t.Cleanup(func() {
		f.retire()
		f.beside.Wait()
		if left, err := os.ReadDir(f.agent.TasksDir); err != nil || len(left) > 0 {
			t.Errorf("left are %v (%v)", left, err)
		}
		if _, err := os.Stat(filesHome(f.agent.PeerID)); !os.IsNotExist(err) {
			t.Errorf("the folder for files is left: %v", err)
		}
	})
	f.Runtime = &Runtime{Host: f.Host, Image: f.Image, Env: f.Env, Prompt: promptStdin, Warm: n}
	if set != nil {
		set(f.Runtime)
	}
	if err := provision(t, f.Runtime); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Prepare(t.Context(), f.agent); err != nil {
		t.Fatal(err)
	}
	return f
}

// task returns a task whose folder is beside those of the containers.
func (f *warmFixture) task(prompt string) (worker.Task, *recorder) {
	task, out := f.fixture.task(prompt)
	dir, err := os.MkdirTemp(f.t.TempDir(), "output")
	if err != nil {
		f.t.Fatal(err)
	}
	task.OutputDir = dir
	return task, out
}

// withWarm returns what is prepared, with other containers that are started ahead.
func (f *warmFixture) withWarm(q *warmPool) *prepared {
	p := f.ready.Load()
	return &prepared{engine: p.engine, spec: p.spec, logger: p.logger, warm: q}
}

// waiting returns the containers that wait, when they are so many.
func (f *warmFixture) waiting(n int) []string {
	f.t.Helper()
	var ids []string
	eventually(f.t, fmt.Sprintf("%d containers wait", n), func() bool {
		ids = ids[:0]
		q := f.ready.Load().warm
		q.mu.Lock()
		defer q.mu.Unlock()
		for _, c := range q.idle {
			ids = append(ids, c.id)
		}
		return len(ids) == n
	})
	slices.Sort(ids)
	return ids
}

// A task gets a container that waits, with all that a task gets, and nobody else does.
func TestWarm(t *testing.T) {
	t.Parallel()
	for _, prompt := range []string{promptStdin, promptInFile} {
		t.Run(prompt, func(t *testing.T) {
			t.Parallel()
			f := startWarm(t, "once", 2, func(r *Runtime) { r.Prompt = prompt })
			before := f.waiting(2)
			f.wantContainers(2)
			text := strings.Repeat("hello ", 1<<17) // more than a pipe holds
			task, out := f.task(text)
			task.Request = `{"model":"m"}`
			if exit, err := f.Run(t.Context(), task); err != nil || exit != (worker.Exit{}) {
				t.Fatalf("%+v, %v", exit, err)
			}
			host, rest, _ := strings.Cut(out.String(), " ")
			if rest != text+" llama3.2 "+task.Request+"\n" || !slices.ContainsFunc(before, func(id string) bool { return strings.HasPrefix(id, host) }) {
				t.Errorf("output is %d bytes, from %s; waiting were %v", len(rest), host, before)
			}
			if got, err := os.ReadFile(filepath.Join(task.OutputDir, "prompt")); err != nil || string(got) != text {
				t.Errorf("the file has %d bytes (%v)", len(got), err)
			}
			if after := f.waiting(2); slices.Equal(before, after) {
				t.Errorf("%v wait again", after)
			}
		})
	}
}

// An agent need not read its prompt, nor all of it; and it cannot write to it.
func TestWarmPipe(t *testing.T) {
	t.Parallel()
	for mode, want := range map[string]string{"pipe ignore": "ignored", "pipe some": "hello", "pipe write": "permission denied"} {
		f := startWarm(t, mode, 1, func(r *Runtime) { r.Prompt = promptInFile })
		f.waiting(1)
		task, out := f.task(strings.Repeat("hello", 1<<17))
		task.Request = "{}"
		if exit, err := f.Run(t.Context(), task); err != nil || exit.Code != 0 || !strings.Contains(out.String(), want) {
			t.Errorf("%s: %+v, %v, %q", mode, exit, err, out)
		}
	}
}

// More tasks than containers that wait: each gets one of its own.
func TestWarmBurst(t *testing.T) {
	t.Parallel()
	f := startWarm(t, "once", 2, nil)
	f.waiting(2)
	var (
		tasks sync.WaitGroup
		mu    sync.Mutex
		hosts = make(map[string]int)
	)
	for i := range 5 {
		prompt := fmt.Sprint("prompt-", i)
		task, out := f.task(prompt)
		task.ID += prompt
		tasks.Go(func() {
			exit, err := f.Run(t.Context(), task)
			host, rest, _ := strings.Cut(out.String(), " ")
			if err != nil || exit.Code != 0 || rest != prompt+" llama3.2 \n" {
				t.Errorf("%+v, %v, %q", exit, err, out)
			}
			mu.Lock()
			defer mu.Unlock()
			hosts[host]++
		})
	}
	tasks.Wait()
	if len(hosts) != 5 {
		t.Errorf("tasks ran in %v", slices.Collect(maps.Keys(hosts)))
	}
}

// The end of a task ends its container, also one that was started ahead.
func TestWarmCancelled(t *testing.T) {
	t.Parallel()
	for _, prompt := range []string{promptStdin, promptInFile} {
		t.Run(prompt, func(t *testing.T) {
			t.Parallel()
			testWarmCancelled(t, prompt)
		})
	}
}

func testWarmCancelled(t *testing.T, prompt string) {
	f := startWarm(t, "once", 1, func(r *Runtime) { r.Prompt = prompt })
	f.waiting(1)
	task, out := f.task("block")
	cancel, done := f.start(task)
	eventually(t, "the agent runs", func() bool { return strings.Contains(out.String(), "block") })
	f.waiting(1)
	f.wantContainers(2)
	cancel(errTest)
	if err := <-done; !errors.Is(err, errTest) {
		t.Errorf("Run returned %v, want %v", err, errTest)
	}
	f.wantContainers(1)

	task, _ = f.task("more than it may say")
	p := f.withWarm(f.ready.Load().warm)
	p.spec.limits.output = 3
	f.ready.Store(p)
	if _, err := f.Run(t.Context(), task); cause(err) != wire.CauseOutputLimit {
		t.Errorf("Run returned %v", err)
	}
}

// One that somebody kills, and one that has waited too long, make room for others.
func TestWarmReplaced(t *testing.T) {
	t.Parallel()
	f := startWarm(t, "once", 1, nil)
	first := f.waiting(1)
	if err := f.client().ContainerKill(t.Context(), first[0], "KILL"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another one waits", func() bool { return !slices.Equal(f.waiting(1), first) })
	f.wantContainers(1)

	p := f.withWarm(nil)
	p.warm = openWarm(p, 1, 100*time.Millisecond)
	f.ready.Store(p)
	first = f.waiting(1)
	eventually(t, "a younger one waits", func() bool { return !slices.Equal(f.waiting(1), first) })
	_ = p.warm.Destruct()
}

// An agent that does not wait for its prompt gets fresh containers, and is not started
// again and again.
func TestWarmThatDoesNotWait(t *testing.T) {
	t.Parallel()
	f := startWarm(t, "exit 3", 1, nil)
	q := f.ready.Load().warm
	for range 3 {
		if exit, _ := f.answer("hello"); exit.Code != 3 {
			t.Errorf("%+v", exit)
		}
	}
	eventually(t, "it is left alone for longer", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.pause > minServicePause
	})
	task, out := f.task("hello") // a container that ends in the moment that it is taken
	p := f.withWarm(nil)
	c, err := p.startWarm(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	<-c.over
	if _, err := p.runWarm(t.Context(), c, task); !errors.Is(err, errNotWarm) || out.String() != "" {
		t.Errorf("Run returned %v, %q", err, out)
	}
	if left, err := os.ReadDir(task.OutputDir); err != nil || len(left) > 0 {
		t.Errorf("left are %v (%v)", left, err)
	}
}

// slowClock is an engine whose clock is an hour behind.
type slowClock struct{ engine }

func (e slowClock) ContainerInspect(ctx context.Context, id string) (container.InspectResponse, error) {
	c, err := e.engine.ContainerInspect(ctx, id)
	if err == nil {
		c.State.FinishedAt = finishedAt(c.State).Add(-time.Hour).Format(time.RFC3339Nano)
	}
	return c, err
}

// A task that leaves only files is not run again where the engine has another clock.
func TestWarmClock(t *testing.T) {
	t.Parallel()
	f := startWarm(t, "once", 1, nil)
	p := f.withWarm(nil)
	p.engine = slowClock{p.engine}
	c, err := p.startWarm(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	task, out := f.task("quiet")
	if exit, err := p.runWarm(t.Context(), c, task); err != nil || exit != (worker.Exit{}) || out.String() != "" {
		t.Errorf("%+v, %v, %q", exit, err, out)
	}
	if got, err := os.ReadFile(filepath.Join(task.OutputDir, "prompt")); err != nil || string(got) != "quiet" {
		t.Errorf("the file has %q (%v)", got, err)
	}
}

// One that fills the disk before it has a task does not wait for one.
func TestWarmThatFillsTheDisk(t *testing.T) {
	t.Parallel()
	f := startWarm(t, "early 8", 1, nil)
	f.waiting(1)
	p := f.withWarm(nil)
	p.spec.agent.MaxDisk = 1 << 20
	c, err := p.startWarm(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.guard(p)
	<-c.over
	if how := c.howEnded(p); !strings.Contains(how, "its files are too many or too large") {
		t.Errorf("it has ended: %s", how)
	}
	c.discard(t.Context(), p)
	f.waiting(1) // those with room for it go on
	f.wantContainers(1)
}

// A task whose folder is elsewhere, or that wants another model, gets a fresh container.
func TestWarmThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	f := startWarm(t, "once", 1, nil)
	before := f.waiting(1)
	task, out := f.task("hello")
	task.Model = "other"
	if exit, err := f.Run(t.Context(), task); err != nil || exit.Code != 0 || !strings.HasSuffix(out.String(), "hello other \n") {
		t.Errorf("%+v, %v, %q", exit, err, out)
	}
	if after := f.waiting(1); !slices.Equal(before, after) {
		t.Errorf("%v wait, not %v", after, before)
	}
	task, out = f.task("hello")
	if err := os.WriteFile(filepath.Join(task.OutputDir, "odd"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if exit, err := f.Run(t.Context(), task); err != nil || exit.Code != 0 || !strings.Contains(out.String(), "hello") {
		t.Errorf("%+v, %v, %q", exit, err, out)
	}
}

// A reload that changes nothing keeps the containers, another one does not, and neither
// takes them for leftovers.
func TestWarmReload(t *testing.T) {
	t.Parallel()
	f := startWarm(t, "once", 2, nil)
	before := f.waiting(2)
	p := f.ready.Load()
	task, _ := f.task("")
	config := p.spec.config(task)
	delete(config.Labels, labelTask)
	config.Labels[labelWarm] = "of an earlier process"
	leftover, err := p.create(t.Context(), config, p.spec.hostConfig(task))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.client().ContainerStart(t.Context(), leftover, container.StartOptions{}); err != nil {
		t.Fatal(err)
	}

	next := func(set func(*Runtime)) *warmFixture {
		g := &warmFixture{fixture: &fixture{Runtime: &Runtime{Host: f.Host, Image: f.Image, Env: f.Env, Prompt: promptStdin, Warm: 2}, agent: f.agent, t: t}}
		g.agent.Context, g.retire = context.WithCancel(context.Background())
		g.agent.Go = f.beside.Go
		if set != nil {
			set(g.Runtime)
		}
		if err := provision(t, g.Runtime); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(g.retire)
		if _, err := g.Prepare(t.Context(), g.agent); err != nil {
			t.Fatal(err)
		}
		return g
	}
	same := next(nil)
	f.retire()
	eventually(t, "the old configuration has left", func() bool {
		refs, ok := warmPools.References(settingsKey(p, 2, p.spec.config(worker.Task{Model: f.agent.Model})))
		return ok && refs == 1
	})
	if after := same.waiting(2); !slices.Equal(before, after) {
		t.Errorf("%v wait, not %v", after, before)
	}
	f.wantContainers(2) // not the leftover

	other := next(func(r *Runtime) { r.Memory = "64MiB" })
	same.retire()
	if after := other.waiting(2); slices.ContainsFunc(after, func(id string) bool { return slices.Contains(before, id) }) {
		t.Errorf("%v still wait", after)
	}
	eventually(t, "the old ones are gone", func() bool {
		found, err := containers(t.Context(), f.client(), labelAgent+"="+f.agent.PeerID)
		return err == nil && len(found) == 2
	})
	other.retire()
	f.beside.Wait()
	f.wantContainers(0)
}

// An engine that fails is not asked all the time, and the end does not wait for it.
func TestWarmFailures(t *testing.T) {
	e := newFakeEngine()
	e.createErr = errTest
	p := e.prepared()
	p.spec.agent.TasksDir = t.TempDir()
	p.logger = zap.NewNop()
	q := openWarm(p, 2, time.Hour)
	eventually(t, "it has failed", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.pause == minServicePause
	})
	if err := q.Destruct(); err != nil {
		t.Error(err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	creates := 0
	for _, call := range e.calls {
		if call == "create" {
			creates++
		}
	}
	if creates != 1 || e.there || len(warmRoom) > maxWarm-1 {
		t.Errorf("%d containers were asked for, one is there: %v", creates, e.there)
	}
	if left, err := os.ReadDir(p.spec.agent.TasksDir); err != nil || len(left) > 0 {
		t.Errorf("left are %v (%v)", left, err)
	}
}

// A runtime that is prepared again has its containers once, and none in the end.
func TestWarmPreparedAgain(t *testing.T) {
	t.Parallel()
	f := startWarm(t, "stdin", 1, nil)
	before := f.ready.Load().warm
	for range 2 {
		if _, err := f.Prepare(t.Context(), f.agent); err != nil {
			t.Fatal(err)
		}
	}
	if f.ready.Load().warm != before {
		t.Error("the containers are others, of the same settings")
	}
	key := settingsKey(f.ready.Load(), f.Warm, f.ready.Load().spec.config(worker.Task{Model: f.agent.Model}))
	eventually(t, "the earlier ones are given back", func() bool {
		n, _ := warmPools.References(key)
		return n == 1
	})
	if exit, got := f.answer("hello"); exit.Code != 0 || got != "hello" {
		t.Errorf("%+v, %q", exit, got)
	}
}

// TestWarmLeftToAnEngineThatHangs wants the end of many containers that wait to take no
// longer than that of a few, where the engine removes none.
func TestWarmLeftToAnEngineThatHangs(t *testing.T) {
	e := hanging{newFakeEngine(), make(chan struct{}, 10), make(chan struct{})}
	p := e.prepared()
	q := &warmPool{engine: e, age: time.Hour, loggers: []*zap.Logger{p.logger}, room: make(chan struct{}, 5), removing: make(chan struct{}, 1),
		patience: time.Millisecond, late: make(chan struct{})}
	q.ctx, q.cancel = context.WithCancel(context.Background())
	keys := make(map[liveKey]bool)
	for i := range 5 {
		c := &warmed{key: liveKey{"peer", fmt.Sprint(t.Name(), i)}, id: "c", drop: func() {}, cancel: func() {},
			over: make(chan struct{}), taken: make(chan struct{})}
		keys[c.key] = true
		live.add(c.key)
		q.room <- struct{}{}
		warmRoom <- struct{}{}
		q.idle = append(q.idle, c)
		q.working.Go(func() { q.keep(c) })
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = q.Destruct()
	}()
	eventually(t, "all but one are left", func() bool {
		n := 0
		for key := range keys {
			if live.has(key) {
				n++
			}
		}
		return n <= 1
	})
	close(e.release)
	<-ended
	if n := len(e.removing); n > 1 {
		t.Errorf("%d were to be removed, want 1 at most", n)
	}
}

// hanging is an engine that removes nothing until it is released.
type hanging struct {
	*fakeEngine
	removing, release chan struct{}
}

func (e hanging) ContainerRemove(context.Context, string, container.RemoveOptions) error {
	e.removing <- struct{}{}
	<-e.release
	return nil
}
