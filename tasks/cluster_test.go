// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// natsServer is a server that gateways share, which can go away and come back.
type natsServer struct {
	*server.Server
	t    *testing.T
	opts server.Options
}

// startServer starts one.
func startServer(t *testing.T) *natsServer {
	t.Helper()
	n := &natsServer{t: t, opts: server.Options{
		ServerName: "shared", Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, JetStream: true, StoreDir: t.TempDir(), Authorization: "secret",
	}}
	n.start()
	t.Cleanup(n.stop)
	return n
}

// start starts the server, at the port that it had.
func (n *natsServer) start() {
	n.t.Helper()
	opts := n.opts
	var err error
	if n.Server, err = server.NewServer(&opts); err != nil {
		n.t.Fatal(err)
	}
	n.Start()
	if !n.ReadyForConnections(startWait) {
		n.t.Fatal("the server is not ready")
	}
	n.opts.Port = opts.Port
}

// stop ends the server.
func (n *natsServer) stop() {
	n.Shutdown()
	n.WaitForShutdown()
}

// cluster is how gateways reach it.
func (n *natsServer) cluster() *Cluster {
	return &Cluster{URLs: []string{fmt.Sprintf("nats://127.0.0.1:%d", n.opts.Port)}, Token: "secret"}
}

// clusterLimits are those of gateways in tests.
func clusterLimits() limits {
	l := defaultLimits
	l.lease, l.pause, l.sweep = 2*time.Second, short, 200*time.Millisecond
	return l
}

// join returns the part of one more gateway.
func join(t *testing.T, c *Cluster, r Runner, l limits) *Part {
	t.Helper()
	p, err := New(Options{Cluster: c, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	p.Register("site", r)
	s, err := openService(place{cluster: c}, zap.NewNop(), l)
	if err != nil {
		t.Fatal(err)
	}
	p.service.Store(s)
	s.Join(p)
	t.Cleanup(s.Close)
	return p
}

// TestCluster wants a task to be seen, finished and told of at any gateway.
func TestCluster(t *testing.T) {
	c := startServer(t).cluster()
	a := join(t, c, &fakeRunner{run: says("hello", nil)}, clusterLimits())
	b := join(t, c, &fakeRunner{run: says("hello", nil)}, clusterLimits())
	for i := range 20 {
		from, at := a, b
		if i%2 == 1 {
			from, at = b, a
		}
		id := submit(t, from, "")
		if _, err := at.Get(t.Context(), "ann", id); err != nil { // at once
			t.Fatal(err)
		}
		if r := ended(t, at, id); r.State != Completed || r.Attempts != 1 || output(t, at, id) != "hello" {
			t.Errorf("got %+v", r)
		}
		page, _, err := at.List(t.Context(), "ann", Query{Limit: 1})
		if err != nil || len(page) != 1 || page[0].ID != id {
			t.Errorf("got %+v, %v", page, err)
		}
	}
	empty(t, a)
}

// TestClusterFull wants the limit to be one for all gateways together.
func TestClusterFull(t *testing.T) {
	c := startServer(t).cluster()
	a := join(t, c, &fakeRunner{run: hangs("")}, clusterLimits())
	b := join(t, c, &fakeRunner{run: hangs("")}, clusterLimits())
	a.options.InFlight, b.options.InFlight = 2, 2
	submit(t, a, "")
	submit(t, b, "")
	for _, p := range []*Part{a, b} {
		if _, err := p.Submit(t.Context(), Submission{Owner: "ann", Prompt: "x"}); !errors.Is(err, ErrFull) {
			t.Errorf("got %v", err)
		}
	}
}

// TestClusterCancel wants a task to be stopped at the gateway that runs it, wherever it is
// cancelled.
func TestClusterCancel(t *testing.T) {
	c := startServer(t).cluster()
	var stopped atomic.Int32
	run := func(ctx context.Context, j Job) (Attempt, error) {
		context.AfterFunc(ctx, func() { stopped.Add(1) })
		return hangs("so far")(ctx, j)
	}
	a := join(t, c, &fakeRunner{run: run}, clusterLimits())
	id := submit(t, a, "")
	until(t, a, id, "a task that runs", func(r *Record) bool { return r.State == Running })
	b := join(t, c, &fakeRunner{run: run}, clusterLimits())
	if r, err := b.Cancel(t.Context(), "ann", id); err != nil || r.State != Cancelled {
		t.Errorf("got %+v, %v", r, err)
	}
	await.Until(t, "the end of the agent", func() bool { return stopped.Load() == 1 })
	empty(t, b)
}

// TestClusterExit wants another gateway to take what one gives back that ends.
func TestClusterExit(t *testing.T) {
	c := startServer(t).cluster()
	a := join(t, c, &fakeRunner{run: hangs("half")}, defaultLimits)
	id := submit(t, a, "")
	until(t, a, id, "a task that runs", func(r *Record) bool { return r.State == Running })
	b := join(t, c, &fakeRunner{run: says("whole", nil)}, defaultLimits)
	begun := time.Now()
	a.service.Load().Close()
	if r := ended(t, b, id); r.State != Completed || r.Lost != 1 || output(t, b, id) != "whole" {
		t.Errorf("got %+v", r)
	}
	if took := time.Since(begun); took > Lease/2 {
		t.Errorf("it took %s", took)
	}
}

// TestClusterExitAway wants a gateway to end that does not reach its servers.
func TestClusterExitAway(t *testing.T) {
	n := startServer(t)
	p := join(t, n.cluster(), &fakeRunner{run: hangs("half")}, defaultLimits)
	id := submit(t, p, "")
	until(t, p, id, "a task that runs", func(r *Record) bool { return r.State == Running })
	n.stop()
	begun := time.Now()
	p.service.Load().Close()
	if took := time.Since(begun); took > callTimeout/2 {
		t.Errorf("it took %s", took)
	}
}

// TestClusterExitWebhooks wants the same of webhooks that are being sent.
func TestClusterExitWebhooks(t *testing.T) {
	t.Setenv("AGENTFM_WEBHOOK_ALLOW_PRIVATE", "1")
	c := startServer(t).cluster()
	var silent atomic.Bool
	var heard atomic.Int32
	silent.Store(true)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		heard.Add(1)
		if silent.Load() {
			<-r.Context().Done()
		}
	}))
	defer receiver.Close()
	a := join(t, c, &fakeRunner{run: says("done", nil)}, defaultLimits)
	var ids []string
	for range maxHostPosts {
		ids = append(ids, submit(t, a, receiver.URL))
	}
	await.Until(t, "all to be sent", func() bool { return heard.Load() == maxHostPosts })
	b := join(t, c, &fakeRunner{run: says("done", nil)}, defaultLimits)
	silent.Store(false)
	begun := time.Now()
	a.service.Load().Close()
	for _, id := range ids {
		until(t, b, id, "a delivery", func(r *Record) bool { return r.Webhook.State == WebhookDelivered })
	}
	if took := time.Since(begun); took > Lease/2 {
		t.Errorf("it took %s", took)
	}
}

// TestFence wants the result of an attempt not to count when another gateway has the task
// already, and to be noted.
func TestFence(t *testing.T) {
	for _, c := range []struct {
		name string
		// lost is when the gateway loses its lease: before it begins the task, or after.
		early bool
		end   error
		state State
	}{
		{"before it begins", true, nil, ""},
		{"completes late", false, nil, Completed},
		{"fails late", false, &Failure{Reason: "exit_code", Message: "exit status 1"}, Failed},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster := startServer(t).cluster()
			gate, waits := make(chan struct{}), make(chan struct{})
			a := join(t, cluster, &fakeRunner{run: func(ctx context.Context, j Job) (Attempt, error) {
				if !c.early {
					if err := j.Begin(testWorker); err != nil {
						return nil, err
					}
				}
				close(waits)
				<-gate // it hears of nothing meanwhile
				if c.early {
					return nil, j.Begin(testWorker)
				}
				return &fakeAttempt{Reader: strings.NewReader("late"), end: c.end}, nil
			}}, clusterLimits())
			id := submit(t, a, "")
			<-waits
			a.service.Load().current.Load().silent.Store(true)
			b := join(t, cluster, &fakeRunner{run: says("whole", nil)}, clusterLimits())
			r := ended(t, b, id)
			close(gate)
			if c.state != "" {
				r = until(t, b, id, "a late result", func(r *Record) bool { return len(r.Late) > 0 })
				if late := r.Late[0]; len(r.Late) != 1 || late.State != c.state || late.Attempt != 1 || late.Worker != testWorker {
					t.Errorf("got %+v", r.Late)
				}
			}
			if r.State != Completed || output(t, b, id) != "whole" {
				t.Errorf("got %+v", r)
			}
			empty(t, b)
		})
	}
}

// TestClusterAway wants all to go on when the servers were away, and the gateway to say
// meanwhile, soon, that it cannot store tasks.
func TestClusterAway(t *testing.T) {
	n := startServer(t)
	gate := make(chan struct{})
	p := join(t, n.cluster(), &fakeRunner{run: func(ctx context.Context, j Job) (Attempt, error) {
		select {
		case <-gate:
			return says("done", nil)(ctx, j)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}, clusterLimits())
	ids := []string{submit(t, p, ""), submit(t, p, "")}
	n.stop()
	begun := time.Now()
	if _, err := p.Submit(t.Context(), Submission{Owner: "ann", Prompt: "x"}); !errors.Is(err, ErrStore) && !errors.Is(err, ErrNotRunning) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begun); took > 3*callTimeout {
		t.Errorf("it took %s", took)
	}
	await.Until(t, "a gateway that is not ready", func() bool { return p.Ready() != nil })
	close(gate)
	n.start()
	await.Until(t, "a gateway that is ready", func() bool { return p.Ready() == nil })
	for _, id := range ids {
		if r := ended(t, p, id); r.State != Completed || output(t, p, id) != "done" {
			t.Errorf("got %+v", r)
		}
	}
	empty(t, p)
}

// TestClusterLater wants a gateway to begin without its servers, and to find them.
func TestClusterLater(t *testing.T) {
	n := startServer(t)
	n.stop()
	p := join(t, n.cluster(), &fakeRunner{run: says("done", nil)}, clusterLimits())
	if err := p.Ready(); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("got %v", err)
	}
	n.start()
	await.Until(t, "a gateway that is ready", func() bool { return p.Ready() == nil })
	if r := ended(t, p, submit(t, p, "")); r.State != Completed {
		t.Errorf("got %+v", r)
	}
}

// TestClusterMend wants a task that was not accepted to end, and none that is being
// accepted.
func TestClusterMend(t *testing.T) {
	n := startServer(t)
	s, err := openStore(t.Context(), place{cluster: n.cluster()}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	half := &Record{ID: newID(time.Now(), 0), Owner: "ann", State: Queued, Created: time.Now()}
	if _, err := s.put(t.Context(), half, 0); err != nil {
		t.Fatal(err)
	}
	l := clusterLimits()
	p := join(t, n.cluster(), &fakeRunner{run: says("", nil)}, l)
	if r := ended(t, p, half.ID); r.State != Failed || r.Reason != ReasonNotAccepted {
		t.Errorf("got %+v", r)
	}
}

// TestClusterSettings wants settings that are wrong to be refused, without a secret in the
// error.
func TestClusterSettings(t *testing.T) {
	for _, c := range []struct {
		cluster Cluster
		want    string
	}{
		{Cluster{URLs: []string{"nats://bob:hush@ho st:1"}}, "want URLs"},
		{Cluster{URLs: []string{"hush"}}, "want URLs"},
		{Cluster{URLs: []string{"http://bob:hush@host"}}, `the URL of host has the scheme "http"`},
		{Cluster{URLs: []string{"nats://host"}, Replicas: 6}, "from 1 to 5"},
		{Cluster{URLs: []string{"nats://host"}, Credentials: "/missing"}, "credentials: stat /missing"},
		{Cluster{URLs: []string{"nats://host"}, NKey: "/missing"}, "nkey: reading the seed in /missing"},
		{Cluster{URLs: []string{"nats://host"}, CA: []string{"/missing"}}, "/missing"},
		{Cluster{URLs: []string{"nats://host"}, Certificate: "/missing", CertificateKey: "/missing"}, "/missing"},
	} {
		_, err := New(Options{Cluster: &c.cluster})
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%+v: got %v", c.cluster, err)
		}
	}
	wrong := startServer(t).cluster()
	wrong.Token = "hush"
	wrong.URLs = append(wrong.URLs, "nats://bob:hush@127.0.0.1:1")
	_, err := openStore(t.Context(), place{cluster: wrong}, zap.NewNop())
	if err == nil || strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "bob") {
		t.Errorf("got %v", err)
	}
}

// TestClusterFollow wants a task to be followed at any gateway, as soon as anything happens.
func TestClusterFollow(t *testing.T) {
	c := startServer(t).cluster()
	r, w := io.Pipe()
	a := join(t, c, &fakeRunner{run: func(_ context.Context, j Job) (Attempt, error) {
		return &fakeAttempt{Reader: r}, j.Begin(testWorker)
	}}, clusterLimits())
	id := submit(t, a, "")
	until(t, a, id, "a task that runs", func(r *Record) bool { return r.State == Running })
	b := join(t, c, &fakeRunner{run: says("", nil)}, clusterLimits())
	out, events := follow(t, b, id), follow(t, b, id)
	if err := out.Seek(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		_, _ = io.WriteString(w, "some ")
		if got, err := out.Output(t.Context()); err != nil || string(got) != "some " {
			t.Errorf("got %q, %v", got, err)
		}
	}
	w.Close()
	if got, err := rest(t, out); err != io.EOF || got != "" {
		t.Errorf("got %q, %v", got, err)
	}
	if got := told(t, events, 0); got != "1 queued queued  0  true;2 running running  1 peer true;3 completed completed  1 peer false;" {
		t.Errorf("got %s", got)
	}
}
