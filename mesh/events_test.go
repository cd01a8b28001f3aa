// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// publish publishes events of the peers 1 to n.
func publish(e *Events, n int) {
	for i := range n {
		e.Publish(Event{Name: WorkerOnline, Peer: strconv.Itoa(i + 1)})
	}
}

// subscribe returns a subscription that ends with the test.
func subscribeTo(t *testing.T, e *Events, owner, lastID string) *Subscription {
	t.Helper()
	s, err := e.Subscribe(owner, lastID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// rest returns the peers of the events that there are for s, and its error; nil
// when it would wait.
func rest(s *Subscription) (string, error) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var peers []string
	for {
		ev, err := s.Next(ctx)
		switch {
		case errors.Is(err, context.Canceled):
			return strings.Join(peers, " "), nil
		case err != nil:
			return strings.Join(peers, " "), err
		}
		peers = append(peers, ev.Peer)
	}
}

func TestEventsReplay(t *testing.T) {
	e := NewEvents()
	publish(e, 3)
	id := func(n any) string { return fmt.Sprintf("%s-%v", e.epoch, n) }
	for lastID, want := range map[string]string{
		"":                     "",
		id(1):                  "2 3",
		id(2):                  "3",
		id(3):                  "",
		id(0):                  "1 2 3",
		id(4):                  "1 2 3", // not yet
		id("x"):                "1 2 3",
		id("-1"):               "1 2 3",
		id(""):                 "1 2 3",
		id(uint64(1<<64 - 1)):  "1 2 3",
		id("1-1"):              "1 2 3",
		"earlier-3":            "1 2 3", // of an earlier process
		"\x00":                 "1 2 3",
		strings.Repeat("9", 9): "1 2 3",
	} {
		s := subscribeTo(t, e, "owner", lastID)
		if got, err := rest(s); got != want || err != nil {
			t.Errorf("after %q: got %q, %v, want %q", lastID, got, err, want)
		}
	}
	s := subscribeTo(t, e, "owner", id(2))
	if ev, err := s.Next(t.Context()); err != nil || ev.ID != id(3) || ev.Name != WorkerOnline {
		t.Errorf("got %+v, %v", ev, err)
	}
}

// TestEventsForget wants what is too old to be given up, and who falls behind to
// be told.
func TestEventsForget(t *testing.T) {
	e := NewEvents()
	slow := subscribeTo(t, e, "owner", "")
	publish(e, keptEvents)
	keeping := subscribeTo(t, e, "owner", e.epoch+"-0")
	publish(e, 1)
	if got, err := rest(slow); got != "" || !errors.Is(err, ErrSlow) {
		t.Errorf("slow: got %.20q, %v", got, err)
	}
	if _, err := rest(keeping); !errors.Is(err, ErrSlow) {
		t.Errorf("one event too slow: %v", err)
	}
	for _, lastID := range []string{e.epoch + "-0", "earlier-1", e.epoch + "-1"} {
		s := subscribeTo(t, e, "owner", lastID)
		if got, err := rest(s); err != nil || !strings.HasPrefix(got, "2 3 ") || len(strings.Fields(got)) != keptEvents {
			t.Errorf("after %s: got %.20q (%d), %v", lastID, got, len(strings.Fields(got)), err)
		}
	}
}

func TestEventsEnd(t *testing.T) {
	e := NewEvents()
	for name, end := range map[string]func(){"cut": e.Cut, "closed": e.Close} {
		s := subscribeTo(t, e, "owner", "")
		got := make(chan error)
		go func() { _, err := s.Next(t.Context()); got <- err }()
		end()
		if err := <-got; !errors.Is(err, ErrEventsOver) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "closed" {
			if _, err := e.Subscribe("owner", ""); !errors.Is(err, ErrEventsOver) {
				t.Errorf("after Close: %v", err)
			}
			return
		}
		after := subscribeTo(t, e, "owner", "")
		publish(e, 1)
		if got, err := rest(after); got != "1" || err != nil {
			t.Errorf("after Cut: %q, %v", got, err)
		}
	}
}

func TestEventsSubscribers(t *testing.T) {
	e := NewEvents()
	var subs []*Subscription
	for i := range maxSubscribers {
		s, err := e.Subscribe(strconv.Itoa(i/maxSubscriptions), "")
		if err != nil {
			t.Fatal(i, err)
		}
		subs = append(subs, s)
	}
	if _, err := e.Subscribe("another", ""); !errors.Is(err, ErrSubscribers) {
		t.Errorf("one too many: %v", err)
	}
	subs[len(subs)-1].Close()
	subs[len(subs)-1].Close()
	if _, err := e.Subscribe("0", ""); !errors.Is(err, ErrSubscriptions) {
		t.Errorf("one too many of an owner: %v", err)
	}
	for _, s := range subs {
		s.Close()
	}
	if e.total != 0 || len(e.byOwner) != 0 {
		t.Errorf("%d subscribers, %d owners are left", e.total, len(e.byOwner))
	}
}

// TestEventsConcurrent has many read what many write; each reader sees all, in
// order.
func TestEventsConcurrent(t *testing.T) {
	e := NewEvents()
	const writers, each, readers = 4, 100, 8
	var running sync.WaitGroup
	for range readers {
		s := subscribeTo(t, e, "owner", "")
		running.Go(func() {
			for i := range writers * each {
				ev, err := s.Next(t.Context())
				if want := fmt.Sprintf("%s-%d", e.epoch, i+1); err != nil || ev.ID != want {
					t.Errorf("got %s, %v, want %s", ev.ID, err, want)
					return
				}
			}
		})
	}
	for range writers {
		running.Go(func() { publish(e, each) })
	}
	running.Wait()
}

// TestDirectoryEvents wants an event for each change, and none without one.
func TestDirectoryEvents(t *testing.T) {
	d := newDirectory(zap.NewNop)
	now := time.Unix(1000, 0)
	d.now = func() time.Time { return now }
	s := subscribeTo(t, d.events, "owner", "")
	say := func(id string) { d.update(wire.Telemetry{PeerID: id, AgentName: "n", Model: "m", MaxTasks: 1}) }
	say("a")
	say("a")
	say("b")
	d.offline("a")
	d.offline("a")
	d.offline("nobody")
	say("a")
	now = now.Add(workerStale + time.Second)
	d.expire()
	d.expire()
	if d.online() != 0 {
		t.Errorf("%d are online", d.online())
	}
	var got []string
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for {
		ev, err := s.Next(ctx)
		if err != nil {
			break
		}
		if ev.Agent != "n" || ev.Model != "m" {
			t.Errorf("got %+v", ev)
		}
		got = append(got, ev.Name+" "+ev.Peer)
	}
	want := []string{"worker_online a", "worker_online b", "worker_offline a", "worker_online a"}
	if len(got) != 6 || strings.Join(got[:4], ", ") != strings.Join(want, ", ") {
		t.Errorf("got %q", got)
	}
}

// TestNodeEvents wants the node's end to end a subscription whose lease has
// ended, and not a subscription to hold the node.
func TestNodeEvents(t *testing.T) {
	a := newTestApp(t, nil)
	l, err := a.Lease()
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Events("owner", "")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	l.Release()
	w := newPeer(t, a)
	w.publish(t)
	if ev, err := s.Next(t.Context()); err != nil || ev.Name != WorkerOnline || ev.Peer != w.PeerID || ev.Agent != "a" {
		t.Errorf("got %+v, %v", ev, err)
	}
	_ = w.Close()
	if ev, err := s.Next(t.Context()); err != nil || ev.Name != WorkerOffline || ev.Peer != w.PeerID {
		t.Errorf("got %+v, %v", ev, err)
	}
	n := a.node.Load()
	_ = n.Destruct()
	if _, err := s.Next(t.Context()); !errors.Is(err, ErrEventsOver) {
		t.Errorf("after the node's end: %v", err)
	}
	await.Until(t, "the node is closed", func() bool { return live.Load() != n })
}
