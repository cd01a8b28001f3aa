// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/system"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

// folder makes a folder with the given files.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// tryPrepare provisions a runtime on the real engine and prepares it.
func tryPrepare(t *testing.T, r *Runtime, agent worker.Agent) (worker.Image, error) {
	t.Helper()
	r.Host = engineHost(t)
	if err := provision(t, r); err != nil {
		t.Fatal(err)
	}
	return r.Prepare(t.Context(), agent)
}

func TestPrepareBuilds(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"Dockerfile", "Containerfile"} {
		t.Run(file, func(t *testing.T) {
			r := &Runtime{Build: folder(t, map[string]string{file: "FROM scratch\nCOPY data /\nENTRYPOINT [\"/data\"]\n", "data": t.Name()})}
			agent := testAgent(t)
			agent.Key = "HR-" + file
			img, err := tryPrepare(t, r, agent)
			if err != nil {
				t.Fatal(err)
			}
			removeLater(img.Ref)
			if want := "agentfm/hr-" + strings.ToLower(file) + ":latest"; img.Ref != want {
				t.Errorf("image is %s, want %s", img.Ref, want)
			}
			if !regexp.MustCompile(`^sha256:[0-9a-f]{64}$`).MatchString(img.Digest) {
				t.Errorf("digest is %q", img.Digest)
			}
			if got := r.ready.Load().spec.image; got != img.Digest {
				t.Errorf("tasks run with %s, want %s", got, img.Digest)
			}
			r.Platform = "linux/" + runtime.GOARCH // builds the same again
			again, err := r.Prepare(t.Context(), agent)
			if err != nil || again != img {
				t.Errorf("prepared again: %+v %v, want %+v", again, err, img)
			}
			found := &Runtime{Image: img.Ref}
			if got, err := tryPrepare(t, found, agent); err != nil || got != img {
				t.Errorf("found image %+v %v, want %+v", got, err, img)
			}
		})
	}
}

func TestPrepareErrors(t *testing.T) {
	t.Parallel()
	engineHost(t)
	for _, tc := range []struct {
		name string
		r    *Runtime
		want []string // parts of the error
	}{
		{"missing image", &Runtime{Image: "agentfm-test/missing:v1"},
			[]string{`image "agentfm-test/missing:v1" is not on the Docker engine at `, "docker pull", "set build"}},
		{"missing folder", &Runtime{Build: "/nonexistent/agent"}, []string{"/nonexistent/agent", "no such file"}},
		{"no Dockerfile", &Runtime{Build: folder(t, nil)}, []string{"no Dockerfile and no Containerfile"}},
		{"two Dockerfiles", &Runtime{Build: folder(t, map[string]string{"Dockerfile": "FROM scratch", "Containerfile": "FROM scratch"})},
			[]string{"remove one"}},
		{"broken Dockerfile", &Runtime{Build: folder(t, map[string]string{"Dockerfile": "FROM scratch\nFLY away\n"})},
			[]string{"unknown instruction: FLY"}},
		{"failing build", &Runtime{Build: folder(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY missing /\n"})},
			[]string{"COPY failed", "missing"}},
		{"bad name", &Runtime{Image: "not a:reference:", Build: folder(t, map[string]string{"Dockerfile": "FROM scratch\nENV A=b\n"})},
			[]string{`image "not a:reference:"`}},
		{"no entrypoint", &Runtime{Build: folder(t, map[string]string{"Dockerfile": "FROM scratch\nCMD [\"/agent\"]\n"})},
			[]string{"no ENTRYPOINT", "prompt stdin"}},
		{"too many CPUs", &Runtime{Image: "agentfm-test/missing:v1", CPUs: 4096}, []string{"cpus is 4096, but the Docker engine at "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			agent := testAgent(t)
			agent.Key = "errors"
			_, err := tryPrepare(t, tc.r, agent)
			for _, part := range tc.want {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("error is %v, want %q in it", err, part)
				}
			}
			if _, err := tc.r.Run(t.Context(), worker.Task{}); err == nil || !strings.Contains(err.Error(), "not prepared") {
				t.Errorf("Run returned %v", err)
			}
		})
	}
	removeLater("agentfm/errors:latest") // "no entrypoint" was built
}

func TestPrepareWithoutEngine(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "none.sock")
	r := &Runtime{Image: "hr:v1", Host: "unix://" + socket}
	if err := provision(t, r); err != nil {
		t.Fatal(err)
	}
	_, err := r.Prepare(t.Context(), testAgent(t))
	for _, part := range []string{socket, "is it running? set host"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("error is %v, want %q in it", err, part)
		}
	}
	r.Host = "nonsense"
	if _, err := r.Prepare(t.Context(), testAgent(t)); err == nil || !strings.Contains(err.Error(), "address of the Docker engine") {
		t.Errorf("error is %v", err)
	}
}

// An engine that takes a connection and says nothing.
func TestPrepareWithASilentEngine(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "silent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := &Runtime{Image: "hr:v1", Host: "unix://" + socket}
	if err := provision(t, r); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		if c, err := l.Accept(); err == nil {
			defer c.Close()
			_, _ = c.Read(make([]byte, 1))
			cancel(errTest)
		}
	}()
	if _, err := r.Prepare(ctx, testAgent(t)); !errors.Is(err, errTest) {
		t.Errorf("error is %v, want %v", err, errTest)
	}
}

func TestPrepareSweeps(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "block", nil)
	create := func(taskID string) string {
		task, _ := f.task("")
		task.ID = taskID
		p := f.ready.Load()
		id, err := p.create(t.Context(), p.spec.config(task), p.spec.hostConfig(task))
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	leftover, stopped := create("leftover"), create("stopped")
	if err := f.client().ContainerStart(t.Context(), leftover, container.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	task, out := f.task("")
	cancel, done := f.start(task)
	out.await(t, "waiting")
	f.wantContainers(3)

	// A reload: another Runtime for the same agent, beside a running task.
	next := &Runtime{Host: f.Host, Image: f.Image}
	if _, err := tryPrepare(t, next, f.agent); err != nil {
		t.Fatal(err)
	}
	left, err := containers(t.Context(), f.client(), labelAgent+"="+f.agent.PeerID)
	if err != nil || len(left) != 1 || left[0].Labels[labelTask] != task.ID || left[0].State != container.StateRunning {
		t.Errorf("left are %+v (%v), want the running task alone; leftovers were %s and %s", left, err, leftover, stopped)
	}
	cancel(errTest)
	<-done
}

// A reload whose build fails leaves the agent that there is as it is.
func TestFailedBuildAtReload(t *testing.T) {
	t.Parallel()
	base := startProbe(t, "exit 0", nil)
	dir := folder(t, map[string]string{"Dockerfile": "FROM " + probeImage + "\nENV PROBE=argument\n"})
	agent := testAgent(t)
	agent.Key = "reload"
	first := &Runtime{Build: dir}
	img, err := tryPrepare(t, first, agent)
	if err != nil {
		t.Fatal(err)
	}
	removeLater(img.Ref)
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+probeImage+"\nENV PROBE=stdin\nRUN [\"/nothing-here\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := tryPrepare(t, &Runtime{Build: dir}, agent); cause(err) != wire.CauseImageUnavailable {
		t.Errorf("prepared again: %v", err)
	}
	f := &fixture{Runtime: first, agent: agent, t: t}
	if exit, got := f.answer("as before"); exit.Code != 0 || got != "as before" {
		t.Errorf("%+v, %q", exit, got)
	}
	base.wantContainers(0)
}

func TestBuildLogs(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	const secret = "s3cret-canary"
	r := &Runtime{
		Host:  engineHost(t),
		Build: folder(t, map[string]string{"Dockerfile": "FROM scratch\nENTRYPOINT [\"/nothing-here\"]\n"}),
		Env:   map[string]string{"API_KEY": secret},
	}
	if err := provision(t, r); err != nil {
		t.Fatal(err)
	}
	r.logger = zap.New(core)
	agent := testAgent(t)
	agent.Key = "logs"
	if _, err := r.Prepare(t.Context(), agent); err != nil {
		t.Fatal(err)
	}
	removeLater("agentfm/logs:latest")
	_, err := r.Run(t.Context(), worker.Task{ID: "t", Output: newRecorder(), OutputDir: t.TempDir()})
	if r.ready.Load().spec.init == (err != nil) { // an init starts, and then exits with 127
		t.Errorf("Run of a missing program returned %v", err)
	}
	if n := logs.FilterMessage("building image").FilterLevelExact(zap.InfoLevel).Len(); n != 1 {
		t.Errorf("%d info entries of the build's start, want 1", n)
	}
	if n := logs.FilterMessage("image is built").Len(); n != 1 {
		t.Errorf("%d entries of the build's end, want 1", n)
	}
	if logs.FilterMessage("building image").FilterLevelExact(zap.DebugLevel).Len() == 0 {
		t.Error("no debug entries of the build's steps")
	}
	for _, entry := range logs.All() {
		if strings.Contains(fmt.Sprint(entry.Message, entry.ContextMap()), secret) {
			t.Errorf("secret in the log: %v", entry)
		}
	}
	if err != nil && strings.Contains(err.Error(), secret) {
		t.Errorf("secret in the error: %v", err)
	}
}

func TestCancelOfABuild(t *testing.T) {
	t.Parallel()
	base := startProbe(t, "exit 0", nil)
	core, logs := observer.New(zap.DebugLevel)
	r := &Runtime{Host: base.Host, Build: folder(t, map[string]string{
		"Dockerfile": "FROM " + probeImage + "\nENV PROBE=block\nRUN [\"/probe\"]\n",
	})}
	if err := provision(t, r); err != nil {
		t.Fatal(err)
	}
	r.logger = zap.New(core)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := r.Prepare(ctx, base.agent)
		done <- err
	}()
	eventually(t, "the build runs", func() bool { return logs.FilterField(zap.String("step", "waiting")).Len() > 0 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Prepare returned %v, want %v", err, context.Canceled)
	}
}

func TestHasInit(t *testing.T) {
	for _, tc := range []struct {
		info system.Info
		want bool
	}{
		{system.Info{InitBinary: "docker-init", InitCommit: system.Commit{ID: "de40ad0"}}, true},
		{system.Info{InitBinary: "docker-init"}, true}, // Debian's does not tell its commit
		{system.Info{InitBinary: "docker-init", InitCommit: system.Commit{ID: "N/A"}}, false},
		{system.Info{}, false}, // Podman
	} {
		if got := hasInit(tc.info); got != tc.want {
			t.Errorf("%+v: %v, want %v", tc.info, got, tc.want)
		}
	}
}
