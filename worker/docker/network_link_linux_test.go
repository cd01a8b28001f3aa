// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// waiting is a handler that answers when it is told to, or when its request ends.
type waiting struct {
	began  chan struct{}
	answer chan struct{}
	ended  chan error
	closed chan struct{}
}

func newWaiting() *waiting {
	return &waiting{make(chan struct{}, 1000), make(chan struct{}), make(chan error, 1000), make(chan struct{})}
}

func (h *waiting) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	h.began <- struct{}{}
	select {
	case <-h.answer:
		h.ended <- nil
	case <-r.Context().Done():
		h.ended <- context.Cause(r.Context())
	}
}

func (h *waiting) Close() error {
	close(h.closed)
	return nil
}

// openLink serves h within a namespace, on a port.
func openLink(t *testing.T, h handler, port int) (*netns, *link) {
	t.Helper()
	n, _ := newNetns(t)
	d, err := (&netns{reopen(t, n)}).open(port)
	if err != nil {
		t.Fatal(err)
	}
	return n, newLink(d, h)
}

const getRequest = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

func TestLinkBounds(t *testing.T) {
	h := newWaiting()
	n, k := openLink(t, h, 1234)
	var conns []net.Conn
	for range maxLinkConns + 1 {
		c, err := n.dial(t.Context(), 1234)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, getRequest)
		conns = append(conns, c)
	}
	for range maxLinkConns {
		<-h.began
	}
	select {
	case <-h.began:
		t.Error("more requests at once than may be")
	case <-time.After(50 * time.Millisecond):
	}
	conns[0].Close() // its turn is another's
	<-h.began
	// All end with the link, which waits for them.
	k.close()
	for range maxLinkConns + 1 {
		if err := <-h.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("a request ended with %v", err)
		}
	}
	<-h.closed
	if c, err := n.dial(t.Context(), 1234); err == nil {
		c.Close()
		t.Error("it listens after its end")
	}
	(*link)(nil).close()
}

func TestLinkHeader(t *testing.T) {
	h := newWaiting()
	close(h.answer)
	n, k := openLink(t, h, 1234)
	defer k.close()
	for size, want := range map[int]string{1 << 10: "200", 4 * maxLinkHeader: "431"} {
		c, err := n.dial(t.Context(), 1234)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\nX: %s\r\nConnection: close\r\n\r\n", strings.Repeat("x", size))
		if b, _ := io.ReadAll(c); !strings.HasPrefix(string(b), "HTTP/1.1 "+want) {
			t.Errorf("%d bytes: %.40q, want %s", size, b, want)
		}
		c.Close()
	}
	// net/http gives a client time to read why it was refused.
	eventually(t, "net/http is done", func() bool {
		all := make([]byte, 1<<20)
		return !strings.Contains(string(all[:runtime.Stack(all, true)]), "closeWriteAndWait")
	})
}

// A tunnel ends with its link, though net/http does not know of it any more.
func TestLinkEndsTunnels(t *testing.T) {
	far, err := net.Listen("tcp4", farAway+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	to, err := parseRule(far.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, k := openLink(t, newProxy(&egress{rules: []rule{to}}, zap.NewNop), 1234)
	c, err := n.dial(t.Context(), 1234)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n", to)
	server, err := far.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	_, _ = io.WriteString(server, "hello")
	b := make([]byte, len("HTTP/1.1 200 Connection established\r\n\r\nhello"))
	if _, err := io.ReadFull(c, b); err != nil || !strings.HasSuffix(string(b), "hello") {
		t.Fatalf("%q %v", b, err)
	}
	k.close()
	for _, end := range []net.Conn{c, server} {
		if n, err := end.Read(b); n != 0 || err == nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
}

func TestIdleConnection(t *testing.T) {
	far, err := net.Listen("tcp4", farAway+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	to, _ := parseTarget(far.Addr().String())
	c, err := new(egress).dial(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.idle.Reset(time.Millisecond)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("an idle connection ends with %v", err)
	}
}
