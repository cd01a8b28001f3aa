// SPDX-License-Identifier: Apache-2.0

// Package way is a way into the network of a container for who may not enter it: a
// program in there opens sockets, and hands them out over a Unix socket.
package way

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// maxMessage is the longest request, and the longest error that answers one.
	maxMessage = 256
	// callTime is how long an answer may take, beside that of a server to a dial.
	callTime = 10 * time.Second
	// dialTime is how long a server may take to accept a connection.
	dialTime = 10 * time.Second
)

// What can be asked for.
const (
	listen = "listen"
	dial   = "dial"
)

// Serve is what the program does: it opens what is asked for over the socket, on the
// loopback interface, until the other side closes it.
func Serve(socket string) error {
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if err != nil {
		return err
	}
	defer conn.Close()
	for b := make([]byte, maxMessage); ; {
		n, err := conn.Read(b)
		if err != nil || n == 0 {
			return nil
		}
		answer, rights := "", []byte(nil)
		f, err := open(string(b[:n]))
		if err != nil {
			answer = err.Error()
		} else {
			rights = syscall.UnixRights(int(f.Fd()))
		}
		_, _, err = conn.WriteMsgUnix([]byte("." + answer)[:min(len(answer)+1, maxMessage)], rights, nil)
		if f != nil {
			_ = f.Close()
		}
		if err != nil {
			return err
		}
	}
}

// open opens one socket.
func open(request string) (*os.File, error) {
	verb, text, _ := strings.Cut(request, " ")
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return nil, fmt.Errorf("%q is not a port", text)
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	switch verb {
	case listen:
		l, err := net.Listen("tcp4", address)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		return l.(*net.TCPListener).File()
	case dial:
		c, err := net.DialTimeout("tcp4", address, dialTime)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.(*net.TCPConn).File()
	}
	return nil, errors.New("unknown request")
}

// Door waits for the program.
type Door struct {
	listener *net.UnixListener
	dir      *os.File
}

// NewDoor makes a socket in a folder for the program to connect to, which may have any
// user. The path may be longer than that of a socket can be.
func NewDoor(dir, name string) (*Door, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	path := fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		_ = d.Close()
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o666); err != nil {
		_ = l.Close()
		_ = d.Close()
		return nil, err
	}
	return &Door{l, d}, nil
}

// Accept returns the way that the program opens. It comes once.
func (d *Door) Accept() (*Way, error) {
	conn, err := d.listener.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return &Way{conn: conn}, nil
}

// Close ends the waiting.
func (d *Door) Close() {
	_ = d.listener.Close()
	_ = d.dir.Close()
}

// Way leads into the network of a container.
type Way struct {
	conn *net.UnixConn
	mu   sync.Mutex
}

// Close has the program end.
func (w *Way) Close() { _ = w.conn.Close() }

// Listen listens on a port of the loopback interface in there.
func (w *Way) Listen(port int) (net.Listener, error) {
	f, err := w.ask(context.Background(), listen, port)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileListener(f)
}

// Dial connects to a port of the loopback interface in there.
func (w *Way) Dial(ctx context.Context, port int) (net.Conn, error) {
	f, err := w.ask(ctx, dial, port)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileConn(f)
}

// ask asks for a socket. An answer that does not come in time is the end of the way: it
// could be taken for that of another request.
func (w *Way) ask(ctx context.Context, verb string, port int) (*os.File, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	_ = w.conn.SetDeadline(time.Now().Add(callTime + dialTime))
	if _, err := fmt.Fprintf(w.conn, "%s %d", verb, port); err != nil {
		return nil, err
	}
	b, rights := make([]byte, maxMessage), make([]byte, syscall.CmsgSpace(4))
	n, got, _, _, err := w.conn.ReadMsgUnix(b, rights)
	if err == nil && n == 0 {
		err = errors.New("the program in the container has ended")
	}
	if err != nil {
		w.Close()
		return nil, err
	}
	f := fileOf(rights[:got])
	if f == nil {
		return nil, fmt.Errorf("in the container: %s", b[1:n])
	}
	return f, nil
}

// fileOf returns what a message has brought, or nil. More than one is none, and is closed:
// there is room for two, and the program in the container is not trusted.
func fileOf(rights []byte) *os.File {
	messages, err := syscall.ParseSocketControlMessage(rights)
	if err != nil {
		return nil
	}
	var fds []int
	for i := range messages {
		if some, err := syscall.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, some...)
		}
	}
	if len(fds) == 1 {
		return os.NewFile(uintptr(fds[0]), "socket")
	}
	for _, fd := range fds {
		_ = syscall.Close(fd)
	}
	return nil
}
