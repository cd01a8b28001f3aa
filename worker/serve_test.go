// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

const noFiles = "\n" + wire.MarkerNoFiles + "\n"

// echo writes the prompt and succeeds.
func echo(_ context.Context, t Task) (Exit, error) {
	_, err := io.WriteString(t.Output, t.Prompt)
	return Exit{}, err
}

// TestAnswers pins what a gateway of AgentFM 1.3 sees for each end of a task.
func TestAnswers(t *testing.T) {
	var b behaviour
	b.run = func(ctx context.Context, task Task) (Exit, error) {
		switch task.Prompt {
		case "code":
			_, _ = io.WriteString(task.Output, "half")
			return Exit{Code: 3}, nil
		case "oom":
			return Exit{Code: 137, Reason: "killed: out of memory"}, nil
		case "error":
			return Exit{}, errors.New("secret path /etc/x")
		default:
			return echo(ctx, task)
		}
	}
	a := ready(t, start(t, b, nil))
	g := newGateway(t, a)
	for prompt, want := range map[string]string{
		"hello\r\n": "hello\r\n" + noFiles,
		"":          "\n⚠️  Sandbox exited: it said nothing and left no files\n" + noFiles,
		"code":      "half\n⚠️  Sandbox exited: exit status 3\n" + noFiles,
		"oom":       "\n⚠️  Sandbox exited: killed: out of memory\n" + noFiles,
		"error":     "\n❌ Failed to start task: the worker's log says why\n" + noFiles,
		"a\x00b":    "❌ ERROR: The prompt contains a NUL byte, which this agent cannot be given.\n",
		strings.Repeat("x", wire.MaxArgumentPrompt+1): "❌ ERROR: The prompt has 131072 bytes; this agent takes at most 131071.\n",
	} {
		if got := g.ask(t, "t1", prompt); got != want {
			t.Errorf("%.20q: got %.200q, want %.200q", prompt, got, want)
		}
	}
	if got, want := readAll(t, g, `{"version":"1.2.9"}`), "❌ ERROR: Version mismatch! Worker is running v1.3.0.\n"; got != want {
		t.Errorf("other version: got %q, want %q", got, want)
	}
	if left := leftovers(t); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func readAll(t *testing.T, g *gateway, frame string) string {
	t.Helper()
	b, err := io.ReadAll(g.open(t, frame))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// TestBadFrames wants a reset, and no slot taken.
func TestBadFrames(t *testing.T) {
	a := ready(t, start(t, behaviour{run: echo}, nil))
	g := newGateway(t, a)
	for _, frame := range []string{"", "{", "[]", `{"version":"1.3.0"}`, `{"version":"1.3.0","task":"agent_task","data":"x","task_id":"../x"}`} {
		if got := readAll(t, g, frame); !strings.Contains(got, "reset") {
			t.Errorf("%q: got %q, want a reset", frame, got)
		}
	}
}

// TestTrailingSpace sends frames as an encoder writes them, with a newline after
// the object, also where the object ends with a reader's buffer.
func TestTrailingSpace(t *testing.T) {
	a := ready(t, start(t, behaviour{run: echo}, nil))
	g := newGateway(t, a)
	for _, size := range []int{100, 512, 1536, 3584, 7680} {
		frame, _ := wire.EncodeTask("t1", "")
		prompt := strings.Repeat("x", size-len(frame))
		frame, _ = wire.EncodeTask("t1", prompt)
		b, err := io.ReadAll(g.open(t, string(frame)+"\n"))
		if string(b) != prompt+noFiles || err != nil {
			t.Errorf("frame of %d bytes: got %.50q, %v", len(frame), b, err)
		}
	}
}

// TestSlots fills an agent. Streams that withhold their frame take no slot.
func TestSlots(t *testing.T) {
	hold := make(chan struct{})
	b := behaviour{run: func(_ context.Context, task Task) (Exit, error) {
		_, _ = io.WriteString(task.Output, "x")
		<-hold
		return Exit{}, nil
	}}
	a := ready(t, start(t, b, map[string]any{"max_tasks": 2}))
	g := newGateway(t, a)
	for range 50 {
		s, err := g.NewStream(context.Background(), g.agent, wire.TaskProtocol)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(s, "{"); err != nil {
			t.Fatal(err)
		}
		defer s.Reset()
	}
	var running []io.Reader
	for _, id := range []string{"t1", "t2"} {
		s := g.task(t, id, "")
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		running = append(running, s)
	}
	g.hears(t, "BUSY with 2 of 2", func(t wire.Telemetry) bool {
		return t.Status == wire.StatusBusy && t.CurrentTasks == 2 && t.MaxTasks == 2
	})
	if got, want := g.ask(t, "t3", ""), wire.RefuseTasks(2, 2)+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := g.ask(t, "t1", ""); !strings.Contains(got, "A task of that id is running") {
		t.Errorf("same id: got %q", got)
	}
	close(hold)
	for _, s := range running {
		if b, err := io.ReadAll(s); string(b) != noFiles || err != nil {
			t.Errorf("got %q, %v", b, err)
		}
	}
	g.hears(t, "free again", func(t wire.Telemetry) bool { return t.Status == wire.StatusAvailable && t.CurrentTasks == 0 })
}

func TestTelemetry(t *testing.T) {
	a := ready(t, start(t, behaviour{run: echo}, map[string]any{
		"name": "HR", "description": "d", "author": "me", "capability": "hr-policy", "max_tasks": 3}))
	g := newGateway(t, a)
	got := g.hears(t, "an announcement", func(t wire.Telemetry) bool { return t.Status == wire.StatusAvailable })
	if got.PeerID != a.host.ID().String() || got.AgentName != "HR" || got.Model != "m" || got.Author != "me" ||
		got.Capability != "hr-policy" || got.MaxTasks != 3 || got.CPUCores < 1 || got.RAMFreeGB <= 0 ||
		got.ImageRef == "" || got.MaxPrompt != wire.MaxArgumentPrompt || !got.Duplex {
		t.Errorf("got %+v", got)
	}
}

// TestGatewayGone wants the agent to be stopped in every way of a gateway to go.
func TestGatewayGone(t *testing.T) {
	for name, leave := range map[string]func(g *gateway, t *testing.T){
		"connection": func(g *gateway, _ *testing.T) { _ = g.Close() },
		"reset while open": func(g *gateway, t *testing.T) {
			// as our own gateway: its side stays open
		},
	} {
		t.Run(name, func(t *testing.T) {
			started, ended := make(chan struct{}), make(chan error, 1)
			a := ready(t, start(t, behaviour{run: func(ctx context.Context, task Task) (Exit, error) {
				close(started)
				<-ctx.Done() // silent
				ended <- context.Cause(ctx)
				return Exit{}, ctx.Err()
			}}, nil))
			g := newGateway(t, a)
			s, err := g.NewStream(context.Background(), g.agent, wire.TaskProtocol)
			if err != nil {
				t.Fatal(err)
			}
			frame, _ := wire.EncodeTask("t1", "x")
			if _, err := s.Write(frame); err != nil {
				t.Fatal(err)
			}
			<-started
			leave(g, t)
			_ = s.Reset()
			if err := <-ended; !errors.Is(err, errGatewayGone) {
				t.Errorf("stopped by %v", err)
			}
			await.Until(t, "the slot is free", func() bool {
				a.mu.Lock()
				defer a.mu.Unlock()
				return len(a.tasks) == 0
			})
		})
	}
}

// TestResetWithOutput is the same for a gateway of AgentFM 1.3, which closed its
// side: it is noticed with the next output.
func TestResetWithOutput(t *testing.T) {
	ended := make(chan error, 1)
	a := ready(t, start(t, behaviour{run: func(ctx context.Context, task Task) (Exit, error) {
		for ctx.Err() == nil {
			_, _ = io.WriteString(task.Output, strings.Repeat("x", 1000))
		}
		ended <- context.Cause(ctx)
		return Exit{}, ctx.Err()
	}}, nil))
	g := newGateway(t, a)
	s := g.task(t, "t1", "x")
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_ = s.Reset()
	if err := <-ended; !errors.Is(err, errGatewayGone) {
		t.Errorf("stopped by %v", err)
	}
}

func TestTimeout(t *testing.T) {
	a := ready(t, start(t, behaviour{run: func(ctx context.Context, task Task) (Exit, error) {
		<-ctx.Done()
		return Exit{}, ctx.Err()
	}}, map[string]any{"timeout": "50ms"}))
	want := "\n⚠️  Sandbox exited: timed out after 50ms\n" + noFiles
	if got := newGateway(t, a).ask(t, "t1", ""); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAllowPeers(t *testing.T) {
	a := ready(t, start(t, behaviour{run: echo}, map[string]any{
		"allow_peers": []string{"12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL"}}))
	if got := newGateway(t, a).ask(t, "t1", ""); !strings.HasPrefix(got, "❌ ERROR: This gateway is not on the worker's list") {
		t.Errorf("got %q", got)
	}
}

// TestNotReady wants an agent whose runtime is being prepared to be there, BUSY,
// and to refuse.
func TestNotReady(t *testing.T) {
	go_ := make(chan struct{})
	a := start(t, behaviour{run: echo, prepare: func(ctx context.Context) error {
		select {
		case <-go_:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}, nil)
	g := newGateway(t, a)
	g.hears(t, "BUSY while it is prepared", func(t wire.Telemetry) bool { return t.Status == wire.StatusBusy })
	if got := g.ask(t, "t1", ""); !strings.HasPrefix(got, "❌ ERROR: Worker is not ready yet") {
		t.Errorf("got %q", got)
	}
	close(go_)
	g.hears(t, "AVAILABLE", func(t wire.Telemetry) bool { return t.Status == wire.StatusAvailable })
	if got := g.ask(t, "t2", "x"); got != "x"+noFiles {
		t.Errorf("got %q", got)
	}
}

// TestFiles leaves all kinds of things in the output folder. Only files and
// folders travel, and nothing hangs.
// TestAway wants an agent whose engine is gone to be busy, to say so, and to work again
// when it is back.
func TestAway(t *testing.T) {
	var cause atomic.Pointer[wire.Cause]
	set := func(c wire.Cause) { cause.Store(&c) }
	set("")
	a := ready(t, start(t, behaviour{run: echo, away: func() wire.Cause { return *cause.Load() }}, nil))
	g := newGateway(t, a)
	status := func() string {
		now, _ := a.current(t.Context())
		return now.Status
	}
	for _, c := range []wire.Cause{wire.CauseRuntimeError, wire.CauseImageUnavailable} {
		set(c)
		want := "❌ ERROR: Worker cannot start its agent now: busy (" + string(c) + "). Try another worker.\n"
		if got := g.ask(t, "t1", "hello"); got != want || status() != wire.StatusBusy {
			t.Errorf("got %q, status %s; want %q", got, status(), want)
		}
		set("")
		if got := g.ask(t, "t1", "hello"); got != "hello"+noFiles || status() != wire.StatusAvailable {
			t.Errorf("got %q, status %s, when it is back", got, status())
		}
	}
}

// TestPreparedOften wants a runtime that says so to be tried again without long pauses.
func TestPreparedOften(t *testing.T) {
	var tries atomic.Int64
	ready(t, start(t, behaviour{run: echo, retry: 5 * time.Millisecond, prepare: func(context.Context) error {
		if tries.Add(1) < 20 { // in more than ten minutes, else
			return errors.New("not there yet")
		}
		return nil
	}}, nil))
}

// TestPreparedAgain wants a runtime to be prepared again when it asks for it, as often
// as it does, while its agent goes on.
func TestPreparedAgain(t *testing.T) {
	prepared := make(chan Agent, 1)
	a := ready(t, start(t, behaviour{run: echo, agent: func(a Agent) { prepared <- a }}, nil))
	g := newGateway(t, a)
	for range 3 {
		agent := <-prepared
		agent.Again()
		if got := g.ask(t, "t1", "hello"); got != "hello"+noFiles {
			t.Errorf("got %q", got)
		}
	}
	<-prepared
}

// TestPreparing wants the telemetry and the profile to say what takes so long, and nothing
// of it afterwards.
func TestPreparing(t *testing.T) {
	told := make(chan struct{})
	a := start(t, behaviour{agent: func(a Agent) { a.Progress("pulling image", 42) }, prepare: func(ctx context.Context) error {
		select {
		case <-told:
			return errors.New("in vain")
		case <-ctx.Done():
			return ctx.Err()
		}
	}}, nil)
	await.Until(t, "the agent says how far it is", func() bool {
		p, ok := a.profile(t.Context())
		return ok && p.Preparing == "pulling image" && p.PreparingPercent == 42 && p.Status == wire.StatusBusy
	})
	close(told)
	await.Until(t, "it is over", func() bool {
		now, _ := a.current(t.Context())
		return now.Preparing == "" && now.PreparingPercent == 0
	})
}

// TestNotReadyTellsWhy wants an agent without an image to say so, as machines read it.
func TestNotReadyTellsWhy(t *testing.T) {
	a := start(t, behaviour{prepare: func(context.Context) error {
		return fmt.Errorf("preparing: %w", &Failure{wire.CauseDigestMismatch, errors.New("secret image")})
	}}, nil)
	g := newGateway(t, a)
	want := "❌ ERROR: Worker is not ready yet: busy with its preparation (digest_mismatch). Try another worker.\n"
	await.Until(t, "the agent says why", func() bool { return g.ask(t, "t1", "hello") == want })
}

func TestFiles(t *testing.T) {
	a := ready(t, start(t, behaviour{run: func(_ context.Context, task Task) (Exit, error) {
		if task.Prompt == "none" {
			return Exit{}, nil
		}
		dir := task.OutputDir
		err := errors.Join(
			os.WriteFile(filepath.Join(dir, "report.md"), []byte("# hi"), 0o644),
			os.MkdirAll(filepath.Join(dir, "sub", "empty"), 0o755),
			os.WriteFile(filepath.Join(dir, "sub", "ü.bin"), bytes.Repeat([]byte{0}, 100_000), 0o600),
			os.Symlink("/etc/passwd", filepath.Join(dir, "link")),
			os.Symlink(".", filepath.Join(dir, "loop")),
			syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o644),
		)
		_, _ = io.WriteString(task.Output, "done\n")
		return Exit{}, err
	}}, nil))
	g := newGateway(t, a)
	built, sent := counter(t, "agentfm_artifacts_built_total"), counter(t, "agentfm_artifact_bytes_sent_total")
	if got, want := g.ask(t, "t1", ""), "done\n\n"+wire.MarkerFiles+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	b, ok := g.artifacts.Load("t1")
	if !ok {
		t.Fatal("no files when the stream had ended")
	}
	built, sent = counter(t, "agentfm_artifacts_built_total")-built, counter(t, "agentfm_artifact_bytes_sent_total")-sent
	if built != 1 || int(sent) != len(b.([]byte)) {
		t.Errorf("metrics: %v artifacts, %v bytes; the zip has %d", built, sent, len(b.([]byte)))
	}
	z, err := zip.NewReader(bytes.NewReader(b.([]byte)), int64(len(b.([]byte))))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range z.File {
		names = append(names, f.Name)
	}
	slices.Sort(names)
	if want := []string{"report.md", "sub/", "sub/empty/", "sub/ü.bin"}; !slices.Equal(names, want) {
		t.Errorf("got %q, want %q", names, want)
	}
	if got, want := g.ask(t, "t2", "none"), "\n⚠️  Sandbox exited: it said nothing and left no files\n"+noFiles; got != want {
		t.Errorf("no files, and nothing said: got %q, want %q", got, want)
	}
	await.Until(t, "the folders are gone", func() bool { return len(leftovers(t)) == 0 })
}

// counter returns the value of a metric without labels.
func counter(t *testing.T, name string) float64 {
	t.Helper()
	reg := prometheus.NewRegistry()
	if err := metrics.Register(reg); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// TestTimeOverWhileCollecting has the time of a task end while its files are collected,
// which is no fault of the worker's.
func TestTimeOverWhileCollecting(t *testing.T) {
	a := start(t, behaviour{run: func(_ context.Context, task Task) (Exit, error) {
		f, err := os.Create(filepath.Join(task.OutputDir, "sparse"))
		if err != nil {
			return Exit{}, err
		}
		defer f.Close()
		return Exit{}, f.Truncate(5 << 30)
	}}, map[string]any{"timeout": "300ms"})
	_, files, err := newGateway(t, a).run(t, "t1", "x")
	ended, ok := errors.AsType[*wire.AgentError](err)
	if !ok || ended.Cause != wire.CauseDeadline || files != nil {
		t.Errorf("%v, %v", err, files)
	}
}
