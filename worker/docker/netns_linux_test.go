// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newNetns makes a network namespace with a loopback interface that is up, and a
// listener in it.
func newNetns(t *testing.T) (*netns, net.Listener) {
	t.Helper()
	var n *netns
	var l net.Listener
	err := inThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		lo, err := unix.NewIfreq("lo")
		if err != nil {
			return err
		}
		lo.SetUint16(unix.IFF_UP)
		if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo); err != nil {
			return err
		}
		if l, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
			return err
		}
		file, err := os.Open("/proc/thread-self/ns/net")
		n = &netns{file}
		return err
	})
	if errors.Is(err, syscall.EPERM) {
		t.Skip("needs root: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.close()
		l.Close()
	})
	return n, l
}

// TestDialInANamespace wants connections in the other namespace, and every thread
// that is left to be in this one.
func TestDialInANamespace(t *testing.T) {
	n, l := newNetns(t)
	port := l.Addr().(*net.TCPAddr).Port
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("here"))
			c.Close()
		}
	}()
	var dialling sync.WaitGroup
	for range 32 {
		dialling.Go(func() {
			c, err := n.dial(t.Context(), port)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			b := make([]byte, 8)
			if k, _ := c.Read(b); string(b[:k]) != "here" {
				t.Errorf("got %q", b[:k])
			}
		})
	}
	dialling.Wait()
	if c, err := net.Dial("tcp4", l.Addr().String()); err == nil {
		c.Close()
		t.Error("the listener can be reached from here")
	}
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	// a thread that is on its way out may still be there
	eventually(t, "no thread is in the other namespace", func() bool {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			name := "/proc/self/task/" + thread.Name() + "/ns/net"
			if ns, err := os.Readlink(name); err == nil && ns != own {
				return false
			}
		}
		return true
	})
	if _, err := n.dial(t.Context(), 1); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a port without a listener: %v", err)
	}
	n.close()
	if _, err := n.dial(t.Context(), port); err == nil {
		t.Error("it can be entered after its end")
	}
}

// A process id is not proof: it may be another process's by now, or here.
func TestNamespaceOfAnotherProcess(t *testing.T) {
	for pid, want := range map[int]string{os.Getpid(): "is not of the container", 1 << 30: "there is no process"} {
		_, err := openNetns(pid, strings.Repeat("ab", 32))
		if !errors.Is(err, errNotBeside) || !strings.Contains(err.Error(), want) {
			t.Errorf("process %d: %v, want %q", pid, err, want)
		}
	}
}

// reopen returns another file of a namespace.
func reopen(t *testing.T, n *netns) *os.File {
	t.Helper()
	fd, err := unix.Dup(int(n.file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), n.file.Name())
}

func TestListenInANamespace(t *testing.T) {
	n, _ := newNetns(t)
	other, _ := newNetns(t)
	l, err := n.listen(4321)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := n.dial(t.Context(), 4321)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if c, err := other.dial(t.Context(), 4321); err == nil {
		c.Close()
		t.Error("the listener can be reached from another namespace")
	}
	if c, err := net.Dial("tcp4", "127.0.0.1:4321"); err == nil {
		c.Close()
		t.Error("the listener can be reached from here")
	}
	if again := (&netns{reopen(t, n)}); !n.same(again) || n.same(other) {
		t.Errorf("is itself: %v, is another: %v", n.same(again), n.same(other))
	} else {
		again.close()
	}
}

// Nothing but a new process that is named like the container counts, and not in this
// process's own namespace.
func TestFindNoNamespace(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if n, err := findNetns(ctx, strings.Repeat("ab", 32), processes()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v", n, err)
	}
	group, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if n, err := findNetns(ctx, strings.TrimSpace(string(group)), nil); err == nil {
		n.close()
		t.Error("the own namespace counts for a container's")
	}
}
