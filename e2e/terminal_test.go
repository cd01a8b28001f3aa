// SPDX-License-Identifier: Apache-2.0

//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal with a command on it.
type terminal struct {
	t       *testing.T
	cmd     *exec.Cmd
	master  *os.File
	slave   *os.File
	said    *logBuffer
	read    int // how much of what was said is behind
	before  unix.Termios
	drained chan struct{}
}

// onTerminal starts `agentfm agentfm` with arguments on a terminal, which is the one that
// controls it. Where out is there, standard output goes there.
func (c commandLine) onTerminal(t *testing.T, out *os.File, args ...string) *terminal {
	t.Helper()
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err := errors.Join(err, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	term := &terminal{t: t, master: master, slave: slave, said: &logBuffer{}, before: termios(t, slave), drained: make(chan struct{})}
	if err := unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 120}); err != nil {
		t.Fatal(err)
	}
	term.cmd = exec.CommandContext(t.Context(), program, append([]string{"agentfm"}, args...)...)
	term.cmd.Dir, term.cmd.Env = c.dir, append([]string{"HOME=" + c.dir, "PATH=" + os.Getenv("PATH"), "TERM=xterm"}, c.env...)
	term.cmd.Stdin, term.cmd.Stdout, term.cmd.Stderr = slave, slave, slave
	if out != nil {
		term.cmd.Stdout = out
	}
	term.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := term.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = io.Copy(term.said, master) // until it is closed
		close(term.drained)
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the terminal shows\n%q", term.said)
		}
	})
	return term
}

// termios returns the settings of a terminal.
func termios(t *testing.T, f *os.File) unix.Termios {
	t.Helper()
	got, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *got
}

// types types.
func (term *terminal) types(keys string) {
	term.t.Helper()
	if _, err := io.WriteString(term.master, keys); err != nil {
		term.t.Fatal(err)
	}
}

// expect waits until the terminal shows a text, after the last one that was expected.
func (term *terminal) expect(text string) {
	term.t.Helper()
	await(term.t, fmt.Sprintf("%q on the terminal", text), func() bool {
		i := strings.Index(term.said.String()[term.read:], text)
		if i >= 0 {
			term.read += i + len(text)
		}
		return i >= 0
	})
}

// ends waits for the end of the command, and wants the terminal to be as it was found.
func (term *terminal) ends(code int) {
	term.t.Helper()
	done := make(chan struct{})
	go func() {
		_ = term.cmd.Wait() // the code says how it ended
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(patience):
		term.t.Fatalf("still running after %v", patience)
	}
	if got := term.cmd.ProcessState.ExitCode(); got != code {
		term.t.Errorf("%v, want status %d", term.cmd.ProcessState, code)
	}
	if after := termios(term.t, term.slave); after != term.before {
		term.t.Errorf("the terminal was left as %+v, and was %+v", after, term.before)
	}
}

// talkScript says how many messages it heard, in a way that would steer a terminal, and at
// "wait" begins and does not end.
const talkScript = `prompt=$(cat)
if printf %s "$prompt" | tail -n 3 | grep -q wait; then echo begun; exec sleep 600; fi
printf 'heard %s \033]0;x\007\n' "$(printf '%s\n' "$prompt" | grep -c '^user: ')"
`

// TestTerminal uses the commands on a real terminal.
func TestTerminal(t *testing.T) {
	t.Parallel()
	p := start(t, home(t), caddyfile(localMesh, withKey, agent("talk", "Talk", "talk", command(writeScript(t, talkScript)))))
	p.awaitWorkers(1)
	c := commandLine{dir: t.TempDir(), env: []string{"AGENTFM_GATEWAY_URL=" + p.url, "AGENTFM_API_KEY=" + testKey}}
	t.Run("chat", func(t *testing.T) { chatOnTerminal(t, p.in(t), c) })
	t.Run("killed", func(t *testing.T) {
		term := c.onTerminal(t, nil, "chat", "--model", "talk")
		term.expect("> ")
		await(t, "the chat to edit lines", func() bool { return termios(t, term.slave) != term.before })
		if err := term.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		term.ends(128 + int(syscall.SIGTERM))
	})
	t.Run("table", func(t *testing.T) {
		term := c.onTerminal(t, nil, "models")
		term.expect("MODEL  AGENT  STATUS     TASKS  AUTHOR  PEER\r\ntalk   Talk   AVAILABLE  0/4    -       12D3KooW")
		term.ends(0)
	})
	t.Run("logs", func(t *testing.T) {
		task := p.in(t).submitAs(t, testKey, map[string]string{"worker_id": p.workerID("Talk"), "prompt": "user: x"})
		term := c.onTerminal(t, nil, "tasks", "logs", "-f", task)
		term.expect("heard 1 ?]0;x?\r\n")
		term.ends(0)
	})
	t.Run("interrupted", func(t *testing.T) {
		term := c.onTerminal(t, nil, "run", "--model", "talk", "wait")
		term.expect("begun")
		term.types("\x03")
		term.ends(130)
		p.in(t).awaitIdle("Talk")
	})
	t.Run("scatter", func(t *testing.T) {
		writeFile(t, c.dir, "prompts", "user: one\nuser: two\n\"user: 3\\nuser: 4\"\n")
		term := c.onTerminal(t, nil, "scatter", "--model", "talk", "prompts")
		term.expect("[..............................] 0/3, 0 failed")
		term.expect("    0  success")
		term.expect("heard 1 ?]0;x?\r\n")
		term.expect("    2  success")
		term.expect("heard 2 ?]0;x?\r\n")
		term.expect("[##############################] 3/3, 0 failed")
		term.ends(0)
		out, err := os.Create(filepath.Join(c.dir, "results"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		term = c.onTerminal(t, out, "scatter", "--model", "talk", "prompts")
		term.expect("3/3, 0 failed")
		term.ends(0)
		if b, err := os.ReadFile(out.Name()); err != nil || strings.Count(string(b), `"status":"success"`) != 3 || strings.Contains(string(b), "#") {
			t.Errorf("%s, %v", b, err)
		}
	})
}

// awaitIdle waits until an agent has nothing to do.
func (p *process) awaitIdle(name string) {
	p.t.Helper()
	p.await("the agent to be stopped", func() bool {
		for _, w := range p.workers().Agents {
			if w.Name == name {
				return w.CurrentTasks == 0
			}
		}
		return false
	})
}

// chatOnTerminal talks as somebody at a keyboard does.
func chatOnTerminal(t *testing.T, p *process, c commandLine) {
	term := c.onTerminal(t, nil, "chat", "--model", "talk")
	term.expect("> ")
	term.types("ome\x1b[D\x1b[D\x1b[Dc\x05\x01\x1b[3~\x05\r") // typed, edited: "ome"
	term.expect("heard 1 ?]0;x?\r\n")
	term.expect("> ")
	term.types("\x1b[A\r") // the line before
	term.expect("ome\r\n")
	term.expect("heard 2 ")
	term.expect("> ")
	term.types("please wait\r")
	term.expect("begun")
	term.types("\x03") // stops the answer, and nothing else
	term.expect("stopped")
	p.awaitIdle("Talk")
	term.expect("> ")
	term.types("half a line\x03") // is given up
	term.expect("(Ctrl-D ends the chat)")
	term.expect("> ")
	term.types("two\r") // the message whose answer was stopped is forgotten
	term.expect("heard 3 ")
	term.expect("> ")
	term.types("\x1b[200~three\rof two lines\x1b[201~\r") // pasted
	term.expect("heard 4 ")
	term.expect("> ")
	term.types("/clear\r")
	term.expect("> ")
	term.types("four\r")
	term.expect("heard 1 ")
	term.expect("> ")
	term.types("\x04")
	term.ends(0)
}
