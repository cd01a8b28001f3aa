// SPDX-License-Identifier: Apache-2.0

//go:build unix && !linux

package process

import "syscall"

// dieWithParent does nothing: the system has no such thing.
func dieWithParent(*syscall.SysProcAttr) {}
