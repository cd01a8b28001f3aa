// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// TestStaleQUIC is TestStaleStreams over QUIC, where a read whose time is over does
// not see the end of a stream: it is seen when the request is written.
func TestStaleQUIC(t *testing.T) {
	a := newTestAppOn(t, loopbackQUIC, nil)
	w := newHTTPWorker(t, a, echoBody)
	host := a.node.Load().host
	for i := range int64(5) {
		if out, _, err := ask(t, a, request("m", "x")); out != "x" || err != nil {
			t.Fatalf("got %q, %v", out, err)
		}
		await.Until(t, "the stream is closed", func() bool {
			w.server.SetKeepAlivesEnabled(false) // closes what is idle
			return w.closed.Load() > i
		})
		w.server.SetKeepAlivesEnabled(true)
		s, err := host.NewStream(t.Context(), w.ID(), "/late") // what comes after the end of the other
		if err == nil {
			_, err = s.Read(make([]byte, 1))
		}
		if err == nil {
			t.Fatal("a protocol of nobody")
		}
	}
}

// TestRests has a worker say more than it should, which the next request must not
// take for its answer.
func TestRests(t *testing.T) {
	long := strings.Repeat("x", 3*maxRefusal)
	for name, first := range map[string]func(http.ResponseWriter){
		"refusal": func(w http.ResponseWriter) {
			w.Header().Set(wire.HeaderRefusal, string(wire.RefusalRoute))
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, long)
		},
		"after exit": func(w http.ResponseWriter) {
			e := wire.NewEventWriter(w)
			_, _ = io.WriteString(e, "x")
			_ = e.Exit(wire.Exit{Status: wire.ExitOK})
			_, _ = io.WriteString(e, long)
			_ = e.Exit(wire.Exit{Status: wire.ExitFailed})
		},
		"two artifacts": func(w http.ResponseWriter) {
			e := wire.NewEventWriter(w)
			for range 2 {
				_ = e.Artifact(wire.Artifact{Size: 5, SHA256: strings.Repeat("0", 64)})
			}
			_ = e.Exit(wire.Exit{Status: wire.ExitOK})
		},
		"output after a failure": func(w http.ResponseWriter) {
			e := wire.NewEventWriter(w)
			_ = e.Exit(wire.Exit{Status: wire.ExitFailed})
			_, _ = io.WriteString(e, long)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newTestApp(t, nil)
			var n atomic.Int64
			newHTTPWorker(t, a, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				if n.Add(1)%2 == 1 {
					first(w)
					return
				}
				e := wire.NewEventWriter(w)
				_, _ = io.WriteString(e, "honest")
				_ = e.Exit(wire.Exit{Status: wire.ExitOK})
			})
			for i := range 6 {
				c := call("m")
				c.Retries, c.TaskID = 0, fmt.Sprintf("%s-%d", strings.ReplaceAll(name, " ", "-"), i)
				out, _, err := ask(t, a, c)
				if i%2 == 1 && (out != "honest" || err != nil) {
					t.Errorf("request %d: got %.50q, %v", i, out, err)
				}
				if i%2 == 0 && name == "after exit" && (out != "x" || err != nil) {
					t.Errorf("request %d: got %.50q, %v", i, out, err)
				}
			}
		})
	}
}

// TestEndlessRest has a worker hold its answer open after it has said all.
func TestEndlessRest(t *testing.T) {
	a := newTestApp(t, nil)
	newHTTPWorker(t, a, func(w http.ResponseWriter, r *http.Request) {
		e := wire.NewEventWriter(w)
		_, _ = io.WriteString(e, "all")
		_ = e.Exit(wire.Exit{Status: wire.ExitOK})
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	begun := time.Now()
	if out, _, err := ask(t, a, call("m")); out != "all" || err != nil || time.Since(begun) > 2*restTimeout {
		t.Errorf("got %q, %v after %v", out, err, time.Since(begun))
	}
}

// stuckStream is a stream that cannot be closed: its connection takes nothing.
type stuckStream struct {
	network.Stream
	id   peer.ID
	stop <-chan struct{}
}

func (s *stuckStream) Conn() network.Conn          { return &stuckConn{id: s.id} }
func (s *stuckStream) Close() error                { <-s.stop; return nil }
func (s *stuckStream) SetDeadline(time.Time) error { return nil }

type stuckConn struct {
	network.Conn
	id peer.ID
}

func (c *stuckConn) RemotePeer() peer.ID { return c.id }

// TestStuckClose wants a worker whose streams cannot be closed to keep nobody from
// the streams of others.
func TestStuckClose(t *testing.T) {
	stop := make(chan struct{})
	pool := newStreamPool(nil)
	put := func(id peer.ID) {
		pool.put(&httpStream{Stream: &stuckStream{id: id, stop: stop}})
	}
	for range maxIdlePeerStreams {
		put("stuck")
	}
	go put("stuck") // one too many
	put("other")
	await.Until(t, "the streams are looked through", func() bool {
		pool.end(func(s *httpStream) bool { return s.Conn().RemotePeer() == "stuck" })
		return pool.pop("stuck") == nil
	})
	if pool.pop("other") == nil {
		t.Error("the stream to another worker is gone")
	}
	close(stop)
	pool.close()
}

// TestLateWrite wants a worker that reads no large body not to be waited for as if
// it might answer.
func TestLateWrite(t *testing.T) {
	a := newTestApp(t, nil)
	hold := newGate()
	newHTTPWorker(t, a, func(http.ResponseWriter, *http.Request) { hold.wait() })
	t.Cleanup(hold.open)
	c := request("m", strings.Repeat("x", 4<<20))
	c.Retries, c.Timeout = 0, 2*time.Second
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	run, err := lease(t, a).Dispatch(ctx, c)
	if err == nil {
		_ = run.Close()
	}
	if !errors.Is(err, ErrStream) || ctx.Err() != nil {
		t.Errorf("got %v", err)
	}
}

// TestBodyTimeout wants a slow link to have time for the largest body.
func TestBodyTimeout(t *testing.T) {
	if got := BodyTimeout(0); got != FrameTimeout {
		t.Errorf("got %v", got)
	}
	if got, want := BodyTimeout(32<<20), FrameTimeout+512*time.Second; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestSilentProfiles has more strangers than are asked at one time withhold their
// profiles: a worker that gives its own is online all the same.
func TestSilentProfiles(t *testing.T) {
	d := newDirectory(zap.NewNop)
	now := time.Now()
	d.now = func() time.Time { return now }
	var asked []string
	d.ask = func(p, _ string) bool { asked = append(asked, p); return true }
	w := wire.Telemetry{PeerID: "x", Status: wire.StatusAvailable, MaxTasks: 1, CPUCores: 1, Protocol: wire.ProtocolHTTP, ProfileTag: "1"}
	for range 3600 / 2 { // an hour
		d.update(w)
		if n := len(asked); n > 0 && d.workers["x"].profile.asking {
			d.tookProfile("x", "1", wire.Profile{}, errors.New("silent"))
		}
		now = now.Add(2 * time.Second)
	}
	if n := len(asked); n > 20 {
		t.Errorf("who never gives a profile was asked %d times in an hour", n)
	}
}

// TestChangingProfiles wants a worker not to be asked more often for its profile by changing
// the tag of it, taking it away and bringing it back, nor by answering late.
func TestChangingProfiles(t *testing.T) {
	d := newDirectory(zap.NewNop)
	now := time.Now()
	d.now = func() time.Time { return now }
	asked, asking := 0, 0
	d.ask = func(string, string) bool { asked++; asking++; return true }
	w := wire.Telemetry{PeerID: "x", Status: wire.StatusAvailable, MaxTasks: 1, CPUCores: 1, Protocol: wire.ProtocolHTTP}
	for i := range 4 * 600 { // ten minutes; each answer takes five seconds
		if w.ProfileTag = strconv.Itoa(i); i%2 == 0 {
			w.ProfileTag = ""
		}
		if d.update(w); asking > 1 {
			t.Fatalf("asked %d times at once", asking)
		}
		if i%20 == 19 && asking > 0 {
			asking = 0
			d.tookProfile("x", w.ProfileTag, wire.Profile{}, nil)
		}
		now = now.Add(250 * time.Millisecond)
	}
	if asked > 60 {
		t.Errorf("asked %d times in ten minutes", asked)
	}
}

// TestRefusers has strangers announce room and refuse everything, which must not
// keep requests from a worker that serves.
func TestRefusers(t *testing.T) {
	a := newTestApp(t, nil)
	var liars []*httpWorker
	for range 12 {
		liars = append(liars, newHTTPWorker(t, a, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(wire.HeaderRefusal, string(wire.RefusalCapacity))
			w.WriteHeader(http.StatusServiceUnavailable)
		}))
	}
	newHTTPWorker(t, a, echoBody)
	l := lease(t, a)
	failed := 0
	for range 16 {
		before := time.Now()
		for _, w := range liars {
			w.publish(t)
		}
		await.Until(t, "the telemetry is here", func() bool {
			n := 0
			for _, i := range l.Workers(false) {
				if i.LastSeen.After(before) {
					n++
				}
			}
			return n >= len(liars)
		})
		if _, _, err := ask(t, a, request("m", "x")); err != nil {
			failed++
		}
	}
	if failed > 7 {
		t.Errorf("%d of 16 requests failed", failed)
	}
}
