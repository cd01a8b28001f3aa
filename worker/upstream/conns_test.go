// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// scripted is a server that does on each connection what the next of the scripts says.
func scripted(t *testing.T, scripts ...func(c net.Conn, r *bufio.Reader)) *conns {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, script := range scripts {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			script(c, bufio.NewReader(c))
			_ = c.Close()
		}
	}()
	cs := &conns{dial: new(net.Dialer).DialContext, addr: l.Addr().String()}
	t.Cleanup(func() {
		cs.closeIdle()
		_ = l.Close()
		<-done
	})
	return cs
}

// asked reads a request; nil when there is none.
func asked(r *bufio.Reader) *http.Request {
	req, err := http.ReadRequest(r)
	if err != nil {
		return nil
	}
	_, _ = io.Copy(io.Discard, req.Body)
	return req
}

// send returns a script that reads a request and answers each with the next of the texts.
func send(texts ...string) func(net.Conn, *bufio.Reader) {
	return func(c net.Conn, r *bufio.Reader) {
		for _, text := range texts {
			if asked(r) == nil {
				return
			}
			_, _ = io.WriteString(c, text)
		}
	}
}

// last waits until the other side closes.
func last(script func(net.Conn, *bufio.Reader)) func(net.Conn, *bufio.Reader) {
	return func(c net.Conn, r *bufio.Reader) {
		script(c, r)
		_, _ = io.Copy(io.Discard, r)
	}
}

// question returns a request with a body.
func question(ctx context.Context) *http.Request {
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://server/v1/x", http.NoBody)
	setBody(req, []byte(`{"model":"m"}`))
	return req
}

// answered sends a question, and returns the body of the answer.
func answered(t *testing.T, cs *conns) string {
	t.Helper()
	resp, err := cs.roundTrip(question(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const (
	one   = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none"
	two   = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
	early = "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"
)

// TestConns wants answers of every form whole, and a connection used again whenever that
// is possible, and only then.
func TestConns(t *testing.T) {
	if !canBeQuiet {
		t.Skip("no connection is used again here")
	}
	for name, c := range map[string]struct {
		scripts []func(net.Conn, *bufio.Reader)
		want    []string
	}{
		"used again":         {[]func(net.Conn, *bufio.Reader){last(send(one, early+two, one))}, []string{"one", "two", "one"}},
		"the server says so": {[]func(net.Conn, *bufio.Reader){send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall"), send(one)}, []string{"all", "one"}},
		"HTTP/1.0":           {[]func(net.Conn, *bufio.Reader){send("HTTP/1.0 200 OK\r\n\r\nold"), send(one)}, []string{"old", "one"}},
		"no body":            {[]func(net.Conn, *bufio.Reader){last(send("HTTP/1.1 204 No Content\r\n\r\n", one))}, []string{"", "one"}},
		"more than asked for": {[]func(net.Conn, *bufio.Reader){
			last(send(one + "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")), send(two)}, []string{"one", "two"}},
		"closed when the next comes": {[]func(net.Conn, *bufio.Reader){
			func(c net.Conn, r *bufio.Reader) { send(one)(c, r); asked(r) }, send(two)}, []string{"one", "two"}},
	} {
		t.Run(name, func(t *testing.T) {
			cs := scripted(t, c.scripts...)
			for _, want := range c.want {
				if got := answered(t, cs); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			}
		})
	}
}

// TestConnsUnasked wants what a server sends on an idle connection to be nobody's answer.
func TestConnsUnasked(t *testing.T) {
	if !canBeQuiet {
		t.Skip("no connection is used again here")
	}
	sent := make(chan struct{})
	cs := scripted(t, last(func(c net.Conn, r *bufio.Reader) {
		send(one)(c, r)
		<-sent
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
		sent <- struct{}{}
	}), send(two))
	if got := answered(t, cs); got != "one" {
		t.Fatalf("got %q", got)
	}
	sent <- struct{}{}
	<-sent
	c := cs.pop()
	for deadline := time.Now().Add(10 * time.Second); c.quiet() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond) // until it has come
	}
	cs.put(c)
	if got := answered(t, cs); got != "two" {
		t.Errorf("got %q", got)
	}
}

// TestConnsFail wants errors where there is no whole answer, without a second try on a new
// connection, and none after the end of the context.
func TestConnsFail(t *testing.T) {
	for name, script := range map[string]func(net.Conn, *bufio.Reader){
		"closed":    send(""),
		"half":      send("HTTP/1.1 200 OK\r\nContent-"),
		"too large": last(send("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*maxHeader) + "\r\n\r\n")),
		"no status": last(send("HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n" + one)),
		"no end":    last(send(strings.Repeat(early, maxHeader/len(early)+1))),
	} {
		t.Run(name, func(t *testing.T) {
			if resp, err := scripted(t, script).roundTrip(question(t.Context())); err == nil {
				t.Errorf("got %d", resp.StatusCode)
			}
		})
	}
	t.Run("body", func(t *testing.T) {
		cs := scripted(t, send("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"))
		resp, err := cs.roundTrip(question(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err == nil || string(b) != "half" {
			t.Errorf("got %q, %v", b, err)
		}
		if _ = resp.Body.Close(); cs.pop() != nil {
			t.Error("the connection was kept")
		}
	})
}

// TestConnsCancel wants the server to see that the client has gone, wherever the answer is.
func TestConnsCancel(t *testing.T) {
	for name, text := range map[string]string{"head": "", "body": "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"} {
		t.Run(name, func(t *testing.T) {
			came := make(chan struct{})
			cs := scripted(t, func(c net.Conn, r *bufio.Reader) {
				send(text)(c, r)
				close(came)
				if _, err := r.ReadByte(); errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("the server was not told")
				}
			})
			ctx, cancel := context.WithCancelCause(t.Context())
			gone := errors.New("gone")
			go func() { <-came; cancel(gone) }()
			resp, err := cs.roundTrip(question(ctx))
			if text == "" {
				if !errors.Is(err, gone) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				if !errors.Is(err, gone) { // it may come before the head was read
					t.Error(err)
				}
				return
			}
			if _, err := io.ReadAll(resp.Body); err == nil {
				t.Error("no error")
			}
			if _ = resp.Body.Close(); cs.pop() != nil {
				t.Error("the connection was kept")
			}
		})
	}
}

// TestConnsIdle wants connections that nobody uses closed.
func TestConnsIdle(t *testing.T) {
	cs := scripted(t, last(send(one)))
	_ = answered(t, cs)
	if cs.closeUnused(); len(cs.idle) != 1 || cs.sweep == nil {
		t.Fatal("one that was used a moment ago was closed")
	}
	c := cs.pop()
	if cs.closeIdle(); cs.sweep != nil {
		t.Error("there is a timer for nobody")
	}
	if cs.put(c); len(cs.idle) != 0 {
		t.Error("one that came back after the end was kept")
	}
}

// TestConnsClosed wants idle connections closed that the server has closed.
func TestConnsClosed(t *testing.T) {
	if !canBeQuiet {
		t.Skip("it is not seen here")
	}
	cs := scripted(t, send(one))
	_ = answered(t, cs)
	await.Until(t, "the connection is closed", func() bool {
		cs.closeUnused()
		cs.mu.Lock()
		defer cs.mu.Unlock()
		return len(cs.idle) == 0 && cs.sweep == nil
	})
}

// TestConnsEarlyAnswer wants the answer of a server that reads no body, and closes.
func TestConnsEarlyAnswer(t *testing.T) {
	const tries = 100
	scripts := make([]func(net.Conn, *bufio.Reader), tries)
	for i := range scripts {
		scripts[i] = func(c net.Conn, r *bufio.Reader) {
			if _, err := http.ReadRequest(r); err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\ntoo")
			}
		}
	}
	cs := scripted(t, scripts...)
	lost := 0
	for range tries {
		req := question(t.Context())
		setBody(req, make([]byte, inlineBody))
		resp, err := cs.roundTrip(req)
		if err != nil {
			lost++
			continue
		}
		if b, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusRequestEntityTooLarge || err == nil && string(b) != "too" {
			t.Errorf("got %d %q, %v", resp.StatusCode, b, err)
		}
		_ = resp.Body.Close()
	}
	t.Logf("%d of %d answers were lost", lost, tries)
	if lost > tries/20 { // what a system has not read yet when the other side is gone, it may drop
		t.Errorf("%d of %d answers were lost", lost, tries)
	}
}

// TestConnsResend wants a request sent again once, and not on each idle connection: whoever
// gets it may do it before it fails.
func TestConnsResend(t *testing.T) {
	if !canBeQuiet {
		t.Skip("no connection is used again here")
	}
	var accepted, got atomic.Int64
	ready, dies := make(chan struct{}), func(c net.Conn, r *bufio.Reader) {
		send(one)(c, r)
		if asked(r) != nil {
			got.Add(1)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			serving.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				<-ready
				dies(c, bufio.NewReader(c))
			})
		}
	})
	cs := &conns{dial: new(net.Dialer).DialContext, addr: l.Addr().String()}
	defer serving.Wait()
	defer l.Close()
	defer cs.closeIdle()
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() { _ = answered(t, cs) })
	}
	await.Until(t, "eight connections", func() bool { return accepted.Load() == 8 })
	close(ready)
	asking.Wait()
	if text := answered(t, cs); text != "one" {
		t.Errorf("got %q", text)
	}
	if n := got.Load(); n != 1 {
		t.Errorf("%d connections failed with the request", n)
	}
}
