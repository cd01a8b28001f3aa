// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/internal/freeport"
)

// startServers starts three servers that are a cluster, and returns how gateways reach them:
// each by a link that takes so long, one way.
func startServers(t *testing.T, delay time.Duration) *Cluster {
	t.Helper()
	var ports []int
	var routes []*url.URL
	for range 3 {
		ports = append(ports, freeport.Get(t))
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", ports[len(ports)-1])})
	}
	c := &Cluster{Token: "secret"}
	var servers []*natsServer
	for i, port := range ports {
		n := &natsServer{t: t, opts: server.Options{
			ServerName: fmt.Sprint("n", i), Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, Authorization: "secret",
			JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 64 << 30,
			Cluster: server.ClusterOpts{Name: "tasks", Host: "127.0.0.1", Port: port, NoAdvertise: true}, Routes: routes,
		}}
		n.start()
		t.Cleanup(n.stop)
		servers = append(servers, n)
		c.URLs = append(c.URLs, "nats://"+slowLink(t, fmt.Sprintf("127.0.0.1:%d", n.opts.Port), delay))
	}
	await.Until(t, "a leader", func() bool {
		return servers[0].JetStreamIsLeader() || servers[1].JetStreamIsLeader() || servers[2].JetStreamIsLeader()
	})
	return c
}

// slowLink returns an address that is a way to another, which takes so long in either direction.
func slowLink(t *testing.T, to string, delay time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		stop()
		l.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.DialTimeout("tcp", to, dialTimeout)
			if err != nil {
				near.Close()
				continue
			}
			end := context.AfterFunc(ctx, func() { near.Close(); far.Close() })
			running.Go(func() { defer end(); carry(near, far, delay) })
			running.Go(func() { carry(far, near, delay) })
		}
	})
	return l.Addr().String()
}

// carry carries what comes from one connection to another, so much later. The end of one is
// that of both.
func carry(from, to net.Conn, delay time.Duration) {
	type part struct {
		due  time.Time
		data []byte
	}
	parts := make(chan part, 1024)
	go func() {
		defer close(parts)
		for {
			data := make([]byte, 16<<10)
			n, err := from.Read(data)
			if err != nil {
				return
			}
			parts <- part{time.Now().Add(delay), data[:n]}
		}
	}()
	for p := range parts {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.data); err != nil {
			from.Close()
		}
	}
	from.Close()
	to.Close()
}

// TestClusterRoom wants two gateways, which are a slow way from a cluster of three servers, to
// make room and to take tasks at one time: each task that was accepted is run once, those that
// must stay are there, what was dropped is counted once, and each gateway knows what is there.
func TestClusterRoom(t *testing.T) {
	t.Setenv("AGENTFM_WEBHOOK_ALLOW_PRIVATE", "1")
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusInternalServerError)
	}))
	t.Cleanup(receiver.Close)
	const room = 128 << 10
	l := defaultLimits
	l.pause, l.sweep, l.records, l.evict = short, 10*short, room, time.Hour // it is made below
	c := startServers(t, short)
	runner := count(0)
	parts := []*Part{join(t, c, runner, l), join(t, c, runner, l)}
	for _, p := range parts {
		p.options.InFlight = 10_000
		awaitReady(t, p)
	}

	const held, each, clients = 10, 25, 6
	stay := make(map[string]bool)
	for i := range held {
		stay[submitSoon(t, parts[i%2], Submission{Owner: "bob", Site: "site", Prompt: "prompt", WebhookURL: receiver.URL})] = true
	}
	var dropped atomic.Int64
	done := make(chan struct{})
	var evicting, submitting sync.WaitGroup
	for _, p := range parts {
		evicting.Go(func() {
			for s := p.service.Load().current.Load(); ; pause(t.Context(), short) {
				n, err := s.evict()
				if err != nil && !errors.Is(err, errHeld) {
					t.Error(err)
				}
				dropped.Add(int64(n))
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	accepted := make([][]string, clients)
	for i := range clients {
		submitting.Go(func() {
			for range each {
				accepted[i] = append(accepted[i], submitSoon(t, parts[i%2], Submission{Owner: fmt.Sprint("ann", i%3), Site: "site", Prompt: "prompt"}))
			}
		})
	}
	submitting.Wait()
	drain(t, parts[0])
	close(done)
	evicting.Wait()

	if n := runner.total(); n != held+clients*each {
		t.Errorf("%d tasks were run of %d", n, held+clients*each)
	}
	for id, n := range runner.runs {
		if n != 1 {
			t.Errorf("task %s was run %d times", id, n)
		}
	}
	there := inStore(t, parts[0])
	if n := held + clients*each - len(there); int(dropped.Load()) != n || n < each {
		t.Errorf("%d tasks were dropped, and %d are not there", dropped.Load(), n)
	}
	for id := range stay {
		if there["bob."+id] == 0 {
			t.Errorf("task %s was dropped, whose webhook is to be delivered", id)
		}
	}
	for i, p := range parts {
		await.Until(t, fmt.Sprintf("what gateway %d knows to be what there is", i), func() bool {
			s := p.service.Load().current.Load().store
			return s.upToDate(t.Context(), &s.records) == nil && maps.Equal(known(t, p), inStore(t, p))
		})
	}
}

// awaitReady waits until a gateway has its store.
func awaitReady(t *testing.T, p *Part) {
	t.Helper()
	for deadline := time.Now().Add(startWait); p.Ready() != nil; time.Sleep(short) {
		if time.Now().After(deadline) {
			t.Fatal(p.Ready())
		}
	}
}

// inStore returns the revisions of the records in the store, by owners and ids.
func inStore(t *testing.T, p *Part) map[string]uint64 {
	t.Helper()
	there := make(map[string]uint64)
	s := p.service.Load().current.Load().store
	_, err := s.eachRecord(t.Context(), &s.records, 0, func(r *Record, revision uint64) {
		there[r.Owner+"."+r.ID] = max(revision, there[r.Owner+"."+r.ID])
	})
	if err != nil {
		t.Fatal(err)
	}
	return there
}

// known returns the revisions that the index of a gateway has, once it was asked for a list.
func known(t *testing.T, p *Part) map[string]uint64 {
	t.Helper()
	all := make(map[string]uint64)
	x := p.service.Load().current.Load().store.records.index
	for _, owner := range []string{"bob", "ann0", "ann1", "ann2"} {
		if _, _, err := p.List(t.Context(), owner, Query{Limit: 10_000}); err != nil {
			t.Fatal(err)
		}
		for _, e := range x.before(ownerKey(owner), order{}, Query{}, 10_000) {
			all[e.key(owner, false)] = e.revision
		}
	}
	return all
}
