// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// answers is what testdata/agent.sh says to lines that it does not repeat.
var answers = map[string]string{
	"flood": strings.Repeat("x", 340_000),
	"pipe":  "y",
}

// task steers one run of testdata/agent.sh.
type task struct {
	t      *testing.T
	prompt string // names the FIFO
	fifo   *os.File
	said   strings.Builder
}

func newTask(t *testing.T) *task {
	t.Helper()
	k := &task{t: t, prompt: filepath.Join(t.TempDir(), "task")}
	if err := syscall.Mkfifo(k.prompt, 0o600); err != nil {
		t.Fatal(err)
	}
	var err error
	// for reading too, so that the opening does not wait for the agent
	if k.fifo, err = os.OpenFile(k.prompt, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.end)
	return k
}

// say has the agent say a line.
func (k *task) say(line string) {
	k.t.Helper()
	if _, err := io.WriteString(k.fifo, line+"\n"); err != nil {
		k.t.Fatal(err)
	}
	if answer, ok := answers[line]; ok {
		line = answer
	}
	k.said.WriteString(line + "\n")
}

// end has the agent end. It may be called more than once.
func (k *task) end() { _ = k.fifo.Close() }

// output is all that the agent says, when it runs with that label.
func (k *task) output(label string) string {
	return fmt.Sprintf("%s\n%sbye from %[1]s\n", label, k.said.String())
}

// pid returns the process id of the agent, which runs.
func (k *task) pid() int { return k.readPID(".pid") }

// child returns the process id of the agent's child, when it has one.
func (k *task) child() int { return k.readPID(".child") }

func (k *task) readPID(suffix string) int {
	k.t.Helper()
	b, err := os.ReadFile(k.prompt + suffix)
	if err != nil {
		k.t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil {
		k.t.Fatal(err)
	}
	return pid
}

// runs reports whether a process runs. One that has ended and that nobody has
// collected yet does not: our orphans are init's, which may take its time.
func runs(pid int) bool {
	if err := syscall.Kill(pid, 0); err != nil {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // "pid (name) state …"; on Linux alone
	return err != nil || !bytes.Contains(stat, []byte(") Z "))
}
