// SPDX-License-Identifier: Apache-2.0

package way

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// openWay has the program run here, and returns the way through it, and where its end comes.
func openWay(t *testing.T) (*Way, <-chan error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40)) // longer than the path of a socket may be
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	d, err := NewDoor(dir, "s")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	short := filepath.Join(t.TempDir(), "d")
	if err := os.Symlink(dir, short); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- Serve(filepath.Join(short, "s")) }()
	w, err := d.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return w, ended
}

func TestWay(t *testing.T) {
	w, ended := openWay(t)
	free, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.Addr().(*net.TCPAddr).Port
	if _, err := w.Listen(port); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a port that is taken: %v", err)
	}
	free.Close()
	l, err := w.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.Dial(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "hello")
	_ = c.(*net.TCPConn).CloseWrite()
	if b, err := io.ReadAll(s); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	for _, open := range []io.Closer{c, s, l} {
		open.Close()
	}
	if _, err := w.Dial(t.Context(), port); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody listens: %v", err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Dial(over, port); err == nil {
		t.Error("it dials when its time is over")
	}
	w.Close()
	if err := <-ended; err != nil {
		t.Errorf("the program ended with %v", err)
	}
	if _, err := w.Listen(port); err == nil {
		t.Error("it listens after its end")
	}
}

func TestServeWithoutDoor(t *testing.T) {
	if err := Serve(filepath.Join(t.TempDir(), "s")); err == nil {
		t.Error("there is nobody to serve")
	}
}

func TestOpen(t *testing.T) {
	for _, request := range []string{"", "listen", "listen x", "dial 99999999", "bind 1", "listen 1 2"} {
		if f, err := open(request); err == nil {
			f.Close()
			t.Errorf("%q opens something", request)
		}
	}
}

// TestFileOf closes what is more than one.
func TestFileOf(t *testing.T) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r := os.NewFile(uintptr(fds[0]), "pipe")
	defer r.Close()
	second, err := syscall.Dup(fds[1])
	if err != nil {
		t.Fatal(err)
	}
	if f := fileOf(syscall.UnixRights(fds[1], second)); f != nil {
		t.Errorf("%s of two", f.Name())
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("one is open: %d, %v", n, err)
	}
}
