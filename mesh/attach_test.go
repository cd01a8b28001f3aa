// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"

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
	node.Bar(func(worker string) bool { return worker == w.PeerID })
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
	node.Bar(func(string) bool { return false })
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
