// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2phttp "github.com/libp2p/go-libp2p/p2p/http"
)

// BenchmarkDispatch compares a request to a worker, of 100 bytes and answered with
// 1.4 KB, with other ways to ask. Both ends are in the process, and cpu-us/op is the
// time that all of it computes.
func BenchmarkDispatch(b *testing.B) {
	const size = 1400
	question, reply := strings.Repeat("q", 100), bytes.Repeat([]byte("a"), size)
	serve := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write(reply)
	}
	dispatch := func(b *testing.B, after func(*App)) {
		a := newTestApp(b, nil)
		w := newHTTPWorker(b, a, serve)
		l := w.announceSlots(b, a, 64)
		measure(b, func() error {
			run, err := l.Dispatch(context.Background(), request("m", question))
			if err != nil {
				return err
			}
			n, err := io.Copy(io.Discard, run)
			_ = run.Close()
			after(a)
			return whole(n, size, err)
		})
	}
	b.Run("pooled", func(b *testing.B) { dispatch(b, func(*App) {}) })
	b.Run("new_stream", func(b *testing.B) {
		dispatch(b, func(a *App) { a.node.Load().streams.end(func(*httpStream) bool { return true }) })
	})
	b.Run("p2p_http", func(b *testing.B) { benchmarkLibp2pHTTP(b, serve, question, size) })
	b.Run("raw_tcp", func(b *testing.B) { benchmarkTCP(b, question, reply) })
}

// measure runs a benchmark and reports the time computed.
func measure(b *testing.B, f func() error) {
	b.Helper()
	before := computed(b)
	for b.Loop() {
		if err := f(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(computed(b)-before)/1e3/float64(b.N), "cpu-us/op")
}

// computed is the time that the process has computed.
func computed(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// whole is the error for an answer that is not of its size.
func whole(n int64, size int, err error) error {
	if err == nil && n != int64(size) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func benchmarkLibp2pHTTP(b *testing.B, serve http.HandlerFunc, question string, size int) {
	server, err := libp2p.New(libp2p.ListenAddrs(loopbackAddr))
	if err != nil {
		b.Fatal(err)
	}
	defer server.Close()
	h := &libp2phttp.Host{StreamHost: server}
	h.SetHTTPHandler("/bench", serve)
	go func() { _ = h.Serve() }()
	defer h.Close()
	client, err := libp2p.New(libp2p.NoListenAddrs)
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	to := peer.AddrInfo{ID: server.ID(), Addrs: server.Addrs()}
	if err := client.Connect(context.Background(), to); err != nil {
		b.Fatal(err)
	}
	c, err := (&libp2phttp.Host{StreamHost: client}).NamespacedClient("/bench", to)
	if err != nil {
		b.Fatal(err)
	}
	measure(b, func() error {
		resp, err := c.Post("/", "text/plain", strings.NewReader(question))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		n, err := io.Copy(io.Discard, resp.Body)
		return whole(n, size, err)
	})
}

func benchmarkTCP(b *testing.B, question string, reply []byte) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		for buf := make([]byte, len(question)); err == nil; {
			if _, err = io.ReadFull(c, buf); err == nil {
				_, err = c.Write(reply)
			}
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, len(reply))
	measure(b, func() error {
		if _, err := io.WriteString(c, question); err != nil {
			return err
		}
		_, err := io.ReadFull(c, buf)
		return err
	})
}
