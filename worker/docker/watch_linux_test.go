// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

// sickEngine answers a ping and an inspection of an image as it is told.
type sickEngine struct {
	*fakeEngine
	ping, image error
}

func (e *sickEngine) Ping(context.Context) (types.Ping, error) { return types.Ping{}, e.ping }

func (e *sickEngine) ImageInspect(context.Context, string, ...client.ImageInspectOption) (image.InspectResponse, error) {
	return image.InspectResponse{}, e.image
}

func TestCheck(t *testing.T) {
	gone := errors.Join(errTest, cerrdefs.ErrNotFound)
	for _, tc := range []struct {
		name        string
		ping, image error
		imageGone   bool // as a task has found out
		want        wire.Cause
		stays       bool // gone
	}{
		{"well", nil, gone, false, "", false},
		{"no engine", errTest, nil, false, wire.CauseRuntimeError, false},
		{"no engine and no image", errTest, gone, true, wire.CauseRuntimeError, true},
		{"no image", nil, gone, true, wire.CauseImageUnavailable, true},
		{"the image is back", nil, nil, true, "", false},
		{"nobody knows of the image", nil, errTest, true, "", true},
	} {
		e := &sickEngine{newFakeEngine(), tc.ping, tc.image}
		p := &prepared{engine: e, logger: zap.NewNop()}
		p.imageGone.Store(tc.imageGone)
		cause, err := p.check(t.Context())
		if cause != tc.want || (err == nil) != (tc.want == "") || p.imageGone.Load() != tc.stays {
			t.Errorf("%s: %q, %v, gone %v", tc.name, cause, err, p.imageGone.Load())
		}
		r := &Runtime{logger: zap.NewNop()}
		if news := r.turn(cause, err); news != (tc.want != "") || r.Away() != tc.want || r.turn(cause, err) {
			t.Errorf("%s: news %v, away %q", tc.name, news, r.Away())
		}
		if r.turn("", nil) != (tc.want != "") || r.Away() != "" {
			t.Errorf("%s: away %q when all is well", tc.name, r.Away())
		}
	}
}

// ownEngine is an engine that a test may stop.
type ownEngine struct {
	t    *testing.T
	dir  string
	cmd  *exec.Cmd
	host string
}

// startOwnEngine starts an engine beside the one of the other tests, with the probe.
func startOwnEngine(t *testing.T) *ownEngine {
	t.Helper()
	host := engineHost(t)
	if err := buildProbe(); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("dockerd"); err != nil || os.Geteuid() != 0 {
		if os.Getenv(envStrict) == "1" {
			t.Fatalf("an engine of its own needs root and dockerd: %v", err)
		}
		t.Skip("an engine of its own needs root and dockerd")
	}
	dir, err := os.MkdirTemp("", "agentfm-engine-") // a socket's name is short
	if err != nil {
		t.Fatal(err)
	}
	e := &ownEngine{t: t, dir: dir, host: "unix://" + filepath.Join(dir, "e.sock")}
	t.Cleanup(func() {
		if e.cmd != nil {
			e.stop()
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	e.start()
	from, err := newEngine(host)
	if err != nil {
		t.Fatal(err)
	}
	saved, err := from.(*client.Client).ImageSave(t.Context(), []string{probeImage})
	if err != nil {
		t.Fatal(err)
	}
	defer saved.Close()
	loaded, err := e.client().ImageLoad(t.Context(), saved)
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Body.Close()
	if _, err := io.Copy(io.Discard, loaded.Body); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *ownEngine) client() *client.Client {
	e.t.Helper()
	c, err := newEngine(e.host)
	if err != nil {
		e.t.Fatal(err)
	}
	return c.(*client.Client)
}

// start starts the engine and returns when it answers.
func (e *ownEngine) start() {
	e.t.Helper()
	in := func(name string) string { return filepath.Join(e.dir, name) }
	e.cmd = exec.Command("dockerd", "--host", e.host, "--data-root", in("data"), "--exec-root", in("exec"), "--pidfile", in("pid"),
		"--bridge", "none", "--iptables=false", "--ip6tables=false")
	log, err := os.OpenFile(in("log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		e.t.Fatal(err)
	}
	defer log.Close()
	e.cmd.Stdout, e.cmd.Stderr = log, log
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	eventually(e.t, "the engine answers", func() bool {
		_, err := e.client().Ping(e.t.Context())
		return err == nil
	})
}

// stop stops the engine.
func (e *ownEngine) stop() {
	_ = e.cmd.Process.Signal(syscall.SIGTERM)
	_ = e.cmd.Wait()
	e.cmd = nil
}

// prepare returns an agent whose containers run on the engine, and a count of the times that
// it was told of a change.
func (e *ownEngine) prepare(probe string) (*fixture, *atomic.Int32) {
	t := e.t
	t.Helper()
	r := &Runtime{Host: e.host, Image: probeImage, Env: map[string]string{"PROBE": probe}}
	if err := provision(t, r); err != nil {
		t.Fatal(err)
	}
	f, news := &fixture{Runtime: r, agent: testAgent(t), t: t}, new(atomic.Int32)
	var services sync.WaitGroup
	ctx, retire := context.WithCancel(t.Context())
	t.Cleanup(func() { retire(); services.Wait() })
	f.agent.Context, f.agent.Go, f.agent.Changed = ctx, services.Go, func() { news.Add(1) }
	f.agent.Again = func() { t.Error("asked for another Prepare") }
	if _, err := f.Prepare(t.Context(), f.agent); err != nil {
		t.Fatal(err)
	}
	return f, news
}

// An engine that is restarted again and again, and hangs for long, while 8 tasks run at a
// time: each task has an end, no answer is another's or half of one, nothing is left, and
// the agent works again soon after.
func TestEngineGoesAwayUnderLoad(t *testing.T) {
	faults, hang := 2, 3*time.Second
	if os.Getenv("AGENTFM_TEST_NIGHTLY") == "1" {
		faults, hang = 20, 30*time.Second
	} else {
		t.Parallel()
	}
	e := startOwnEngine(t)
	f, _ := e.prepare("argument")
	var well, failed atomic.Int64
	var work sync.WaitGroup
	over := make(chan struct{})
	for n := range 8 {
		work.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				default:
				}
				prompt := fmt.Sprintf("prompt %d of %d", i, n)
				task, out := f.task(prompt)
				task.ID = fmt.Sprintf("task_%d_%d", n, i)
				switch exit, err := f.Run(t.Context(), task); {
				case err != nil || exit.Code != 0:
					failed.Add(1)
				case out.String() == prompt:
					well.Add(1)
				default:
					t.Errorf("%q has the answer %q", prompt, out)
				}
			}
		})
	}
	goesOn := func() {
		before := well.Load()
		eventually(t, "tasks go well", func() bool { return well.Load() > before+8 })
	}
	for range faults {
		goesOn()
		e.stop()
		e.start()
		back := time.Now()
		eventually(t, "the agent is back", func() bool { return f.Away() == "" })
		if took := time.Since(back); took > 15*time.Second {
			t.Errorf("back after %v", took)
		}
	}
	goesOn()
	_ = e.cmd.Process.Signal(syscall.SIGSTOP)
	time.Sleep(hang)
	_ = e.cmd.Process.Signal(syscall.SIGCONT)
	eventually(t, "the agent is back", func() bool { return f.Away() == "" })
	goesOn()
	close(over)
	work.Wait()
	t.Logf("%d restarts: %d tasks went well, %d did not", faults, well.Load(), failed.Load())
	eventually(t, "no container is left", func() bool {
		left, err := containers(t.Context(), f.client(), labelAgent+"="+f.agent.PeerID)
		return err == nil && len(left) == 0
	})
}

// An engine that is restarted or hangs: the agent is busy while it is away,
// tasks end, nothing is left, and the agent works again soon after.
func TestEngineGoesAway(t *testing.T) {
	t.Parallel()
	e := startOwnEngine(t)
	f, news := e.prepare("block")
	for i, fault := range []struct {
		name string
		off  func()
		on   func()
		ends bool // what runs
	}{
		{"restart", e.stop, e.start, true},
		{"another restart", e.stop, e.start, true},
		{"hang", func() { _ = e.cmd.Process.Signal(syscall.SIGSTOP) }, func() { _ = e.cmd.Process.Signal(syscall.SIGCONT) }, false},
	} {
		task, out := f.task("")
		cancel, done := f.start(task)
		out.await(t, "waiting")
		fault.off()
		eventually(t, fault.name+": the agent is busy", func() bool { return f.Away() == wire.CauseRuntimeError })
		fault.on()
		back := time.Now()
		eventually(t, fault.name+": the agent is back", func() bool { return f.Away() == "" })
		if took := time.Since(back); took > 15*time.Second {
			t.Errorf("%s: back after %v", fault.name, took)
		}
		if fault.ends {
			if err := <-done; err != nil && errors.Is(err, errTest) {
				t.Errorf("%s: the task ended with %v", fault.name, err)
			}
		} else {
			cancel(errTest)
			if err := <-done; !errors.Is(err, errTest) {
				t.Errorf("%s: the task ended with %v, want %v", fault.name, err, errTest)
			}
		}
		eventually(t, fault.name+": no container is left", func() bool {
			left, err := containers(t.Context(), f.client(), labelAgent+"="+f.agent.PeerID)
			return err == nil && len(left) == 0
		})
		if got := int(news.Load()); got != 2*(i+1) {
			t.Errorf("%s: told %d times, want %d", fault.name, got, 2*(i+1))
		}
		cancel(nil)
	}
}

func TestSweepOfWhatCouldNotBeRemoved(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "block", nil)
	f.agent.Context = t.Context()
	p := f.ready.Load()
	task, _ := f.task("")
	if _, err := p.create(t.Context(), p.spec.config(task), p.spec.hostConfig(task)); err != nil {
		t.Fatal(err)
	}
	running, out := f.task("")
	cancel, done := f.start(running)
	out.await(t, "waiting")
	if err := p.sweep(f.agent); err != nil {
		t.Error(err)
	}
	f.wantContainers(1)
	cancel(errTest)
	<-done
}

// Interface guard
var _ worker.MayBeAway = (*Runtime)(nil)
