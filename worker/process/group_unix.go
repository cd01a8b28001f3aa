// SPDX-License-Identifier: Apache-2.0

//go:build unix

package process

import (
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
)

// supported says that commands can have a process group of their own.
const supported = true

// ownGroup puts the command into a process group of its own.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(cmd.SysProcAttr)
}

// stopGroup asks the whole group to stop.
func stopGroup(cmd *exec.Cmd) error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }

// killGroup kills what is left of the group.
func killGroup(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }

// defaultSIGPIPE lets commands die of a broken pipe, as pipelines of a shell need
// it. Caddy ignores the signal, which its children would inherit; a signal that
// is taken and dropped does the same for Caddy and is not inherited.
var defaultSIGPIPE = sync.OnceFunc(func() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) })
