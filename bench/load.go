// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// client is one connection to a side.
type client struct {
	conn net.Conn
	r    *bufio.Reader
	side *side
	buf  []byte
}

func dial(ctx context.Context, s *side) (*client, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
	if err != nil {
		return nil, err
	}
	return &client{conn: conn, r: bufio.NewReaderSize(conn, 16<<10), side: s, buf: make([]byte, 16<<10)}, nil
}

// dialAll opens n connections; release closes them.
func dialAll(ctx context.Context, s *side, n int) (clients []*client, release func(), err error) {
	release = func() {
		for _, c := range clients {
			_ = c.conn.Close()
		}
	}
	for range n {
		c, err := dial(ctx, s)
		if err != nil {
			release()
			return nil, nil, err
		}
		clients = append(clients, c)
	}
	return clients, release, nil
}

// request returns a request as it goes out.
func (c *client) request(body []byte) []byte {
	return append(fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n%s"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n", c.side.port, key, c.side.header, len(body)), body...)
}

// answerTimeout bounds a whole answer.
const answerTimeout = 60 * time.Second

// do sends a request and wants an answer with the body want. read, when it is set, is
// told of each piece of it.
func (c *client) do(req, want []byte, read func(n int)) error {
	_ = c.conn.SetDeadline(time.Now().Add(answerTimeout))
	if _, err := c.conn.Write(req); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
		return fmt.Errorf("status %d: %s", resp.StatusCode, b)
	}
	if c.side.slow {
		return checkText(resp)
	}
	for {
		n, err := resp.Body.Read(c.buf)
		if !bytes.HasPrefix(want, c.buf[:n]) {
			return errors.New("the answer is not what the mock sent")
		}
		want = want[n:]
		if read != nil && n > 0 {
			read(n)
		}
		switch {
		case err == io.EOF && len(want) == 0 && !resp.Close:
			return nil
		case err == io.EOF:
			return errors.New("the answer is not whole, or the connection is not kept")
		case err != nil:
			return err
		}
	}
}

// checkText wants the answer of a side that writes it anew to have the mock's text.
func checkText(resp *http.Response) error {
	b, err := io.ReadAll(resp.Body)
	if err == nil && !bytes.Contains(b, []byte(chatText)) {
		err = fmt.Errorf("the answer has not the mock's text: %.300s", b)
	}
	return err
}

// closedLoop has n connections ask again as soon as they are answered. It returns how
// many requests were answered in what time.
func closedLoop(ctx context.Context, s *side, n int, d time.Duration) (int64, time.Duration, error) {
	clients, release, err := dialAll(ctx, s, n)
	if err != nil {
		return 0, 0, err
	}
	defer release()
	var done atomic.Int64
	begun := time.Now()
	err = each(clients, func(_ int, c *client) error {
		req := c.request(chatRequest)
		for time.Since(begun) < d && ctx.Err() == nil {
			if err := c.do(req, chatAnswer, nil); err != nil {
				return err
			}
			done.Add(1)
		}
		return ctx.Err()
	})
	return done.Load(), time.Since(begun), err
}

// each calls f with every client at once, and returns one of the errors.
func each(clients []*client, f func(i int, c *client) error) error {
	errs := make([]error, len(clients))
	var group sync.WaitGroup
	for i, c := range clients {
		group.Go(func() { errs[i] = f(i, c) })
	}
	group.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// openConns is how many requests of an open loop may be under way.
const openConns = 64

// openLoop asks at a constant rate, whatever the answers take, and returns what each
// took from the time at which it was to be sent.
func openLoop(ctx context.Context, s *side, rate float64, d time.Duration) ([]time.Duration, error) {
	clients, release, err := dialAll(ctx, s, openConns)
	if err != nil {
		return nil, err
	}
	defer release()
	due := make(chan time.Time, 1<<20)
	go func() {
		defer close(due)
		begun := time.Now()
		for i := range int(rate * d.Seconds()) {
			at := begun.Add(time.Duration(float64(i) / rate * 1e9))
			// The runtime's timers are coarse, to a millisecond.
			if wait := time.Until(at); wait > 0 {
				ts := syscall.NsecToTimespec(int64(wait))
				_ = syscall.Nanosleep(&ts, nil)
			}
			due <- at
		}
	}()
	var mu sync.Mutex
	var all []time.Duration
	err = each(clients, func(_ int, c *client) error {
		req := c.request(chatRequest)
		var own []time.Duration
		for at := range due {
			if err := c.do(req, chatAnswer, nil); err != nil {
				return err
			}
			own = append(own, time.Since(at))
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, own...)
		return ctx.Err()
	})
	return all, err
}

// stream asks for n streamed answers at once. It returns the time to the first piece
// of each, and the times between pieces.
func stream(ctx context.Context, s *side, n int, pace time.Duration) (first, gaps []time.Duration, err error) {
	clients, release, err := dialAll(ctx, s, n)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	want := bytes.Join(events, nil)
	var mu sync.Mutex
	err = each(clients, func(i int, c *client) error {
		time.Sleep(pace * time.Duration(i) / time.Duration(n)) // not in step
		var own []time.Duration
		begun := time.Now()
		last := begun
		err := c.do(c.request(streamRequest(pace)), want, func(int) {
			now := time.Now()
			own = append(own, now.Sub(last))
			last = now
		})
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		first, gaps = append(first, own[0]), append(gaps, own[1:]...)
		return ctx.Err()
	})
	return first, gaps, err
}
