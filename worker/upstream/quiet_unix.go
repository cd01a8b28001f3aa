// SPDX-License-Identifier: Apache-2.0

//go:build unix && !aix

package upstream

import (
	"net"
	"syscall"
)

// canBeQuiet says whether [quietness] knows.
const canBeQuiet = true

// quietness returns a function that reports whether the other side of a connection has
// neither closed it nor sent anything that was not read. It does not wait.
func quietness(c net.Conn) func() bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return func() bool { return false }
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return func() bool { return false }
	}
	quiet := false
	var b [1]byte
	look := func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = err == syscall.EAGAIN || err == syscall.EWOULDBLOCK
		return true
	}
	return func() bool {
		quiet = false
		return raw.Read(look) == nil && quiet
	}
}
