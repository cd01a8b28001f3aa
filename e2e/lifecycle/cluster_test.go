// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// leaseTime is how long it may take until a gateway takes the tasks of one that is gone,
// and somewhat more.
const leaseTime = 45 * time.Second

// awaitFor is await with more patience.
func awaitFor(t *testing.T, what string, limit time.Duration, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

// submitTo submits a task and returns its id.
func (a *accountant) submitTo(g gateway, model, prompt string) string {
	a.t.Helper()
	var v taskReport
	body := map[string]string{"model": model, "prompt": prompt, "webhook_url": a.sink.URL}
	if status := a.call(a.t.Context(), g, "POST", "/api/execute/async", body, &v); status != http.StatusAccepted {
		a.t.Fatalf("got %d", status)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.accepted[v.ID] = prompt
	return v.ID
}

// status returns the status of an answer; 0 without one.
func (g gateway) status(path string) int {
	resp, err := client.Get(g.place.url(path))
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// report returns a task as a gateway shows it.
func (a *accountant) report(g gateway, id string) (v taskReport) {
	a.call(a.t.Context(), g, "GET", "/api/tasks/"+id, nil, &v)
	return v
}

// A gateway is killed, and the other finishes its tasks and tells of them; one is stopped
// for longer than its lease, and its result does not count; a task is cancelled at the
// gateway that does not run it.
func TestCluster(t *testing.T) {
	t.Parallel()
	m := startTeam(t, startNATS(t, 1), agent{key: "echo", label: "hello", env: "FILES yes"})
	one, two := m.gateways[0], m.gateways[1]
	a := newAccountant(t)

	// Cancelled at both, whichever of them runs it.
	for _, g := range m.gateways {
		k := newTask(t)
		id := a.submitTo(one.gateway, "echo", k.prompt)
		await(t, "the task runs at both", func() bool {
			return a.report(one.gateway, id).Status == "running" && two.get("/api/tasks/"+id+"/output") == "hello\n"
		})
		pid := k.pid()
		if status := a.call(t.Context(), g.gateway, "DELETE", "/api/tasks/"+id, nil, new(taskReport)); status != http.StatusOK {
			t.Errorf("cancelling: %d", status)
		}
		await(t, "the agent ends", func() bool { return !runs(pid) })
		if v := a.report(one.gateway, id); v.Status != "cancelled" {
			t.Errorf("got %+v", v)
		}
	}

	// Submitted to one, which is killed. Of several, it has some.
	var tasks []*task
	var ids []string
	var pids []int
	for range 4 {
		k := newTask(t)
		id := a.submitTo(one.gateway, "echo", k.prompt)
		await(t, "the task runs", func() bool { return two.get("/api/tasks/"+id+"/output") == "hello\n" })
		tasks, ids, pids = append(tasks, k), append(ids, id), append(pids, k.pid())
	}
	one.kill()
	await(t, "an agent ends", func() bool { return slices.ContainsFunc(pids, func(pid int) bool { return !runs(pid) }) })
	again := 0
	for i, id := range ids {
		if !runs(pids[i]) {
			again++
			awaitFor(t, "the task runs again", leaseTime, func() bool {
				return a.report(two.gateway, id).Attempts == 2 && two.get("/api/tasks/"+id+"/output") == "hello\n"
			})
		}
		tasks[i].end()
		await(t, "the end of a task", func() bool { return a.report(two.gateway, id).ended() })
		v := a.report(two.gateway, id)
		if got := two.get("/api/tasks/" + id + "/output"); v.Status != "completed" || got != tasks[i].output("hello") {
			t.Errorf("got %+v and %q", v, got)
		}
		if got := two.get("/api/tasks/" + id + "/artifacts"); len(got) < 4 || got[:4] != "PK\x03\x04" {
			t.Errorf("got the files %q", got)
		}
		await(t, "the webhook", func() bool { return a.report(two.gateway, id).Webhook.Status == "delivered" })
	}
	t.Logf("%d of %d tasks ran again", again, len(ids))
	m.checkLogs()
}

// A gateway that was stopped for longer than its lease finds its tasks taken.
func TestClusterStopped(t *testing.T) {
	t.Parallel()
	m := startTeam(t, startNATS(t, 1), agent{key: "echo", label: "hello"})
	one, two := m.gateways[0], m.gateways[1]
	a := newAccountant(t)
	two.kill() // so that the other has the task
	k := newTask(t)
	id := a.submitTo(one.gateway, "echo", k.prompt)
	await(t, "the task runs", func() bool { return one.get("/api/tasks/"+id+"/output") == "hello\n" })
	attempts := a.report(one.gateway, id).Attempts + 1 // some may not have reached the worker
	m.restart(1)
	m.awaitWorker("echo")
	two = m.gateways[1]
	for _, signal := range []syscall.Signal{syscall.SIGSTOP, syscall.SIGCONT} {
		if err := one.cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if signal == syscall.SIGSTOP {
			awaitFor(t, "the task runs again", leaseTime, func() bool {
				v := a.report(two.gateway, id) // it is said to run before the agent does
				return v.Attempts >= attempts && v.Status == "running" && two.get("/api/tasks/"+id+"/output") == "hello\n"
			})
		}
		k.end()
		await(t, "the task ends", func() bool { return a.report(two.gateway, id).ended() })
	}
	a.settle(two.gateway)
	for _, g := range m.gateways {
		if v := a.report(g.gateway, id); v.Status != "completed" || v.Attempts < attempts || g.get("/api/tasks/"+id+"/output") != k.output("hello") {
			t.Errorf("got %+v", v)
		}
	}
	if told := len(a.told[id]); told != 1 {
		t.Errorf("it was told of %d times", told)
	}
}

// Gateways and servers are killed while clients submit tasks to both gateways, and all the
// servers are away for a while: nothing is lost.
func TestClusterKills(t *testing.T) {
	t.Parallel()
	nats := startNATS(t, 3)
	m := startTeam(t, nats, counted(t))
	a := newAccountant(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var clients sync.WaitGroup
	for n := range 4 {
		clients.Go(func() { a.submit(ctx, m.gateways[n%2].gateway, n) })
	}
	healthy := func(g *process) bool { return g.status("/health") == http.StatusOK }
	for i := range max(2, kills(t, 10)/5) {
		victim := m.gateways[i%2]
		sleep(ctx, 2*time.Second)
		victim.kill()
		nats[i%3].kill()
		sleep(ctx, 2*time.Second)
		nats[i%3].start()
		m.restart(i % 2)
		awaitFor(t, "both are healthy", leaseTime, func() bool { return healthy(m.gateways[0]) && healthy(m.gateways[1]) })
		m.awaitWorker("counted")
	}

	for _, n := range nats {
		n.kill()
	}
	for _, g := range m.gateways {
		awaitFor(t, "the gateway says that it cannot store tasks", leaseTime, func() bool { return g.status("/health") == http.StatusServiceUnavailable })
		begun := time.Now()
		if got := g.status("/api/tasks"); got != http.StatusServiceUnavailable || time.Since(begun) > 20*time.Second {
			t.Errorf("got %d after %s", got, time.Since(begun))
		}
	}
	for _, n := range nats {
		n.start()
	}
	awaitFor(t, "both are healthy", leaseTime, func() bool { return healthy(m.gateways[0]) && healthy(m.gateways[1]) })
	sleep(ctx, 2*time.Second)
	stop()
	clients.Wait()
	a.settle(m.gateways[0].gateway)
	awaitFor(t, "the end of tasks of which no client knows", 2*time.Minute, func() bool { return a.unknown(m.gateways[1].gateway) == nil })
	a.verdict(m.gateways[1].gateway)
	if len(a.accepted) < 20 {
		t.Errorf("only %d tasks were accepted", len(a.accepted))
	}
	m.checkLogs()
}
