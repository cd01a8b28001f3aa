// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// shortTimeouts are Caddy's own limits on slow clients, shorter than anyone would
// have them.
const shortTimeouts = "\tservers {\n\t\ttimeouts {\n\t\t\tread_header 3s\n\t\t\tread_body 3s\n\t\t\twrite 3s\n\t\t\tidle 3s\n\t\t}\n\t}\n"

// slowClient is a way to hold a connection: what it sends first, and then again
// and again.
type slowClient struct {
	name, first, again string
	tls                bool // the bytes are those of a handshake
}

// slowClients are the ways to hold a connection by sending.
func slowClients() []slowClient {
	head := "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
	key := "Authorization: Bearer " + testKey + "\r\n"
	return []slowClient{
		{"silent", "", "", false},
		{"silent at TLS", "", "", true},
		{"half a handshake", "\x16\x03\x01\x02\x00\x01", "", true},
		{"a byte of the request line", "G", "", false},
		{"headers", head, "X-Slow: x\r\n", false},
		{"one long header", head + "X-Slow: ", "x", false},
		{"no body", head + key + "Content-Length: 1000000\r\n\r\n", "", false},
		{"body", head + key + "Content-Length: 1000000\r\n\r\n{", " ", false},
		{"chunks", head + key + "Transfer-Encoding: chunked\r\n\r\n", "1\r\n \r\n", false},
		{"body without a key", head + "Content-Length: 1000000\r\n\r\n{", " ", false},
		{"body of nobody", "POST /elsewhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n", " ", false},
		{"body of a GET", "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n" + key + "Content-Length: 1000000\r\n\r\n", " ", false},
	}
}

// hold holds a connection, and returns how long that went.
func (c slowClient) hold(f *front, pause time.Duration) (time.Duration, error) {
	address := f.address()
	if c.tls {
		address = f.host
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	began := time.Now()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_, _ = io.Copy(io.Discard, conn) // until it ends, well or not
	}()
	_, err = io.WriteString(conn, c.first)
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for giveUp := time.After(patience); ; {
		select {
		case <-closed:
			return time.Since(began), nil
		case <-giveUp:
			return 0, fmt.Errorf("%s: open after %v", c.name, patience)
		case <-tick.C:
			if err == nil && c.again != "" {
				_, err = io.WriteString(conn, c.again) // fails when the connection is closed
			}
		}
	}
}

// A1: clients that send slowly, or do not read, lose their connections, and those
// that are honest notice nothing.
func TestA1SlowClients(t *testing.T) {
	t.Parallel()
	flood := writeScript(t, "exec yes\n")
	f := startFront(t, scaled(shortTimeouts, ""), withKey,
		manySlots(t, agent("work", "Work", "work", command(writeScript(t, "printf done\n")))),
		agent("late", "Late", "late", command(writeScript(t, "sleep 4\nprintf late\n"))),
		manySlots(t, agent("flood", "Flood", "flood", command(flood))))
	f.awaitWorkers(3)
	ctx, end := context.WithCancel(t.Context())
	honest := f.honestLoad(ctx, t)

	kinds := slowClients()
	total := scaled(100, 2_000)
	var mu sync.Mutex
	held := make(map[string]time.Duration)
	var attack sync.WaitGroup
	for i := range total {
		c := kinds[i%len(kinds)]
		attack.Go(func() {
			took, err := c.hold(f, scaled(200*time.Millisecond, 5*time.Second))
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			held[c.name] = max(held[c.name], took)
			mu.Unlock()
		})
	}
	for version := 1; version <= 2; version++ { // an agent that is silent for longer than Caddy's own limits
		client := newClient(t, version)
		attack.Go(func() {
			a, err := ask(t.Context(), client, "POST", "https://"+f.host+"/v1/completions", strings.NewReader(`{"model":"late","prompt":"x"}`), bearer(testKey)...)
			if err != nil || a.status != 200 || !strings.Contains(a.body, `"text":"late"`) {
				t.Errorf("HTTP %d, a late answer: %d %.300q %v", version, a.status, a.body, err)
			}
		})
	}
	for _, version := range scaled([]int{2}, []int{2, 3}) { // over HTTP/3 Caddy's limits, shorter in CI, do not count
		client, _ := newAnyClient(t, version)
		attack.Go(func() {
			began := time.Now()
			a, err := ask(t.Context(), client, "POST", "https://"+f.host+"/v1/completions", &drip{end: t.Context().Done()}, bearer(testKey)...)
			if err != nil {
				t.Errorf("HTTP %d: %v", version, err)
				return
			}
			a.failed(t, 400, invalidBody)
			mu.Lock()
			held[fmt.Sprintf("body over HTTP/%d", version)] = time.Since(began)
			mu.Unlock()
		})
	}
	f.slowReaders(t, scaled(4, 50))
	attack.Wait()
	end()
	served := <-honest
	if served == 0 {
		t.Error("no honest request was served")
	}
	t.Logf("%d connections were held at most for %v; %d honest requests were served", total, held, served)
	for name, took := range held {
		if nightly && took > 70*time.Second {
			t.Errorf("%s: held for %v", name, took)
		}
	}
}

// drip is a body of a space now and then, without an end.
type drip struct{ end <-chan struct{} }

func (d *drip) Read(p []byte) (int, error) {
	select {
	case <-d.end:
		return 0, io.EOF
	case <-time.After(200 * time.Millisecond):
		p[0] = ' '
		return 1, nil
	}
}

// honestLoad sends requests, all of which must be served, until ctx ends. It
// then says how many there were.
func (f *front) honestLoad(ctx context.Context, t *testing.T) <-chan int {
	served := make(chan int, 1)
	var mu sync.Mutex
	n := 0
	var clients sync.WaitGroup
	for i := range 4 {
		c := newClient(t, 1+i%2)
		clients.Go(func() {
			for ctx.Err() == nil {
				a, err := ask(ctx, c, "POST", "https://"+f.host+"/v1/completions", strings.NewReader(`{"model":"work","prompt":"x"}`), bearer(testKey)...)
				if ctx.Err() != nil {
					return
				}
				if err != nil || a.status != 200 || !strings.Contains(a.body, `"text":"done"`) {
					t.Errorf("an honest request: %d %.300q %v", a.status, a.body, err)
					return
				}
				mu.Lock()
				n++
				mu.Unlock()
			}
		})
	}
	go func() {
		clients.Wait()
		served <- n
	}()
	return served
}

// slowReaders ask for an answer without an end and do not read it, over HTTP/1.1
// and HTTP/2. Their agents must stop.
func (f *front) slowReaders(t *testing.T, n int) {
	t.Helper()
	busy := func() (tasks int) {
		list := f.workers()
		for _, w := range list.Agents {
			if w.Name == "Flood" {
				tasks = w.CurrentTasks
			}
		}
		return tasks
	}
	const body = `{"model":"flood","prompt":"x","stream":true}`
	for range n {
		conn, err := net.Dial("tcp", f.address())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		err = errors.Join(conn.(*net.TCPConn).SetReadBuffer(4<<10), conn.SetDeadline(time.Now().Add(patience)))
		if _, err2 := fmt.Fprintf(conn, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s",
			testKey, len(body), body); err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil { // the agent runs
			t.Fatal(err)
		}
		resp, err := f.over2(t, body)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Close()
	}
	began := time.Now()
	f.await("the end of the tasks that nobody reads", func() bool { return busy() == 0 && f.idle(t) })
	t.Logf("%d answers that nobody read were ended within %v", 2*n, time.Since(began).Round(time.Millisecond))
}

// over2 begins a request over HTTP/2 whose answer is not read.
func (f *front) over2(t *testing.T, body string) (io.Closer, error) {
	t.Helper()
	req := newRequest(t, "POST", "https://"+f.host+"/v1/completions", body, bearer(testKey)...)
	resp, err := newClient(t, 2).Do(req)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// idle reports whether no agent of the process runs that floods.
func (f *front) idle(t *testing.T) bool {
	t.Helper()
	return !slices.ContainsFunc(children(t, f.cmd.Process.Pid), func(name string) bool { return name == "yes" })
}
