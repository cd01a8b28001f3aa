// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

func TestPromptReachesTheAgentUnchanged(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "argument", nil)
	for name, prompt := range map[string]string{
		"empty":   "",
		"plain":   "summarise this",
		"options": "--help -rf / -- $(id) `id` \"'\\",
		"unicode": "naïve 東京 🚀 \u202e\r\n\ttab",
		"control": "\x01\x7f",
		"longest": strings.Repeat("ab c", wire.MaxArgumentPrompt/4) + "end",
	} {
		t.Run(name, func(t *testing.T) {
			if len(prompt) > f.PromptLimit() {
				t.Fatalf("prompt of %d bytes, limit %d", len(prompt), f.PromptLimit())
			}
			exit, got := f.answer(prompt)
			if exit != (worker.Exit{}) || got != prompt {
				t.Errorf("exit %+v, %d bytes %.80q, want %d bytes %.80q", exit, len(got), got, len(prompt), prompt)
			}
		})
	}
}

func TestPromptOnStdin(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "stdin", func(r *Runtime) { r.Prompt = promptStdin })
	for name, prompt := range map[string]string{
		"empty":   "",
		"bytes":   "NUL \x00, and bytes that are no text: \xff\xfe",
		"longest": strings.Repeat("0123456789\x00\xff\n\r\t?", wire.MaxTaskFrame/16),
	} {
		t.Run(name, func(t *testing.T) {
			exit, got := f.answer(prompt)
			if exit != (worker.Exit{}) || got != prompt {
				t.Errorf("exit %+v, %d bytes, want %d bytes", exit, len(got), len(prompt))
			}
		})
	}
}

func TestPromptInAFile(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "file", func(r *Runtime) { r.Prompt = promptInFile })
	if f.PromptLimit() != wire.MaxTaskFrame || !f.PromptNUL() {
		t.Errorf("prompt limit is %d, NUL %v", f.PromptLimit(), f.PromptNUL())
	}
	for name, prompt := range map[string]string{
		"empty":   "",
		"bytes":   "NUL \x00, and bytes that are no text: \xff\xfe",
		"longest": strings.Repeat("0123456789\x00\xff\n\r\t?", wire.MaxTaskFrame/16),
	} {
		t.Run(name, func(t *testing.T) {
			if exit, got := f.answer(prompt); exit != (worker.Exit{}) || got != prompt+"1" {
				t.Errorf("exit %+v, %d bytes, want %d bytes and no arguments", exit, len(got), len(prompt))
			}
		})
	}
	if left, err := os.ReadDir(filesHome(f.agent.PeerID)); err != nil || len(left) > 0 {
		t.Errorf("left are %v (%v)", left, err)
	}
}

// What an image declares as a volume does not get in the way of what its containers are given.
func TestVolumesInTheWay(t *testing.T) {
	t.Parallel()
	startProbe(t, "exit 0", nil)
	r := &Runtime{
		Build:  folder(t, map[string]string{"Dockerfile": "FROM " + probeImage + "\nENV PROBE=file\nVOLUME [\"/run/agentfm\", \"/run/secrets/\"]\n"}),
		Prompt: promptInFile, Secrets: map[string]string{"key": "/etc/hostname"},
	}
	agent := testAgent(t)
	agent.Key = "volumes"
	img, err := tryPrepare(t, r, agent)
	if err != nil {
		t.Fatal(err)
	}
	removeLater(img.Ref)
	out := newRecorder()
	exit, err := r.Run(t.Context(), worker.Task{ID: "t", Prompt: "a prompt", Output: out, OutputDir: t.TempDir()})
	if err != nil || exit.Code != 0 || out.String() != "a prompt1" {
		t.Errorf("%+v, %v, %q", exit, err, out)
	}
}

// The configuration decides, then the image.
func TestPromptOfTheImage(t *testing.T) {
	t.Parallel()
	base := startProbe(t, "exit 0", nil)
	r := &Runtime{Build: folder(t, map[string]string{"Dockerfile": "FROM " + probeImage + "\nENV PROBE=stdin\nLABEL agentfm.prompt=stdin\n"})}
	agent := testAgent(t)
	agent.Key = "labelled"
	img, err := tryPrepare(t, r, agent)
	if err != nil {
		t.Fatal(err)
	}
	removeLater(img.Ref)
	if r.PromptLimit() != wire.MaxTaskFrame || !r.PromptNUL() {
		t.Errorf("prompt limit is %d, NUL %v", r.PromptLimit(), r.PromptNUL())
	}
	out := newRecorder()
	exit, err := r.Run(t.Context(), worker.Task{ID: "t", Prompt: "by its label", Output: out, OutputDir: t.TempDir()})
	if err != nil || exit.Code != 0 || out.String() != "by its label" {
		t.Errorf("%+v, %v, %q", exit, err, out)
	}
	for _, tc := range []struct{ option, label, want string }{
		{"", "", promptArgument}, {"", "file", promptInFile}, {"argument", "file", promptArgument}, {"stdin", "nonsense", promptStdin}, {"", "nonsense", ""},
	} {
		labels := map[string]string{}
		if tc.label != "" {
			labels[labelPrompt] = tc.label
		}
		got, err := (&Runtime{Prompt: tc.option}).promptOf(labels)
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%+v: %q, %v", tc, got, err)
		}
	}
	if _, err := tryPrepare(t, &Runtime{Image: base.Image}, base.agent); err != nil {
		t.Error(err)
	}
}

func TestRequestInAFile(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "request", nil)
	task, out := f.task("hi")
	task.Request = `{"model":"m","messages":[{"role":"user","content":"hi"}],"temperature":0.5}`
	if exit, err := f.Run(t.Context(), task); err != nil || exit.Code != 0 || out.String() != task.Request {
		t.Errorf("%+v, %v, %q", exit, err, out)
	}
	if _, got := f.answer("hi"); got != "" {
		t.Errorf("without a request: %q", got)
	}
}

func TestStandardErrorInTheLog(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	f := startProbe(t, "streams", func(r *Runtime) { r.Stderr = stderrLog })
	f.ready.Load().logger = zap.New(core)
	if _, got := f.answer(""); got != "out1 out2 " {
		t.Errorf("output is %q", got)
	}
	if got := logs.FilterMessage("standard error of the agent").All(); len(got) != 1 || got[0].ContextMap()["line"] != "err1 err2" {
		t.Errorf("the log has %+v", got)
	}

	// What is for the log counts, and is bounded.
	p := &prepared{spec: spec{stderrLogged: true}, logger: zap.New(core)}
	w := p.stderr("t")
	for range 100 {
		if n, err := w.Write([]byte(strings.Repeat("x", 1<<10-1) + "\n")); n != 1<<10 || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := logs.FilterField(zap.String("task", "t")).Len(); got != maxLogged>>10 {
		t.Errorf("the log has %d lines, want %d", got, maxLogged>>10)
	}
	a := &aside{&filler{t.Context(), newBacklog(), 3}, io.Discard}
	if _, err := a.Write([]byte("1234")); cause(err) != wire.CauseOutputLimit {
		t.Errorf("over the limit: %v", err)
	}
}

func TestPromptOnStdinThatNobodyReads(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "exit 3", func(r *Runtime) { r.Prompt = promptStdin })
	if exit, _ := f.answer(strings.Repeat("x", wire.MaxTaskFrame)); exit.Code != 3 {
		t.Errorf("exit %+v, want code 3", exit)
	}
}

func TestStandardErrorIsOutputToo(t *testing.T) {
	t.Parallel()
	_, got := startProbe(t, "streams", nil).answer("")
	for _, part := range []string{"out1 ", "err1 ", "out2 ", "err2"} {
		if strings.Count(got, part) != 1 {
			t.Errorf("output %q does not have %q once", got, part)
		}
	}
	if strings.Index(got, "out1") > strings.Index(got, "out2") || len(got) != 19 {
		t.Errorf("output is %q", got)
	}
}

func TestExit(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		mode   string
		code   int
		reason string // a part of it
		cause  wire.Cause
	}{
		{"exit 0", 0, "", ""},
		{"exit 1", 1, "", ""},
		{"exit 255", 255, "", ""},
		{"signal 15", 143, "", ""},
		{"signal 9", 137, "killed by signal 9", ""},
		{"segfault", 139, "", ""},
		{"memory", 137, "out of memory (limit 32MiB)", wire.CauseOOMKilled},
	} {
		t.Run(tc.mode, func(t *testing.T) {
			t.Parallel()
			f := startProbe(t, tc.mode, func(r *Runtime) { r.Memory = "32MiB" })
			if (strings.HasPrefix(tc.mode, "signal") || tc.mode == "segfault") && !f.ready.Load().spec.init {
				t.Skip("the engine has no init, and a first process cannot send itself a signal")
			}
			exit, out := f.answer("")
			if exit.Code != tc.code || exit.Cause != tc.cause || !strings.Contains(exit.Reason, tc.reason) || (tc.reason == "") != (exit.Reason == "") {
				t.Errorf("exit is %+v, want %d %q %q; output %q", exit, tc.code, tc.reason, tc.cause, out)
			}
		})
	}
}

// An agent that floods is stopped at its limit, and one that says just as much is not.
func TestOutputLimit(t *testing.T) {
	t.Parallel()
	set := func(r *Runtime) { r.Output = "1MiB" }
	if exit, got := startProbe(t, "flood 1024", set).answer(""); exit.Code != 0 || len(got) != 1<<20 {
		t.Errorf("%+v, %d bytes", exit, len(got))
	}
	f := startProbe(t, "flood 1000000", set)
	task, out := f.task("")
	began := time.Now()
	if _, err := f.Run(t.Context(), task); cause(err) != wire.CauseOutputLimit || len(out.String()) > 1<<20 {
		t.Errorf("%v, %d bytes", err, len(out.String()))
	}
	if took := time.Since(began); took > patience/2 {
		t.Errorf("it took %v", took)
	}
	f.wantContainers(0)
}

// An agent whose image goes away fails with that, and another one does not mind.
func TestImageRemoved(t *testing.T) {
	t.Parallel()
	other := startProbe(t, "exit 0", nil)
	r := &Runtime{Build: folder(t, map[string]string{"Dockerfile": "FROM " + probeImage + "\nENV PROBE=exit\nLABEL gone=" + other.agent.PeerID + "\n"})}
	agent := testAgent(t)
	agent.Key = "gone"
	asked := make(chan struct{}, 1)
	var services sync.WaitGroup
	ctx, retire := context.WithCancel(t.Context())
	defer services.Wait()
	defer retire()
	agent.Context, agent.Go, agent.Changed, agent.Again = ctx, services.Go, func() {}, func() { asked <- struct{}{} }
	img, err := tryPrepare(t, r, agent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.client().ImageRemove(t.Context(), img.Ref, image.RemoveOptions{Force: true, PruneChildren: true}); err != nil {
		t.Fatal(err)
	}
	_, err = r.Run(t.Context(), worker.Task{ID: "t", Output: newRecorder(), OutputDir: t.TempDir()})
	if cause(err) != wire.CauseImageUnavailable {
		t.Errorf("Run returned %v (%q)", err, cause(err))
	}
	if exit, _ := other.answer(""); exit.Code != 0 {
		t.Errorf("the other agent: %+v", exit)
	}
	select { // for the image to be built again
	case <-asked:
	case <-time.After(patience):
		t.Fatal("Prepare was not asked for")
	}
	if r.Away() != wire.CauseImageUnavailable {
		t.Errorf("away is %q", r.Away())
	}
	if _, err := r.Prepare(t.Context(), agent); err != nil {
		t.Fatal(err)
	}
	removeLater(img.Ref)
	eventually(t, "the agent is back", func() bool { return r.Away() == "" })
}

func TestProcessLimit(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "fork", func(r *Runtime) { r.PIDs = 64; r.Env["GOMAXPROCS"] = "1" })
	exit, got := f.answer("")
	if children, err := strconv.Atoi(got); exit.Code != 0 || err != nil || children < 1 || children > 63 {
		t.Errorf("%q children, %+v; want between 1 and 63", got, exit)
	}
}

func TestOutputFiles(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "files", nil)
	task, out := f.task("")
	if exit, err := f.Run(t.Context(), task); err != nil || exit.Code != 0 {
		t.Fatalf("%+v %v: %s", exit, err, out)
	}
	for name, want := range map[string]string{"answer.txt": "42", "sub/deep.txt": "deep"} {
		if got, err := os.ReadFile(filepath.Join(task.OutputDir, name)); err != nil || string(got) != want {
			t.Errorf("%s holds %q (%v), want %q", name, got, err, want)
		}
	}
}

// The agent says half a line and waits for ever: so its output comes at once,
// and only the end of ctx ends it.
func TestOutputComesAtOnceAndCancelKills(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "block", nil)
	task, out := f.task("")
	cancel, done := f.start(task)
	out.await(t, "waiting")
	f.wantContainers(1)
	cancel(errTest)
	if err := <-done; !errors.Is(err, errTest) {
		t.Errorf("Run returned %v, want %v", err, errTest)
	}
	f.wantContainers(0)
}

// An agent that is stopped may end by itself, if it does so in time.
func TestGrace(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		mode        string
		grace       time.Duration
		least, most time.Duration
		said        bool
	}{
		{"term", 20 * time.Second, 0, 10 * time.Second, true},
		{"stubborn", time.Second, time.Second, 10 * time.Second, false},
		{"stubborn", -1, 0, 10 * time.Second, false},
	} {
		t.Run(fmt.Sprint(tc.mode, tc.grace), func(t *testing.T) {
			t.Parallel()
			f := startProbe(t, tc.mode, func(r *Runtime) { r.Grace = caddy.Duration(tc.grace) })
			task, out := f.task("")
			cancel, done := f.start(task)
			out.await(t, "waiting")
			began := time.Now()
			cancel(errTest)
			if err := <-done; !errors.Is(err, errTest) {
				t.Errorf("Run returned %v, want %v", err, errTest)
			}
			if took := time.Since(began); took < tc.least || took > tc.most {
				t.Errorf("it took %v", took)
			}
			if _, err := os.Stat(filepath.Join(task.OutputDir, "bye")); (err == nil) != tc.said {
				t.Errorf("the agent's last word: %v", err)
			}
		})
	}
}

func TestCancelledBefore(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "block", nil)
	task, _ := f.task("")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errTest)
	if _, err := f.Run(ctx, task); !errors.Is(err, errTest) {
		t.Errorf("Run returned %v, want %v", err, errTest)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errTest }

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "block", nil)
	task, _ := f.task("")
	task.Output = brokenWriter{}
	if _, err := f.Run(t.Context(), task); !errors.Is(err, errTest) {
		t.Errorf("Run returned %v, want %v", err, errTest)
	}
	f.wantContainers(0)
}

// stuckWriter takes nothing until it is told to.
type stuckWriter struct {
	reached chan struct{}
	release chan struct{}
	*recorder
}

func newStuckWriter() *stuckWriter {
	return &stuckWriter{make(chan struct{}, 1), make(chan struct{}), newRecorder()}
}

func (w *stuckWriter) Write(b []byte) (int, error) {
	select {
	case w.reached <- struct{}{}:
	default:
	}
	<-w.release
	return w.recorder.Write(b)
}

func TestSlowListenerDoesNotKeepTheContainer(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"block", "flood 65536"} {
		t.Run(mode, func(t *testing.T) {
			f := startProbe(t, mode, nil)
			task, _ := f.task("")
			out := newStuckWriter()
			task.Output = out
			cancel, done := f.start(task)
			select {
			case <-out.reached:
			case err := <-done:
				t.Fatal(err)
			}
			cancel(errTest)
			eventually(t, "the container is gone", func() bool {
				found, err := containers(t.Context(), f.client(), labelAgent+"="+f.agent.PeerID)
				return err == nil && len(found) == 0
			})
			close(out.release)
			if err := <-done; !errors.Is(err, errTest) {
				t.Errorf("Run returned %v, want %v", err, errTest)
			}
		})
	}
}

// finished reports whether the agent's container has exited.
func (f *fixture) finished() bool {
	found, err := containers(f.t.Context(), f.client(), labelAgent+"="+f.agent.PeerID)
	return err == nil && len(found) == 1 && found[0].State == container.StateExited
}

// The engine itself would drop much of this output two seconds after the exit.
func TestSlowListenerGetsEverything(t *testing.T) {
	t.Parallel()
	const size = backlogLimit - 1<<20
	f := startProbe(t, "flood "+strconv.Itoa(size>>10), nil)
	task, _ := f.task("")
	out := newStuckWriter()
	task.Output = out
	_, done := f.start(task)
	eventually(t, "the agent has finished", f.finished)
	close(out.release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := out.String(); len(got) != size || strings.Trim(got, "x") != "" {
		t.Errorf("output has %d bytes, want %d", len(got), size)
	}
}

// The agent fills everything up to its own pipe, and exits.
func TestLostOutputIsAnError(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "brim", nil)
	task, _ := f.task("")
	out := newStuckWriter()
	task.Output = out
	_, done := f.start(task)
	eventually(t, "the engine has lost patience", func() bool {
		info, err := os.Stat(filepath.Join(task.OutputDir, "done"))
		return err == nil && time.Since(info.ModTime()) > engineDrain+time.Second
	})
	close(out.release)
	if err := <-done; !errors.Is(err, errOutputLost) {
		t.Errorf("Run returned %v after %d bytes, want %v", err, len(out.String()), errOutputLost)
	}
}

func TestMuchOutput(t *testing.T) {
	t.Parallel()
	_, got := startProbe(t, "flood 65536", nil).answer("")
	if len(got) != 64<<20 || strings.Trim(got, "x") != "" {
		t.Errorf("output has %d bytes, want 64 MiB", len(got))
	}
}

func TestConcurrentTasks(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "argument", nil)
	for i := range 6 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			prompt := strings.Repeat(strconv.Itoa(i), 1000)
			if exit, got := f.answer(prompt); exit.Code != 0 || got != prompt {
				t.Errorf("%+v, output %.20q", exit, got)
			}
		})
	}
}
