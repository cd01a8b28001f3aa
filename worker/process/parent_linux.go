// SPDX-License-Identifier: Apache-2.0

package process

import "syscall"

// dieWithParent has the system kill the command when Caddy is killed.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
