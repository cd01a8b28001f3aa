// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// attachment notes that it was closed.
type attachment struct{ closed chan struct{} }

func (a *attachment) Close() { close(a.closed) }

func TestAttachmentLivesWithTheNode(t *testing.T) {
	a := newTestApp(t, nil)
	at := &attachment{make(chan struct{})}
	opened := 0
	for range 2 {
		got, err := a.Attach("x", func(n Node) (Attachment, error) {
			opened++
			if n.Key == nil || n.Host.ID().String() == "" || n.PubSub == nil || n.Context.Err() != nil {
				t.Errorf("%+v", n)
			}
			return at, nil
		})
		if err != nil || got != at || opened != 1 {
			t.Errorf("%v, %v, opened %d times", got, err, opened)
		}
	}
	if _, err := a.Attach("y", func(Node) (Attachment, error) { return nil, errors.New("broken") }); err == nil {
		t.Error("attached what is broken")
	}
	a.node.Load().Close()
	<-at.closed
}

// TestBar takes a worker out of the choice, and wants it back when it is barred no more. What
// its tasks come to is told, but not that an agent failed.
func TestBar(t *testing.T) {
	a := newTestApp(t, nil)
	fail := false
	w := newWorker(t, a, func(s network.Stream, _ wire.TaskRequest) {
		if fail {
			_, _ = io.WriteString(s, "⚠️  Sandbox exited: exit status 3\n")
		} else {
			_, _ = io.WriteString(s, "hello\n"+wire.MarkerNoFiles+"\n")
		}
		_ = s.Close()
	})
	var node Node
	if _, err := a.Attach("x", func(n Node) (Attachment, error) {
		node = n
		return &attachment{make(chan struct{})}, nil
	}); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var judged []bool
	node.Judge(func(worker string, well bool) {
		mu.Lock()
		defer mu.Unlock()
		if worker != w.PeerID {
			t.Errorf("worker %s", worker)
		}
		judged = append(judged, well)
	})
	run := func() error {
		r, err := lease(t, a).Dispatch(t.Context(), Call{Target: router.Request{Model: "m"}, Selector: router.LeastLoaded{}, Prompt: "x"})
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.ReadAll(r)
		return err
	}
	if err := run(); err != nil {
		t.Fatal(err)
	}
	node.Trust(func(worker string) Trust {
		if worker == w.PeerID {
			return Barred
		}
		return Trusted
	})
	if err := run(); !errors.Is(err, router.ErrNoMatch) {
		t.Errorf("barred: %v", err)
	}
	w.publish(t)
	if err := run(); !errors.Is(err, router.ErrNoMatch) {
		t.Errorf("barred, after telemetry: %v", err)
	}
	if got := lease(t, a).Workers(false); len(got) != 1 {
		t.Errorf("it is listed no more: %v", got)
	}
	node.Trust(func(string) Trust { return OnProbation })
	w.publish(t)
	await.Until(t, "the worker is back", func() bool { return run() == nil })
	fail = true
	if err := run(); !errors.Is(err, wire.ErrAgentFailed) {
		t.Errorf("%v", err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(judged, []bool{true, true}) {
		t.Errorf("judged %v", judged)
	}
}

// TestUnreadIsUnjudged closes tasks of which the output was not read to its end: unless that was enough,
// they say nothing of the worker.
func TestUnreadIsUnjudged(t *testing.T) {
	a := newTestApp(t, nil)
	newWorker(t, a, say("ok"+noFiles))
	var well atomic.Int32
	judge := func(_ string, good bool) {
		if !good {
			t.Error("judged as bad")
		}
		well.Add(1)
	}
	a.node.Load().judge.Store(&judge)
	for _, c := range []struct {
		name string
		read func(*Run)
		want int32
	}{
		{"nothing read", func(*Run) {}, 0},
		{"the begin read", func(r *Run) { _, _ = r.Read(make([]byte, 1)) }, 0},
		{"enough", func(r *Run) { r.Enough() }, 1},
		{"all read", func(r *Run) { _, _ = io.ReadAll(r) }, 1},
	} {
		well.Store(0)
		r, err := lease(t, a).Dispatch(t.Context(), call("m"))
		if err != nil {
			t.Fatal(err)
		}
		c.read(r)
		_ = r.Close()
		if got := well.Load(); got != c.want {
			t.Errorf("%s: judged as good %d times, want %d", c.name, got, c.want)
		}
	}
}

// TestJudged counts against a worker only what an honest one cannot bring about.
func TestJudged(t *testing.T) {
	n := new(node)
	var told []bool
	judge := func(_ string, well bool) { told = append(told, well) }
	n.judge.Store(&judge)
	for _, c := range []struct {
		name string
		o    router.Outcome
		err  error
		want []bool
	}{
		{"well", router.Succeeded, nil, []bool{true}},
		{"no frame", router.Failed, fmt.Errorf("%w: %w: output", ErrStream, wire.ErrBadFrame), []bool{false}},
		{"a frame too large", router.Failed, fmt.Errorf("%w: %w", ErrStream, wire.ErrFrameTooLarge), []bool{false}},
		{"other files than announced", router.Failed, fmt.Errorf("%w: %w: %w", ErrArtifact, wire.ErrBadFrame, errHash), []bool{false}},
		{"half a frame before a reset", router.Failed, fmt.Errorf("%w: %w", wire.ErrBadFrame, network.ErrReset), nil},
		{"no time before the first output", router.Failed, fmt.Errorf("%w: %w", ErrStream, os.ErrDeadlineExceeded), nil},
		{"no files came", router.Failed, ErrArtifact, nil},
		{"no room here", router.Unjudged, fmt.Errorf("%w: %w", ErrArtifact, ErrNoRoom), nil},
		{"not ready", router.Failed, ErrUnavailable, nil},
		{"unreachable", router.Failed, ErrUnreachable, nil},
		{"ended early", router.Failed, wire.ErrTruncated, nil},
		{"a failed agent", router.AgentFailed, wire.ErrAgentFailed, nil},
		{"full", router.Refused, wire.ErrCapacity, nil},
		{"a client that left", router.Unjudged, context.Canceled, nil},
		{"an answer that nobody took", router.Unjudged, errUnread, nil},
	} {
		told = nil
		n.judged("w", c.o, c.err)
		if !slices.Equal(told, c.want) {
			t.Errorf("%s: judged %v, want %v", c.name, told, c.want)
		}
	}
}

// TestEntryOfAStranger makes no event: only known workers have some.
func TestEntryOfAStranger(t *testing.T) {
	a := newTestApp(t, nil)
	w := newWorker(t, a, func(s network.Stream, _ wire.TaskRequest) { _ = s.Reset() })
	d := a.node.Load().directory
	sub, err := d.events.Subscribe("test", "")
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	d.entry("stranger", "rating")
	id, err := peer.Decode(w.PeerID)
	if err != nil {
		t.Fatal(err)
	}
	d.entry(id, "rating")
	for {
		ev, err := sub.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ev.Name != EntryAppended {
			continue
		}
		if ev.Peer != w.PeerID {
			t.Errorf("an event of %q", ev.Peer)
		}
		return
	}
}

// TestOpening has a worker announce itself before the services of the app have started: it
// gets no task before they have.
func TestOpening(t *testing.T) {
	d := newDirectory(zap.NewNop)
	d.opening.Store(true)
	d.update(wire.Telemetry{PeerID: "a", Model: "m", MaxTasks: 1, Status: wire.StatusAvailable})
	acquire := func() error {
		s, err := d.router.Acquire(&router.Request{Model: "m"}, router.LeastLoaded{})
		s.Release(router.Unjudged)
		return err
	}
	if err := acquire(); len(d.list(false)) != 1 || !errors.Is(err, router.ErrNoMatch) {
		t.Errorf("opening: %v", err)
	}
	d.open()
	if err := acquire(); err != nil {
		t.Errorf("open: %v", err)
	}
	d.trusts(func(string) Trust { return Barred })
	d.open()
	if err := acquire(); !errors.Is(err, router.ErrNoMatch) {
		t.Errorf("barred: %v", err)
	}
}
