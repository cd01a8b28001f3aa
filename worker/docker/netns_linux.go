// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// netns is the network namespace of a container. It stays that one: the process by
// which it was found may end, and another get its number.
type netns struct{ file *os.File }

// mayEnter reports whether this process may enter network namespaces, as an error
// when it may not.
func mayEnter() error {
	err := inThread(func() error {
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		defer own.Close()
		return setns(own)
	})
	if err != nil {
		return fmt.Errorf("%w: this process may not enter network namespaces: %w", errNotBeside, err)
	}
	return nil
}

// openNetns opens the network namespace of a process, which must be of the container.
// The engine may be on another machine, or see other process ids: then there is no
// such process here, or it is somebody else's.
func openNetns(pid int, id string) (*netns, error) {
	proc := "/proc/" + strconv.Itoa(pid)
	file, err := os.Open(proc + "/ns/net")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: there is no process %d here", errNotBeside, pid)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errNotBeside, err)
	}
	// The kernel's groups of processes are named after containers, by all engines.
	groups, err := os.ReadFile(proc + "/cgroup")
	if err == nil && !bytes.Contains(groups, []byte(id)) {
		err = fmt.Errorf("process %d is not of the container", pid)
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("%w: %w", errNotBeside, err)
	}
	return &netns{file}, nil
}

// dial connects to a port of the loopback interface within the namespace. A
// connection belongs to the namespace in which it was made, wherever it is used.
func (n *netns) dial(ctx context.Context, port int) (net.Conn, error) {
	var conn net.Conn
	err := inThread(func() error {
		if err := setns(n.file); err != nil {
			return fmt.Errorf("entering the container's network: %w", err)
		}
		d := net.Dialer{Timeout: dialTimeout} // to one address it dials from here, and from no other goroutine
		var err error
		conn, err = d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		return err
	})
	return conn, err
}

// findPause is the shortest pause between looks at the processes of this machine.
const findPause = 2 * time.Millisecond

// findNetns waits for the network namespace of a container that is being started,
// among the processes that are not in old. It returns it as soon as it is there, which
// is some time before the container's program begins. The process by which it is found
// may be anybody's who is named like the container: it is to be compared with that of
// the container when that runs.
func findNetns(ctx context.Context, id string, old map[string]bool) (*netns, error) {
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	for start := time.Now(); ; {
		began := time.Now()
		for name := range processes() {
			if old[name] {
				continue
			}
			pid, _ := strconv.Atoi(name)
			n, err := openNetns(pid, id)
			if err != nil {
				continue
			}
			// Before it has a network of its own, it has the engine's.
			if info, err := n.file.Stat(); err == nil && !os.SameFile(info, own) {
				return n, nil
			}
			n.close()
		}
		// A fifth of a CPU at most, and less for an engine that takes long.
		pause := max(findPause, 4*time.Since(began), time.Since(start)/100)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// processes returns the ids of the processes of this machine.
func processes() map[string]bool {
	ids := make(map[string]bool)
	proc, err := os.Open("/proc")
	if err != nil {
		return ids
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	for _, name := range names {
		if name[0] >= '0' && name[0] <= '9' {
			ids[name] = true
		}
	}
	return ids
}

// listen listens on a port of the loopback interface within the namespace, which need
// not be up yet.
func (n *netns) listen(port int) (net.Listener, error) {
	free := func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(err, os.NewSyscallError("setsockopt", failed))
	}
	var l net.Listener
	err := inThread(func() error {
		if err := setns(n.file); err != nil {
			return fmt.Errorf("entering the container's network: %w", err)
		}
		var err error
		c := net.ListenConfig{Control: free}
		l, err = c.Listen(context.Background(), "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		return err
	})
	return l, err
}

// same reports whether two namespaces are one.
func (n *netns) same(other *netns) bool {
	a, err := n.file.Stat()
	if err != nil {
		return false
	}
	b, err := other.file.Stat()
	return err == nil && os.SameFile(a, b)
}

// close gives the namespace back.
func (n *netns) close() { _ = n.file.Close() }

// setns has the thread of the caller enter a network namespace.
func setns(file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.Setns(int(fd), unix.CLONE_NEWNET) }); err != nil {
		return err
	}
	return os.NewSyscallError("setns", failed)
}

// inThread runs f in a thread that ends with it: whatever namespace the thread is in
// then, nobody else gets into it.
func inThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if syscall.Gettid() != os.Getpid() {
			done <- f() // never unlocked: the thread ends with the goroutine
			return
		}
		// The main thread does not end, and is what /proc/self shows. As long as
		// it is locked here, another goroutine is in another thread.
		defer runtime.UnlockOSThread()
		elsewhere := make(chan struct{})
		go func() {
			defer close(elsewhere)
			runtime.LockOSThread()
			done <- f()
		}()
		<-elsewhere
	}()
	return <-done
}
