// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"

	"github.com/moby/profiles/seccomp"
)

// refusedCalls are system calls that the profile of an engine may allow, and ours does
// not: they look into other processes, or are a part of the kernel with many faults.
var refusedCalls = []string{
	"io_uring_enter", "io_uring_register", "io_uring_setup",
	"kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace",
}

// seccompProfile returns the profile of our containers: Docker's newest, since that of an
// old engine allows more, without what agents do not need.
var seccompProfile = sync.OnceValues(func() (string, error) {
	p := seccomp.DefaultProfile()
	for _, rule := range p.Syscalls {
		rule.Names = slices.DeleteFunc(rule.Names, func(name string) bool { return slices.Contains(refusedCalls, name) })
	}
	p.Syscalls = slices.DeleteFunc(p.Syscalls, func(rule *seccomp.Syscall) bool { return len(rule.Names) == 0 })
	var b strings.Builder
	err := json.NewEncoder(&b).Encode(p)
	return b.String(), err
})
