// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

const noFiles = "\n" + wire.MarkerNoFiles + "\n"

// say answers every task with a text, and closes.
func say(text string) func(network.Stream, wire.TaskRequest) {
	return func(s network.Stream, _ wire.TaskRequest) {
		_, _ = io.WriteString(s, text)
		_ = s.Close()
	}
}

// silence says nothing until the test ends. It tells when it has begun.
func silence(t *testing.T) (serve func(network.Stream, wire.TaskRequest), begun *gate) {
	begun, end := newGate(), newGate()
	t.Cleanup(end.open)
	return func(network.Stream, wire.TaskRequest) { begun.open(); end.wait() }, begun
}

func call(model string) Call {
	return Call{Target: router.Request{Model: model}, Selector: router.LeastLoaded{}, Prompt: "hi", Retries: 2}
}

// ask dispatches a call and reads it to its end.
func ask(t *testing.T, a *App, c Call) (string, Served, error) {
	t.Helper()
	l := lease(t, a)
	run, err := l.Dispatch(context.Background(), c)
	if err != nil {
		return "", Served{}, err
	}
	defer run.Close()
	b, err := io.ReadAll(run)
	return string(b), run.Served(), err
}

func TestDispatch(t *testing.T) {
	a := newTestApp(t, nil)
	var got wire.TaskRequest
	w := newWorker(t, a, func(s network.Stream, req wire.TaskRequest) {
		got = req
		say("one\ntwo\r\nthree"+noFiles)(s, req)
	})
	c := call("m")
	c.TaskID, c.Prompt = "my-task", "a <b>\x00 ü"
	out, served, err := ask(t, a, c)
	served.Queued = 0
	if out != "one\ntwo\r\nthree" || err != nil {
		t.Errorf("got %q, %v", out, err)
	}
	if got.Data != c.Prompt || got.TaskID != c.TaskID {
		t.Errorf("the worker got %+v", got)
	}
	if want := (Served{Peer: w.PeerID, Agent: "a", Model: "m", Tier: router.TierModel, TaskID: "my-task", Attempts: 1}); served != want {
		t.Errorf("served by %+v, want %+v", served, want)
	}
}

// TestDispatchFailures wants every way of a worker to fail to be an error of its
// kind, after the output that came before it.
func TestDispatchFailures(t *testing.T) {
	for name, c := range map[string]struct {
		serve func(network.Stream, wire.TaskRequest)
		out   string
		err   error
	}{
		"full":           {say(wire.RefuseTasks(1, 1) + "\n"), "", wire.ErrCapacity},
		"version":        {say(wire.RefuseVersion() + "\n"), "", wire.ErrRefused},
		"exit 126":       {say("⚠️  Sandbox exited: exit status 126\n" + noFiles), "", wire.ErrAgentFailed},
		"fails later":    {say("half\n⚠️  Sandbox exited: exit status 1\n" + noFiles), "half", wire.ErrAgentFailed},
		"no marker":      {say("half"), "half", wire.ErrTruncated},
		"closes":         {say(""), "", wire.ErrTruncated},
		"resets":         {func(s network.Stream, _ wire.TaskRequest) { _ = s.Reset() }, "", ErrStream},
		"files not sent": {say("half\n\n[AGENTFM: FILES_INCOMING]"), "half\n", ErrArtifact},
	} {
		t.Run(name, func(t *testing.T) {
			if errors.Is(c.err, ErrArtifact) {
				shortenFilesGrace(t)
			}
			a := newTestApp(t, nil)
			newWorker(t, a, c.serve)
			out, _, err := ask(t, a, call("m"))
			if out != c.out || !errors.Is(err, c.err) {
				t.Errorf("got %q, %v; want %q, %v", out, err, c.out, c.err)
			}
		})
	}
}

func TestFailover(t *testing.T) {
	a := newTestApp(t, nil)
	bad := newWorker(t, a, say(wire.RefuseCPU(99)+"\n"))
	good := newWorker(t, a, say("ok"+noFiles))
	good.CurrentTasks = 3 // the good one is tried last
	good.publish(t)
	l := lease(t, a)
	await.Until(t, "the load is known", func() bool {
		for _, w := range l.Workers(false) {
			if w.PeerID == good.PeerID && w.CurrentTasks == 3 {
				return true
			}
		}
		return false
	})
	out, served, err := ask(t, a, call("m"))
	if out != "ok" || err != nil || served.Attempts != 2 || served.Peer != good.PeerID {
		t.Errorf("got %q by %+v, %v", out, served, err)
	}
	c := call("")
	c.Target.Peer = bad.PeerID // pinned: nobody else, and it has just said that it is full
	if _, _, err := ask(t, a, c); !errors.Is(err, router.ErrBusy) {
		t.Errorf("pinned: got %v", err)
	}
}

// TestBegin wants the caller to know who is about to get the task, and to have a say in it.
func TestBegin(t *testing.T) {
	a := newTestApp(t, nil)
	bad := newWorker(t, a, say(wire.RefuseCPU(99)+"\n"))
	var asked atomic.Int32
	good := newWorker(t, a, func(s network.Stream, req wire.TaskRequest) {
		asked.Add(1)
		say("ok"+noFiles)(s, req)
	})
	good.CurrentTasks = 3 // the good one is tried last
	good.publish(t)
	l := lease(t, a)
	await.Until(t, "the load is known", func() bool {
		return slices.ContainsFunc(l.Workers(false), func(w *WorkerInfo) bool { return w.PeerID == good.PeerID && w.CurrentTasks == 3 })
	})
	c := call("m")
	var told []string
	c.Begin = func(s Served) error {
		told = append(told, fmt.Sprint(s.Peer, s.Attempts))
		return nil
	}
	if out, _, err := ask(t, a, c); out != "ok" || err != nil {
		t.Errorf("got %q, %v", out, err)
	}
	if want := []string{bad.PeerID + "1", good.PeerID + "2"}; !slices.Equal(told, want) {
		t.Errorf("told of %q, want %q", told, want)
	}
	no := errors.New("no")
	c.Begin = func(Served) error { return no }
	if _, _, err := ask(t, a, c); err != no || asked.Load() != 1 {
		t.Errorf("got %v, and %d were asked", err, asked.Load())
	}
}

// TestBounce wants workers that say that they are full to be passed by, and not
// for ever.
func TestBounce(t *testing.T) {
	a := newTestApp(t, nil)
	var refusals atomic.Int32
	for range maxBounces + 2 {
		newWorker(t, a, func(s network.Stream, req wire.TaskRequest) {
			refusals.Add(1)
			say(wire.RefuseTasks(1, 1)+"\n")(s, req)
		})
	}
	c := call("m")
	c.Retries = 0
	if _, _, err := ask(t, a, c); !errors.Is(err, wire.ErrCapacity) {
		t.Errorf("got %v, want ErrCapacity", err)
	}
	if n := refusals.Load(); n != maxBounces+1 {
		t.Errorf("%d workers were tried, want %d", n, maxBounces+1)
	}
	if _, _, err := ask(t, a, c); !errors.Is(err, wire.ErrCapacity) {
		t.Errorf("the last one: got %v, want ErrCapacity", err)
	}
	if _, _, err := ask(t, a, c); !errors.Is(err, router.ErrBusy) {
		t.Errorf("none is left: got %v, want ErrBusy", err)
	}
}

// TestBounceInQueue wants a call that may wait to be served after more refusals than that.
func TestBounceInQueue(t *testing.T) {
	a := newTestApp(t, nil)
	var asked atomic.Int32
	for range maxBounces + 2 {
		newWorker(t, a, func(s network.Stream, req wire.TaskRequest) {
			if asked.Add(1) == maxBounces+2 {
				say("ok"+noFiles)(s, req)
				return
			}
			say(wire.RefuseTasks(1, 1)+"\n")(s, req)
		})
	}
	c := call("m")
	c.Retries = 0
	c.Queue = Queue{Wait: time.Minute, Size: 1, Client: "client"}
	if out, _, err := ask(t, a, c); out != "ok" || err != nil {
		t.Errorf("got %q, %v after %d", out, err, asked.Load())
	}
}

// TestRetries wants no more workers to be tried than the call allows.
func TestRetries(t *testing.T) {
	a := newTestApp(t, nil)
	var tries atomic.Int32
	for range 4 {
		newWorker(t, a, func(s network.Stream, _ wire.TaskRequest) {
			tries.Add(1)
			_ = s.Reset()
		})
	}
	for retries := range 2 {
		tries.Store(0)
		c := call("m")
		c.Retries = retries
		_, _, err := ask(t, a, c)
		if !errors.Is(err, ErrStream) || int(tries.Load()) != retries+1 {
			t.Errorf("%d retries: %d tries, %v", retries, tries.Load(), err)
		}
		if e, ok := errors.AsType[*AttemptError](err); !ok || e.Served.Attempts != retries+1 || e.Served.Model != "m" || e.Served.TaskID == "" {
			t.Errorf("%d retries: got %+v", retries, e)
		}
	}
}

// TestFailureOfARun wants the answer to be that of the worker whose agent ran, not
// that of one which had no slot afterwards: a client that hears of the latter asks
// again, and the agent runs twice.
func TestFailureOfARun(t *testing.T) {
	a := newTestApp(t, nil)
	var tries atomic.Int32
	for range 2 {
		newWorker(t, a, func(s network.Stream, req wire.TaskRequest) {
			if tries.Add(1) == 1 {
				say("⚠️  Sandbox exited: exit status 3\n"+noFiles)(s, req)
				return
			}
			say(wire.RefuseTasks(1, 1)+"\n")(s, req)
		})
	}
	if _, _, err := ask(t, a, call("m")); !errors.Is(err, wire.ErrAgentFailed) || tries.Load() != 2 {
		t.Errorf("got %v after %d tries", err, tries.Load())
	}
}

// TestUnread wants the time limit of a task to hold for a worker that does not even
// read it.
func TestUnread(t *testing.T) {
	a := newTestApp(t, nil)
	w := newWorker(t, a, nil)
	end := newGate()
	t.Cleanup(end.open)
	w.SetStreamHandler(wire.TaskProtocol, func(network.Stream) { end.wait() })
	c := call("m")
	c.Prompt, c.Timeout = strings.Repeat("x", 900_000), 300*time.Millisecond
	w.MaxPrompt = wire.MaxTaskFrame
	a.node.Load().directory.update(w.Telemetry)
	begun := time.Now()
	_, _, err := ask(t, a, c)
	if took := time.Since(begun); !errors.Is(err, os.ErrDeadlineExceeded) || took > FrameTimeout/2 {
		t.Errorf("got %v after %s", err, took)
	}
}

// TestFirstByte wants a worker that says nothing to be given up for another.
func TestFirstByte(t *testing.T) {
	a := newTestApp(t, nil)
	silent, _ := silence(t)
	newWorker(t, a, silent)
	c := call("m")
	c.FirstByte = 200 * time.Millisecond
	if _, _, err := ask(t, a, c); !errors.Is(err, os.ErrDeadlineExceeded) || !errors.Is(err, ErrStream) {
		t.Errorf("alone: got %v", err)
	}
	newWorker(t, a, say("ok"+noFiles))
	c.FirstByte = 5 * time.Second // time enough for one that answers
	if out, _, err := ask(t, a, c); out != "ok" || err != nil {
		t.Errorf("got %q, %v", out, err)
	}
}

// TestTrial has a newcomer that goes before others say nothing: another worker takes over, in a
// tenth of the task's time.
func TestTrial(t *testing.T) {
	a := newTestApp(t, nil)
	silent, begun := silence(t)
	newcomer := newWorker(t, a, silent)
	newWorker(t, a, say("ok"+noFiles))
	var node Node
	if _, err := a.Attach("x", func(n Node) (Attachment, error) {
		node = n
		return &attachment{make(chan struct{})}, nil
	}); err != nil {
		t.Fatal(err)
	}
	node.Trust(func(worker string) Trust {
		if worker == newcomer.PeerID {
			return OnProbation
		}
		return Trusted
	})
	c := call("m")
	c.Timeout = 20 * time.Second
	for range 2000 { // one in ten is a trial
		out, served, err := ask(t, a, c)
		if out != "ok" || err != nil {
			t.Fatalf("got %q, %v", out, err)
		}
		if served.Attempts > 1 {
			begun.wait()
			return
		}
	}
	t.Error("the newcomer was not tried")
}

// TestOffline wants a task to leave a worker that goes silent before its first
// byte, as a frozen process does.
func TestOffline(t *testing.T) {
	a := newTestApp(t, nil)
	serve, running := silence(t)
	silent := newWorker(t, a, serve)
	done := make(chan error, 1)
	l := lease(t, a)
	go func() {
		_, err := l.Dispatch(context.Background(), call("m"))
		done <- err
	}()
	running.wait()
	a.node.Load().directory.offline(silent.PeerID)
	if err := <-done; !errors.Is(err, ErrStream) || !strings.Contains(err.Error(), "offline") {
		t.Errorf("got %v", err)
	}
}

// TestDrip wants the time limit of a task to hold for a worker that always says a
// little more.
func TestDrip(t *testing.T) {
	a := newTestApp(t, nil)
	stopped := newGate()
	newWorker(t, a, func(s network.Stream, _ wire.TaskRequest) {
		defer stopped.open()
		for {
			if _, err := s.Write([]byte(".")); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	c := call("m")
	c.Timeout = time.Second
	out, _, err := ask(t, a, c)
	if out == "" || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %q, %v", out, err)
	}
	stopped.wait()
}

// TestWaiting wants a call to wait for a slot as long as it may.
func TestWaiting(t *testing.T) {
	a := newTestApp(t, nil)
	var running atomic.Int32
	finish := newGate()
	w := newWorker(t, a, func(s network.Stream, req wire.TaskRequest) {
		_, _ = io.WriteString(s, "o")
		running.Add(1)
		finish.wait()
		say("k"+noFiles)(s, req)
	})
	results := make(chan Served, 1)
	for range w.MaxTasks {
		go func() { _, _, _ = ask(t, a, call("m")) }()
	}
	await.Until(t, "all slots are taken", func() bool { return int(running.Load()) == w.MaxTasks })
	c := call("m")
	c.Queue = Queue{Wait: time.Minute, Size: 10, Client: "me"}
	go func() {
		_, served, err := ask(t, a, c)
		if err != nil {
			t.Error(err)
		}
		results <- served
	}()
	r := a.node.Load().directory.router
	await.Until(t, "the call waits", func() bool { return r.Waiting() == 1 })
	short := c
	short.Queue.Wait = 20 * time.Millisecond
	if _, _, err := ask(t, a, short); !errors.Is(err, router.ErrBusy) {
		t.Errorf("got %v, want ErrBusy", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := lease(t, a).Dispatch(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	finish.open()
	if served := <-results; served.Queued < 20*time.Millisecond {
		t.Errorf("it says that it waited for %s", served.Queued)
	}
}

// TestUnjudged wants a client's going away not to count against the worker.
func TestUnjudged(t *testing.T) {
	a := newTestApp(t, nil)
	newWorker(t, a, func(s network.Stream, _ wire.TaskRequest) { _, _ = io.WriteString(s, "o") })
	for range 5 {
		ctx, cancel := context.WithCancel(context.Background())
		run, err := lease(t, a).Dispatch(ctx, call("m"))
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		_, _ = io.ReadAll(run)
		_ = run.Close()
	}
	for range 2 { // a worker that rests would be tried by one at a time
		s, err := a.node.Load().directory.router.Acquire(&router.Request{Model: "m"}, router.LeastLoaded{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Release(router.Unjudged)
	}
}

// TestCauseOfAnother wants the failure of one stream not to be counted for others
// that end because of it.
func TestCauseOfAnother(t *testing.T) {
	a := newTestApp(t, nil)
	newWorker(t, a, func(s network.Stream, _ wire.TaskRequest) { _, _ = io.WriteString(s, "o") })
	before := streamErrors(t)
	ctx, cancel := context.WithCancelCause(context.Background())
	run, err := lease(t, a).Dispatch(ctx, call("m"))
	if err != nil {
		t.Fatal(err)
	}
	cancel(fmt.Errorf("%w: another's", ErrStream))
	if _, err := io.ReadAll(run); !errors.Is(err, ErrStream) {
		t.Errorf("got %v", err)
	}
	_ = run.Close()
	if n := streamErrors(t) - before; n != 0 {
		t.Errorf("%v failures were counted", n)
	}
}

// streamErrors returns how many failures of streams were counted.
func streamErrors(t *testing.T) (n float64) {
	t.Helper()
	reg := prometheus.NewRegistry()
	if err := metrics.Register(reg); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "agentfm_stream_errors_total" {
			for _, m := range f.GetMetric() {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// broken is a selector that panics.
type broken struct{}

func (broken) Select(*router.Choices) int { panic("broken") }

// TestSelectorPanics wants nothing of the task to stay behind.
func TestSelectorPanics(t *testing.T) {
	a := newTestApp(t, nil)
	newWorker(t, a, func(network.Stream, wire.TaskRequest) {})
	c := call("m")
	c.Selector = broken{}
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
		if tasks := a.node.Load().tasks.byID; len(tasks) != 0 {
			t.Errorf("tasks are left: %v", tasks)
		}
	}()
	_, _ = lease(t, a).Dispatch(t.Context(), c)
}

// TestUnreachable kills a worker whose telemetry is still fresh.
func TestUnreachable(t *testing.T) {
	a := newTestApp(t, nil)
	w := newWorker(t, a, say("ok"+noFiles))
	_ = w.Close()
	await.Until(t, "the worker is offline", func() bool { return lease(t, a).Online() == 0 })
	// as if its last words had come by another peer just now
	a.node.Load().directory.update(w.Telemetry)
	if _, _, err := ask(t, a, call("m")); !errors.Is(err, ErrUnreachable) {
		t.Errorf("got %v, want ErrUnreachable", err)
	}
	// after another's agent has run, it is that failure that counts
	resets := newWorker(t, a, func(s network.Stream, _ wire.TaskRequest) { _ = s.Reset() })
	w.CPUPercent, resets.CPUPercent = 90, 0
	a.node.Load().directory.update(resets.Telemetry)
	a.node.Load().directory.update(w.Telemetry)
	a.node.Load().directory.router.Remove(w.PeerID) // it has rested
	a.node.Load().directory.update(w.Telemetry)
	if _, _, err := ask(t, a, call("m")); !errors.Is(err, ErrStream) {
		t.Errorf("got %v, want ErrStream", err)
	}
}

// TestCancel wants the worker to notice that the client has gone, and nothing to
// be held afterwards.
func TestCancel(t *testing.T) {
	for name, c := range map[string]struct {
		listen ma.Multiaddr
		duplex bool
	}{
		"1.3":         {loopbackAddr, false},
		"duplex":      {loopbackAddr, true},
		"1.3 QUIC":    {loopbackQUIC, false},
		"duplex QUIC": {loopbackQUIC, true},
	} {
		t.Run(name, func(t *testing.T) { testCancel(t, c.listen, c.duplex) })
	}
}

func testCancel(t *testing.T, listen ma.Multiaddr, duplex bool) {
	a := newTestAppOn(t, listen, nil)
	gone := newGate()
	w := newPeer(t, a)
	w.Duplex = duplex
	w.SetStreamHandler(wire.TaskProtocol, func(s network.Stream) {
		if _, err := wire.ReadTask(s); err != nil {
			t.Errorf("worker: %v", err)
		}
		_, _ = io.WriteString(s, "first")
		if duplex { // silent, and still told at once
			if _, err := s.Read(make([]byte, 1)); errors.Is(err, io.EOF) {
				t.Error("the gateway closed its side")
			}
			gone.open()
			return
		}
		for { // told by the next write
			if _, err := s.Write([]byte("more")); err != nil {
				gone.open()
				return
			}
		}
	})
	w.publish(t)
	await.Until(t, "the worker is online", func() bool { return lease(t, a).Online() == 1 })
	ctx, cancel := context.WithCancel(context.Background())
	run, err := lease(t, a).Dispatch(ctx, call("m"))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	gone.wait()
	if _, err := io.ReadAll(run); !errors.Is(err, context.Canceled) {
		t.Errorf("duplex %v: got %v, want context.Canceled", duplex, err)
	}
	_ = run.Close()
	_ = run.Close()
	if n := len(a.node.Load().tasks.byID); n != 0 {
		t.Errorf("%d tasks are still known", n)
	}
}

// deliver sends a zip for a task from a worker, and returns what the gateway
// made of it: nil when it was stored.
func deliver(w *peerHost, a *App, taskID, zip string, size int64) error {
	s, err := w.NewStream(context.Background(), a.node.Load().host.ID(), wire.ArtifactProtocol)
	if err != nil {
		return err
	}
	if err := wire.WriteArtifactHeader(s, wire.ArtifactHeader{Size: size, TaskID: taskID}); err != nil {
		return err
	}
	if _, err := io.WriteString(s, zip); err != nil {
		return err
	}
	_ = s.CloseWrite()
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return err
	}
	return s.Close()
}

func TestArtifacts(t *testing.T) {
	a := newTestApp(t, nil)
	thief := newPeer(t, a)
	var w *peerHost
	w = newWorker(t, a, func(s network.Stream, req wire.TaskRequest) {
		_, _ = io.WriteString(s, "ok\n\n"+wire.MarkerFiles+"\n")
		if deliver(thief, a, req.TaskID, "bad", 3) == nil {
			t.Error("another peer could deliver")
		}
		if deliver(w, a, "other-task", "bad", 3) == nil {
			t.Error("files of an unknown task were taken")
		}
		if err := deliver(w, a, req.TaskID, "zip!", 4); err != nil {
			t.Errorf("delivering: %v", err)
		}
		if deliver(w, a, req.TaskID, "again", 5) == nil {
			t.Error("files were taken twice")
		}
		_ = s.Close()
	})
	l := lease(t, a)
	c := call("m")
	c.TaskID = "t1"
	run, err := l.Dispatch(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(run)
	if string(out) != "ok\n" || err != nil || !run.HasFiles() {
		t.Errorf("got %q, %v, files %v", out, err, run.HasFiles())
	}
	_ = run.Close()
	f, err := l.OpenArtifact("t1")
	if err != nil {
		t.Fatal(err)
	}
	zip, _ := io.ReadAll(f)
	_ = f.Close()
	if string(zip) != "zip!" {
		t.Errorf("stored %q", zip)
	}
	if deliver(w, a, "t1", "late", 4) == nil {
		t.Error("files were taken after the task's end")
	}
	if _, err := l.Dispatch(context.Background(), c); !errors.Is(err, ErrTaskID) {
		t.Errorf("same id again: got %v, want ErrTaskID", err)
	}
	for _, id := range []string{"nobody", "../t1", ""} {
		if _, err := l.OpenArtifact(id); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("OpenArtifact(%q): %v", id, err)
		}
	}
	entries, _ := os.ReadDir(a.artifacts.dir)
	if len(entries) != 1 {
		t.Errorf("the folder holds %v", entries)
	}
}

// TestArtifactLate wants the files of a task that has ended not to become those
// of the next task with its id.
func TestArtifactLate(t *testing.T) {
	a := newTestApp(t, nil)
	begun, refused := newGate(), newGate()
	var slow *peerHost
	slow = newWorker(t, a, func(s network.Stream, req wire.TaskRequest) {
		_, _ = io.WriteString(s, "x")
		art, err := slow.NewStream(context.Background(), a.node.Load().host.ID(), wire.ArtifactProtocol)
		if err != nil {
			t.Error(err)
		}
		_ = wire.WriteArtifactHeader(art, wire.ArtifactHeader{Size: 8, TaskID: req.TaskID})
		_, _ = io.WriteString(art, "EVIL")
		await.Until(t, "the delivery has begun", func() bool {
			found, _ := filepath.Glob(filepath.Join(a.artifacts.dir, ".*.part"))
			return len(found) > 0
		})
		begun.open()
		if _, err := art.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Error("the delivery of a task that has ended goes on")
		}
		refused.open()
	})
	c := call("m")
	c.TaskID = "job-1"
	c.Target.Peer = slow.PeerID
	run, err := lease(t, a).Dispatch(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	begun.wait()
	_ = run.Close()
	refused.wait()
	var good *peerHost
	good = newWorker(t, a, func(s network.Stream, req wire.TaskRequest) {
		_, _ = io.WriteString(s, "ok\n\n"+wire.MarkerFiles+"\n")
		if err := deliver(good, a, req.TaskID, "good", 4); err != nil {
			t.Error(err)
		}
		_ = s.Close()
	})
	c.Target.Peer = good.PeerID
	if _, _, err := ask(t, a, c); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(a.artifacts.dir, "job-1.zip")); string(b) != "good" {
		t.Errorf("stored %q", b)
	}
}

// TestArtifactLies wants nothing to be stored of a zip that is not as announced.
func TestArtifactLies(t *testing.T) {
	for name, c := range map[string]struct {
		zip  string
		size int64
	}{"short": {"abc", 10}, "long": {"abcdef", 3}} {
		t.Run(name, func(t *testing.T) {
			a := newTestApp(t, nil)
			var w *peerHost
			w = newWorker(t, a, func(s network.Stream, req wire.TaskRequest) {
				_, _ = io.WriteString(s, "ok\n\n"+wire.MarkerFiles+"\n")
				if deliver(w, a, req.TaskID, c.zip, c.size) == nil {
					t.Error("it was taken")
				}
				_ = s.Close()
			})
			out, _, err := ask(t, a, call("m"))
			if out != "ok\n" || !errors.Is(err, ErrArtifact) {
				t.Errorf("got %q, %v", out, err)
			}
			if left, _ := filepath.Glob(filepath.Join(a.artifacts.dir, "*")); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestTaskIDInUse(t *testing.T) {
	a := newTestApp(t, nil)
	hold := newGate()
	newWorker(t, a, func(s network.Stream, req wire.TaskRequest) {
		_, _ = io.WriteString(s, "x")
		hold.wait()
		say(noFiles)(s, req)
	})
	c := call("m")
	c.TaskID = "t1"
	run, err := lease(t, a).Dispatch(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := ask(t, a, c); !errors.Is(err, ErrTaskID) {
		t.Errorf("got %v, want ErrTaskID", err)
	}
	hold.open()
	if _, err := io.ReadAll(run); err != nil {
		t.Error(err)
	}
	_ = run.Close()
	if _, _, err := ask(t, a, c); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

func TestPromptLimits(t *testing.T) {
	a := newTestApp(t, nil)
	newWorker(t, a, say(noFiles))
	c := call("m")
	c.Prompt = strings.Repeat("x", wire.MaxArgumentPrompt)
	if _, _, err := ask(t, a, c); err != nil {
		t.Errorf("at the limit: %v", err)
	}
	c.Prompt += "x"
	if _, _, err := ask(t, a, c); !errors.Is(err, router.ErrPromptTooLong) {
		t.Errorf("over the limit: got %v", err)
	}
	c.Prompt = strings.Repeat("x", wire.MaxTaskFrame)
	if _, _, err := ask(t, a, c); !errors.Is(err, wire.ErrFrameTooLarge) {
		t.Errorf("over a frame: got %v", err)
	}
}
