// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package process

import "os/exec"

// supported says that commands can have a process group of their own.
const supported = false

func ownGroup(*exec.Cmd) {}

func stopGroup(cmd *exec.Cmd) error { return cmd.Process.Kill() }

func killGroup(*exec.Cmd) {}

func defaultSIGPIPE() {}
