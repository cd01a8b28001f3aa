// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// Variables that tell the tests about a real engine.
const (
	envHost   = "AGENTFM_TEST_DOCKER_HOST" // its address
	envStrict = "AGENTFM_TEST_STRICT"      // 1: to have none is a failure
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// probeImage is the image of the probe, built by the first test that needs it.
const probeImage = "agentfm-test/probe:latest"

var probeProgram string // the probe itself

// testDir is for files that more than one test uses.
var testDir string

var buildProbe = sync.OnceValue(func() error {
	dir, err := os.MkdirTemp(testDir, "probe-") // removed with that
	if err != nil {
		return err
	}
	probeProgram = filepath.Join(dir, "probe")
	compile := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", probeProgram, "./internal/probe")
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := compile.CombinedOutput(); err != nil {
		return fmt.Errorf("compiling probe: %w\n%s", err, out)
	}
	for name, text := range map[string]string{"kept": "kept", "Dockerfile": `FROM scratch
COPY probe /probe
COPY kept /data/kept
VOLUME ["/data", "/tmp", "/tmp/output"]
ENTRYPOINT ["/probe"]
`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	r := &Runtime{Host: os.Getenv(envHost), Build: dir, Image: probeImage}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	if err := r.Provision(ctx); err != nil {
		return err
	}
	r.logger = zap.NewNop()
	removeLater(probeImage)
	_, err = r.Prepare(ctx, worker.Agent{PeerID: "test-build"})
	return err
})

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(cleaner{m})
}

// built are the images that tests have built. They are removed after all tests:
// a build can fail where the engine removes another image at the same time.
var built struct {
	mu   sync.Mutex
	refs []string
}

// removeLater has an image removed after all tests.
func removeLater(ref string) {
	built.mu.Lock()
	defer built.mu.Unlock()
	built.refs = append(built.refs, ref)
}

// cleaner removes the images after the tests.
type cleaner struct{ m *testing.M }

func (c cleaner) Run() int {
	// files of containers, which would be in /run
	dir, err := os.MkdirTemp("", "agentfm-run-")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	_ = os.Setenv("XDG_RUNTIME_DIR", dir)
	testDir = dir
	code := c.m.Run()
	for _, ref := range built.refs {
		e, err := newEngine(os.Getenv(envHost))
		if err == nil {
			_, err = e.(*client.Client).ImageRemove(context.Background(), ref, image.RemoveOptions{Force: true, PruneChildren: true})
		}
		if err != nil && !cerrdefs.IsNotFound(err) {
			fmt.Println("removing image", ref, err)
			code = 1
		}
	}
	return code
}

// engineHost returns the address of the real engine, or skips the test.
func engineHost(t testing.TB) string {
	t.Helper()
	host := os.Getenv(envHost)
	if host == "" {
		message := "no Docker engine: set " + envHost + " to its address, for example unix:///run/docker.sock; see README, tests"
		if os.Getenv(envStrict) == "1" {
			t.Fatal(message)
		}
		t.Skip(message)
	}
	return host
}

// provision loads a runtime as Caddy does.
func provision(t testing.TB, r *Runtime) error {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	t.Cleanup(cancel)
	if err := r.Provision(ctx); err != nil {
		return err
	}
	r.logger = zap.NewNop()
	return r.Validate()
}

// fixture is an agent on the real engine.
type fixture struct {
	*Runtime
	agent worker.Agent
	t     testing.TB
}

// startProbe prepares an agent that does what mode says; set changes its settings.
// No container of it may be left when the test ends.
func startProbe(t testing.TB, mode string, set func(*Runtime)) *fixture {
	t.Helper()
	host := engineHost(t)
	if err := buildProbe(); err != nil {
		t.Fatal(err)
	}
	r := &Runtime{Host: host, Image: probeImage, Env: map[string]string{"PROBE": mode}}
	if set != nil {
		set(r)
	}
	f := &fixture{Runtime: r, agent: testAgent(t), t: t}
	if err := provision(t, r); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.wantContainers(0) })
	if _, err := f.Prepare(t.Context(), f.agent); err != nil {
		t.Fatal(err)
	}
	return f
}

// testAgent returns an agent that only this run of this test has.
func testAgent(t testing.TB) worker.Agent {
	name := strings.NewReplacer("/", "-", " ", "-").Replace(t.Name())
	return worker.Agent{Key: "Probe", PeerID: fmt.Sprintf("test-%s-%d", name, time.Now().UnixNano()), Model: "llama3.2"}
}

// task returns a task whose output goes to a recorder.
func (f *fixture) task(prompt string) (worker.Task, *recorder) {
	f.t.Helper()
	out := newRecorder()
	return worker.Task{
		ID: fmt.Sprintf("task_%d", time.Now().UnixNano()), Prompt: prompt, Model: f.agent.Model,
		Output: out, OutputDir: f.t.TempDir(),
	}, out
}

// answer runs a task to its end and returns how it ended and what it said.
func (f *fixture) answer(prompt string) (worker.Exit, string) {
	f.t.Helper()
	task, out := f.task(prompt)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	exit, err := f.Run(ctx, task)
	if err != nil {
		f.t.Fatal(err)
	}
	return exit, out.String()
}

// client returns a client of the test's own, to look behind the scenes.
func (f *fixture) client() *client.Client {
	f.t.Helper()
	e, err := newEngine(f.Host)
	if err != nil {
		f.t.Fatal(err)
	}
	return e.(*client.Client)
}

// start runs a task in the background and returns how to end it, and where its
// error comes.
func (f *fixture) start(task worker.Task) (context.CancelCauseFunc, <-chan error) {
	ctx, cancel := context.WithCancelCause(f.t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := f.Run(ctx, task)
		done <- err
	}()
	return cancel, done
}

// wantContainers checks how many containers the agent has.
func (f *fixture) wantContainers(want int) {
	f.t.Helper()
	found, err := containers(context.Background(), f.client(), labelAgent+"="+f.agent.PeerID)
	if err != nil {
		f.t.Fatal(err)
	}
	if len(found) != want {
		f.t.Errorf("agent has %d containers, want %d: %+v", len(found), want, found)
	}
}

// recorder is an output that tells when something came.
type recorder struct {
	mu   sync.Mutex
	b    bytes.Buffer
	came chan struct{}
}

func newRecorder() *recorder { return &recorder{came: make(chan struct{}, 1)} }

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case r.came <- struct{}{}:
	default:
	}
	return r.b.Write(b)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

// await returns when the output is want.
func (r *recorder) await(t testing.TB, want string) {
	t.Helper()
	deadline := time.After(patience)
	for r.String() != want {
		select {
		case <-r.came:
		case <-deadline:
			t.Fatalf("output is %q, want %q", r.String(), want)
		}
	}
}

// eventually waits for a condition that nothing announces.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

var errTest = errors.New("the test says so")
