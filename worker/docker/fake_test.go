// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/pkg/stdcopy"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// fakeEngine has one container at most, and fails as it is told. Its container
// says "hello" and exits with 0.
type fakeEngine struct {
	engine // what a test does not need panics

	createErr, attachErr, startErr, waitErr, inspectErr error
	waitMessage                                         string
	removeErrs                                          []error // of the first removals

	mu      sync.Mutex
	there   bool
	calls   []string
	started chan struct{}
}

func newFakeEngine() *fakeEngine { return &fakeEngine{started: make(chan struct{})} }

func (e *fakeEngine) call(name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls = append(e.calls, name)
}

func (e *fakeEngine) DaemonHost() string { return "fake" }

func (e *fakeEngine) ContainerCreate(ctx context.Context, _ *container.Config, _ *container.HostConfig,
	_ *network.NetworkingConfig, _ *ocispec.Platform, _ string,
) (container.CreateResponse, error) {
	e.call("create")
	e.there = true // also where the answer gets lost
	return container.CreateResponse{ID: "c1"}, errors.Join(ctx.Err(), e.createErr)
}

func (e *fakeEngine) ContainerList(context.Context, container.ListOptions) ([]container.Summary, error) {
	e.call("list")
	if !e.there {
		return nil, nil
	}
	return []container.Summary{{ID: "c1", Labels: map[string]string{labelTask: "t1"}}}, nil
}

func (e *fakeEngine) ContainerAttach(context.Context, string, container.AttachOptions) (types.HijackedResponse, error) {
	e.call("attach")
	if e.attachErr != nil {
		return types.HijackedResponse{}, e.attachErr
	}
	ours, theirs := net.Pipe()
	go func() {
		<-e.started
		_, _ = stdcopy.NewStdWriter(theirs, stdcopy.Stdout).Write([]byte("hello"))
		_ = theirs.Close()
	}()
	return types.HijackedResponse{Conn: ours, Reader: bufio.NewReader(ours)}, nil
}

func (e *fakeEngine) ContainerWait(ctx context.Context, _ string, _ container.WaitCondition) (<-chan container.WaitResponse, <-chan error) {
	e.call("wait")
	exited, lost := make(chan container.WaitResponse), make(chan error, 1)
	if e.waitErr != nil {
		lost <- e.waitErr
		return exited, lost
	}
	go func() { // as the client: an unread result keeps this goroutine for ever
		select {
		case <-e.started:
			res := container.WaitResponse{}
			if e.waitMessage != "" {
				res.Error = &container.WaitExitError{Message: e.waitMessage}
			}
			exited <- res
		case <-ctx.Done():
			lost <- ctx.Err()
		}
	}()
	return exited, lost
}

func (e *fakeEngine) ContainerStart(context.Context, string, container.StartOptions) error {
	e.call("start")
	if e.startErr == nil {
		close(e.started)
	}
	return e.startErr
}

func (e *fakeEngine) ContainerStop(_ context.Context, _ string, options container.StopOptions) error {
	e.call(fmt.Sprint("stop ", *options.Timeout))
	return nil
}

func (e *fakeEngine) ContainerInspect(context.Context, string) (container.InspectResponse, error) {
	e.call("inspect")
	return container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{State: &container.State{}}}, e.inspectErr
}

func (e *fakeEngine) ContainerRemove(context.Context, string, container.RemoveOptions) error {
	e.call("remove")
	if len(e.removeErrs) > 0 {
		err := e.removeErrs[0]
		e.removeErrs = e.removeErrs[1:]
		return err
	}
	e.there = false
	return nil
}

// prepared returns an agent on the fake engine.
func (e *fakeEngine) prepared() *prepared {
	return &prepared{engine: e, spec: spec{agent: worker.Agent{PeerID: "fake"}, limits: limits{output: 1 << 30}}, logger: zap.NewNop()}
}

// Whatever call fails, the task fails with its error and nothing is left.
func TestRunFailures(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fail  func(*fakeEngine)
		calls string
	}{
		{"create", func(e *fakeEngine) { e.createErr = errTest }, "create list remove"},
		{"attach", func(e *fakeEngine) { e.attachErr = errTest }, "create attach remove"},
		{"wait", func(e *fakeEngine) { e.waitErr = errTest }, "create attach wait start remove"},
		{"wait says", func(e *fakeEngine) { e.waitMessage = errTest.Error() }, "create attach wait start remove"},
		{"start", func(e *fakeEngine) { e.startErr = errTest }, "create attach wait start remove"},
		{"inspect", func(e *fakeEngine) { e.inspectErr = errTest }, "create attach wait start inspect remove"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newFakeEngine()
			tc.fail(e)
			task := worker.Task{ID: "t1", Output: newRecorder(), OutputDir: t.TempDir()}
			_, err := e.prepared().run(t.Context(), task)
			if err == nil || !strings.Contains(err.Error(), errTest.Error()) {
				t.Errorf("error is %v, want %v", err, errTest)
			}
			if got := strings.Join(e.calls, " "); got != tc.calls || e.there {
				t.Errorf("calls are %q, want %q; container left: %v", got, tc.calls, e.there)
			}
			if live.has(liveKey{"fake", "t1"}) {
				t.Error("the task is still live")
			}
			if e.startErr != nil {
				close(e.started) // lets the fake's goroutine end
			}
		})
	}
}

// The end of the task while the container is created does not lose it.
func TestCancelDuringCreate(t *testing.T) {
	e := newFakeEngine()
	ctx, cancel := context.WithCancelCause(t.Context())
	p := e.prepared()
	p.engine = cancellingEngine{e, func() { cancel(errTest) }}
	task := worker.Task{ID: "t1", Output: newRecorder(), OutputDir: t.TempDir()}
	if _, err := p.run(ctx, task); !errors.Is(err, errTest) {
		t.Errorf("error is %v, want %v", err, errTest)
	}
	if e.there {
		t.Errorf("the container is left, after %v", e.calls)
	}
	if got := strings.Join(e.calls, " "); strings.Contains(got, "stop") {
		t.Errorf("calls are %q, without a grace", got)
	}
}

// A task that is stopped asks its agent to end, and rounds its grace up.
func TestCancelAsksFirst(t *testing.T) {
	e := newFakeEngine()
	ctx, cancel := context.WithCancelCause(t.Context())
	p := e.prepared()
	p.spec.grace = 1500 * time.Millisecond
	p.engine = cancellingEngine{e, func() { cancel(errTest) }}
	task := worker.Task{ID: "t1", Output: newRecorder(), OutputDir: t.TempDir()}
	if _, err := p.run(ctx, task); !errors.Is(err, errTest) {
		t.Errorf("error is %v, want %v", err, errTest)
	}
	if got := strings.Join(e.calls, " "); !strings.HasSuffix(got, "stop 2 remove") {
		t.Errorf("calls are %q", got)
	}
}

// cancellingEngine ends the task before it creates its container.
type cancellingEngine struct {
	*fakeEngine
	cancel func()
}

func (e cancellingEngine) ContainerCreate(ctx context.Context, c *container.Config, h *container.HostConfig,
	n *network.NetworkingConfig, p *ocispec.Platform, name string,
) (container.CreateResponse, error) {
	e.cancel()
	return e.fakeEngine.ContainerCreate(ctx, c, h, n, p, name)
}

func TestRemovalIsTriedAgain(t *testing.T) {
	e := newFakeEngine()
	e.there = true
	e.removeErrs = []error{errTest}
	if err := removeContainer(t.Context(), e, "c1"); err != nil || e.there {
		t.Errorf("removal returned %v, container left: %v", err, e.there)
	}
	e.removeErrs = []error{fmt.Errorf("no such container: %w", cerrdefs.ErrNotFound)}
	if err := removeContainer(t.Context(), e, "c1"); err != nil {
		t.Errorf("removal of a container that is gone returned %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e.removeErrs = []error{errTest}
	if err := removeContainer(ctx, e, "c1"); !errors.Is(err, errTest) {
		t.Errorf("removal returned %v, want %v", err, errTest)
	}
}

// A container that is live is not swept, whatever other labels its image gives it.
func TestSweepOfLabelsOfAnImage(t *testing.T) {
	for _, label := range []string{labelTask, labelServe, labelWarm} {
		e := labelled{newFakeEngine(), map[string]string{labelTask: "of-the-image", labelServe: "of-the-image", labelWarm: "of-the-image"}}
		e.labels[label] = t.Name()
		e.there = true
		key := liveKey{"peer", t.Name()}
		live.add(key)
		if err := sweep(t.Context(), e, "peer", zap.NewNop()); err != nil || !e.there {
			t.Errorf("%s: %v, left: %v, want the container to be left", label, err, e.there)
		}
		live.remove(key)
		if err := sweep(t.Context(), e, "peer", zap.NewNop()); err != nil || e.there {
			t.Errorf("%s: %v, left: %v, want the container to be gone", label, err, e.there)
		}
	}
}

// labelled is an engine whose container has these labels.
type labelled struct {
	*fakeEngine
	labels map[string]string
}

func (e labelled) ContainerList(context.Context, container.ListOptions) ([]container.Summary, error) {
	if !e.there {
		return nil, nil
	}
	return []container.Summary{{ID: "c1", Labels: e.labels}}, nil
}

// stuckBacklog returns a backlog that is full, and what the one write that
// waits for room returns.
func stuckBacklog(t *testing.T, ctx context.Context) (*backlog, <-chan error) {
	t.Helper()
	b := newBacklog()
	full := &filler{ctx, b, 1 << 30}
	if _, err := full.Write(bytes.Repeat([]byte("x"), backlogLimit)); err != nil {
		t.Fatal(err)
	}
	if b.stalledSince(time.Time{}) {
		t.Error("stalled before anything waited")
	}
	done := make(chan error, 1)
	go func() {
		_, err := full.Write([]byte("yz"))
		done <- err
	}()
	eventually(t, "the backlog is full", func() bool { return b.stalledSince(time.Now()) })
	return b, done
}

func TestBacklog(t *testing.T) {
	b, written := stuckBacklog(t, t.Context())
	before := time.Now()
	out := newRecorder()
	delivered := make(chan error, 1)
	go func() { delivered <- b.deliver(t.Context(), out) }()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	out.await(t, strings.Repeat("x", backlogLimit)+"yz")
	if !b.stalledSince(before) || b.stalledSince(time.Now()) {
		t.Errorf("stalled since before: %v, since now: %v, want true and false", b.stalledSince(before), b.stalledSince(time.Now()))
	}
	select {
	case err := <-delivered:
		t.Fatalf("delivery ended early: %v", err)
	default:
	}
	b.end()
	if err := <-delivered; err != nil {
		t.Error(err)
	}
}

func TestBacklogWaitsNoLongerThanItsTask(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	b, written := stuckBacklog(t, ctx)
	cancel(errTest)
	if err := <-written; !errors.Is(err, errTest) {
		t.Errorf("write returned %v, want %v", err, errTest)
	}
	out := newRecorder()
	if err := b.deliver(ctx, out); !errors.Is(err, errTest) || out.String() != "" {
		t.Errorf("delivery returned %v after %d bytes, want %v after none", err, len(out.String()), errTest)
	}
}
