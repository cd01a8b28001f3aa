// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// gatedConn is a connection each of whose writes waits for a token.
type gatedConn struct {
	net.Conn
	tokens chan error // with what the write returns

	mu     sync.Mutex
	writes [][]byte
	closed bool
	limit  time.Time
}

func newGatedConn() *gatedConn { return &gatedConn{tokens: make(chan error)} }

func (c *gatedConn) Write(p []byte) (int, error) {
	if err := <-c.tokens; err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes = append(c.writes, bytes.Clone(p))
	return len(p), nil
}

func (c *gatedConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

func (c *gatedConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = t
	return nil
}

func (c *gatedConn) written() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.writes
}

// TestBatchMerges wants what comes during a write to go out together, in order.
func TestBatchMerges(t *testing.T) {
	gated := newGatedConn()
	c := newBatchConn(gated)
	first := make(chan error, 1)
	go func() { // a lone write returns when it is made
		_, err := c.Write([]byte("a"))
		first <- err
	}()
	await.Until(t, "the first write", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.writing
	})
	for _, p := range []string{"b", "c", "d"} {
		if n, err := c.Write([]byte(p)); n != 1 || err != nil {
			t.Fatalf("Write: %d, %v", n, err)
		}
	}
	gated.tokens <- nil
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	gated.tokens <- nil
	await.Until(t, "two writes", func() bool { return len(gated.written()) == 2 })
	if got := string(bytes.Join(gated.written(), []byte("|"))); got != "a|bcd" {
		t.Errorf("written: %s", got)
	}
}

// TestBatchBound wants who writes more than can be sent to wait.
func TestBatchBound(t *testing.T) {
	gated := newGatedConn()
	c := newBatchConn(gated)
	c.last = time.Now().Add(time.Hour) // a burst
	if _, err := c.Write(make([]byte, maxBatch)); err != nil {
		t.Fatal(err)
	}
	await.Until(t, "the batch on its way", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.waiting == nil
	})
	if _, err := c.Write(make([]byte, maxBatch)); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := c.Write([]byte("x"))
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("a third batch did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	gated.tokens <- nil
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	gated.tokens <- nil
	gated.tokens <- nil
}

// TestBatchError wants an error to close the connection, and to be that of later writes.
func TestBatchError(t *testing.T) {
	gated := newGatedConn()
	c := newBatchConn(gated)
	c.last = time.Now().Add(time.Hour)
	if _, err := c.Write([]byte("a")); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	gated.tokens <- broken
	await.Until(t, "the end", func() bool {
		gated.mu.Lock()
		defer gated.mu.Unlock()
		return gated.closed
	})
	if _, err := c.Write([]byte("b")); !errors.Is(err, broken) {
		t.Errorf("Write: %v", err)
	}
}

// TestBatchClose wants what was written before Close to be sent, in limited time.
func TestBatchClose(t *testing.T) {
	gated := newGatedConn()
	c := newBatchConn(gated)
	c.last = time.Now().Add(time.Hour)
	if _, err := c.Write([]byte("a")); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- c.Close() }()
	await.Until(t, "a limit", func() bool {
		gated.mu.Lock()
		defer gated.mu.Unlock()
		return !gated.limit.IsZero()
	})
	if _, err := c.Write([]byte("b")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
	gated.mu.Lock()
	limit := gated.limit
	gated.mu.Unlock()
	if err := c.SetWriteDeadline(limit.Add(time.Hour)); !errors.Is(err, net.ErrClosed) || !gated.limit.Equal(limit) {
		t.Errorf("a deadline after Close: %v, now %v", err, gated.limit)
	}
	gated.tokens <- nil
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	if got := gated.written(); len(got) != 1 || string(got[0]) != "a" || !gated.closed {
		t.Errorf("written: %q, closed: %v", got, gated.closed)
	}
}
