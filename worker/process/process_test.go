// SPDX-License-Identifier: Apache-2.0

//go:build unix

package process

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/goleak"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// shell returns a runtime that runs a script with sh.
func shell(t *testing.T, script string, change func(*Runtime)) *Runtime {
	t.Helper()
	r := &Runtime{Command: []string{"sh", "-c", script, "agent"}}
	if change != nil {
		change(r)
	}
	if err := r.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Prepare(context.Background(), worker.Agent{}); err != nil {
		t.Fatal(err)
	}
	return r
}

func onStdin(r *Runtime) { r.Prompt = promptStdin }

// buffer is an output that may be looked at while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func task(t *testing.T, prompt string, out *buffer) worker.Task {
	return worker.Task{ID: "t1", Prompt: prompt, Model: "m", Output: out, OutputDir: t.TempDir()}
}

// gone waits until no process has that id any more.
func gone(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	await.Until(t, "process "+strconv.Itoa(pid)+" is gone", func() bool {
		state, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err == nil && strings.Contains(string(state), ") Z ") { // somebody else's to reap
			return true
		}
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	})
}

func TestPrompt(t *testing.T) {
	argument := shell(t, `printf '%s' "$1"`, nil)
	stdin := shell(t, `cat`, onStdin)
	for name, prompt := range map[string]string{
		"empty": "", "text": "hello", "options": "--help -rf", "quotes": `'"$(id)` + "`id`", "CRLF": "a\r\nb\r\n\n",
		"UTF-8": "héllo 日本 \U0001F600", "limit": strings.Repeat("x", wire.MaxArgumentPrompt),
	} {
		for how, r := range map[string]*Runtime{"argument": argument, "stdin": stdin} {
			var out buffer
			exit, err := r.Run(context.Background(), task(t, prompt, &out))
			if out.String() != prompt || exit != (worker.Exit{}) || err != nil {
				t.Errorf("%s by %s: got %.50q, %v, %v", name, how, out.String(), exit, err)
			}
		}
	}
	var out buffer
	large := strings.Repeat("\x00y", wire.MaxTaskFrame/2)
	if _, err := stdin.Run(context.Background(), task(t, large, &out)); out.String() != large || err != nil {
		t.Errorf("1 MiB with NULs by stdin: %d bytes, %v", len(out.String()), err)
	}
	if argument.PromptLimit() != wire.MaxArgumentPrompt || argument.PromptNUL() || stdin.PromptLimit() != wire.MaxTaskFrame || !stdin.PromptNUL() {
		t.Error("limits")
	}
	if _, err := argument.Run(context.Background(), task(t, strings.Repeat("x", wire.MaxArgumentPrompt+1), &out)); err == nil {
		t.Error("the system takes more than the limit says")
	}
}

func TestEnds(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		out    string
		exit   worker.Exit
	}{
		"ok":          {"echo a; echo b >&2; echo c", "a\nb\nc\n", worker.Exit{}},
		"status":      {"echo a; exit 3", "a\n", worker.Exit{Code: 3}},
		"signal":      {"kill -9 $$", "", worker.Exit{Code: -1, Reason: "signal: killed"}},
		"left behind": {`sleep 1000 & echo "$!" >"$AGENTFM_OUTPUT/pid"; echo a`, "a\n", worker.Exit{}},
	} {
		t.Run(name, func(t *testing.T) {
			var out buffer
			k := task(t, "", &out)
			exit, err := shell(t, c.script, nil).Run(context.Background(), k)
			if out.String() != c.out || exit != c.exit || err != nil {
				t.Errorf("got %q, %+v, %v", out.String(), exit, err)
			}
			if name == "left behind" {
				gone(t, filepath.Join(k.OutputDir, "pid"))
			}
		})
	}
}

// TestEnvironment wants the agent to have what it needs and nothing of Caddy's.
func TestEnvironment(t *testing.T) {
	t.Setenv("AGENTFM_API_KEYS", "a-secret-of-caddy")
	t.Setenv("TOKEN", "a-secret-for-the-agent")
	dir := t.TempDir()
	var out buffer
	k := task(t, "", &out)
	_, err := shell(t, "env; pwd", func(r *Runtime) {
		r.Dir, r.Env = dir, map[string]string{"AGENT_TOKEN": "{env.TOKEN}"}
	}).Run(context.Background(), k)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"AGENTFM_MODEL=m\n", "AGENTFM_OUTPUT=" + k.OutputDir + "\n", "AGENT_TOKEN=a-secret-for-the-agent\n", "PATH=", filepath.Base(dir) + "\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "a-secret-of-caddy") {
		t.Error("the agent sees Caddy's secrets")
	}
}

// TestCancel stops an agent that has a child and ignores SIGTERM.
func TestCancel(t *testing.T) {
	for name, script := range map[string]string{
		"polite":   `sh -c 'sleep 1000; :' & echo $! >"$AGENTFM_OUTPUT/child"; echo $$ >"$AGENTFM_OUTPUT/pid"; echo ready; wait`,
		"stubborn": `trap '' TERM; sh -c 'sleep 1000; :' & echo $! >"$AGENTFM_OUTPUT/child"; echo $$ >"$AGENTFM_OUTPUT/pid"; echo ready; while :; do sleep 1000; done`,
	} {
		t.Run(name, func(t *testing.T) {
			var out buffer
			k := task(t, "", &out)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = shell(t, script, nil).Run(ctx, k)
			}()
			await.Until(t, "the agent and its child run", func() bool { return out.String() == "ready\n" })
			cancel()
			<-done
			gone(t, filepath.Join(k.OutputDir, "pid"))
			gone(t, filepath.Join(k.OutputDir, "child"))
		})
	}
}

func TestCancelledBefore(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var out buffer
	if _, err := shell(t, "echo a", nil).Run(ctx, task(t, "", &out)); !errors.Is(err, context.Canceled) || out.String() != "" {
		t.Errorf("got %q, %v", out.String(), err)
	}
}

// deaf is an output to which nobody listens.
type deaf struct{ cancel context.CancelFunc }

func (d deaf) Write([]byte) (int, error) {
	d.cancel()
	return 0, errors.New("nobody listens")
}

func TestNobodyListens(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	k := worker.Task{Output: deaf{cancel}, OutputDir: t.TempDir()}
	if _, err := shell(t, "while :; do echo a; done", nil).Run(ctx, k); err != nil {
		t.Log(err)
	}
}

// shortGrace shortens the drain grace for a test.
func shortGrace(t *testing.T) {
	old := drainGrace
	drainGrace = time.Second
	t.Cleanup(func() { drainGrace = old })
}

// slow is an output that takes nothing before it may.
type slow struct {
	buffer
	may  chan struct{}
	fail error
}

func (s *slow) Write(p []byte) (int, error) {
	<-s.may
	if s.fail != nil {
		return 0, s.fail
	}
	return s.buffer.Write(p)
}

// TestSlowOutput wants all output of an agent to be passed on, however slowly it is taken,
// or the task to fail.
func TestSlowOutput(t *testing.T) {
	shortGrace(t)
	const size = 64 << 10 // of the pipe
	r := shell(t, `head -c 65536 /dev/zero; echo $$ >"$AGENTFM_OUTPUT/pid"`, nil)
	for name, fail := range map[string]error{"slow": nil, "broken": errors.New("the gateway has gone")} {
		t.Run(name, func(t *testing.T) {
			k := task(t, "", nil)
			out := &slow{may: make(chan struct{}), fail: fail}
			k.Output = out
			var exit worker.Exit
			var err error
			done := make(chan struct{})
			go func() {
				defer close(done)
				exit, err = r.Run(t.Context(), k)
			}()
			pid := filepath.Join(k.OutputDir, "pid")
			await.Until(t, "the agent has written all", func() bool {
				b, err := os.ReadFile(pid)
				return err == nil && bytes.HasSuffix(b, []byte("\n"))
			})
			gone(t, pid)
			time.Sleep(drainGrace + drainGrace/2) // it is over, were it to run meanwhile
			close(out.may)
			<-done
			if !errors.Is(err, fail) || exit != (worker.Exit{}) || fail == nil && len(out.String()) != size {
				t.Errorf("%d bytes of %d, %+v, %v", len(out.String()), size, exit, err)
			}
		})
	}
}

// TestFled leaves a child behind that is in another group and holds the output: what it
// writes ends a while after the agent.
func TestFled(t *testing.T) {
	if _, err := exec.LookPath("setsid"); err != nil {
		t.Skip("needs setsid")
	}
	shortGrace(t)
	for name, child := range map[string]string{"silent": "sleep 1000", "talkative": "while :; do echo b; sleep 0.1; done"} {
		t.Run(name, func(t *testing.T) {
			var out buffer
			k := task(t, "", &out)
			pid := filepath.Join(k.OutputDir, "pid")
			t.Cleanup(func() {
				b, _ := os.ReadFile(pid)
				if id, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
					_ = syscall.Kill(-id, syscall.SIGKILL)
				}
			})
			script := `setsid sh -c 'echo $$ >"$AGENTFM_OUTPUT/pid.new"; mv "$AGENTFM_OUTPUT/pid.new" "$AGENTFM_OUTPUT/pid"; ` + child + `' &
				while [ ! -e "$AGENTFM_OUTPUT/pid" ]; do sleep 0.01; done; echo a`
			exit, err := shell(t, script, nil).Run(t.Context(), k)
			if !strings.Contains(out.String(), "a\n") || exit != (worker.Exit{}) || err != nil {
				t.Errorf("got %q, %+v, %v", out.String(), exit, err)
			}
		})
	}
}

func TestPrepare(t *testing.T) {
	for name, c := range map[string]struct {
		r    Runtime
		want string
	}{
		"no program": {Runtime{Command: []string{"no-such-program"}}, "no-such-program"},
		"no folder":  {Runtime{Command: []string{"sh"}, Dir: "/no/such"}, "/no/such"},
		"a folder":   {Runtime{Command: []string{"/"}}, "command"},
	} {
		if err := c.r.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.r.Prepare(context.Background(), worker.Agent{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestValidate(t *testing.T) {
	for name, r := range map[string]*Runtime{
		"nothing": {}, "prompt": {Command: []string{"a"}, Prompt: "file"}, "env": {Command: []string{"a"}, Env: map[string]string{"A=B": ""}},
	} {
		if r.Validate() == nil {
			t.Errorf("%s: valid", name)
		}
	}
}

func TestCaddyfile(t *testing.T) {
	var r Runtime
	err := r.UnmarshalCaddyfile(caddyfile.NewTestDispenser("process {\n command sh a.sh\n prompt stdin\n dir /x\n env A 1\n env B 2\n}"))
	if err != nil || strings.Join(r.Command, " ") != "sh a.sh" || r.Prompt != "stdin" || r.Dir != "/x" || r.Env["A"]+r.Env["B"] != "12" {
		t.Errorf("got %+v, %v", r, err)
	}
	for in, want := range map[string]string{
		"process x":                             "wrong argument count",
		"process {\n comand sh\n}":              "unrecognized option 'comand'",
		"process {\n command\n}":                "wrong argument count",
		"process {\n prompt a b\n}":             "wrong argument count",
		"process {\n dir /a\n dir /b\n}":        "already specified",
		"process {\n env A\n}":                  "a name and a value",
		"process {\n env A secret\n env A x\n}": "already specified",
	} {
		err := new(Runtime).UnmarshalCaddyfile(caddyfile.NewTestDispenser(in))
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: got %v, want …%s…", in, err, want)
		}
	}
}
