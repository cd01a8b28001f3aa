// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/internal/freeport"
)

// oneAgent is a gateway and the agent "echo", which says that label.
func oneAgent(label string) config {
	return config{name: label, agents: []agent{{key: "echo", label: label}}}
}

// missing is an agent whose runtime cannot be made ready.
func missing(t *testing.T) agent {
	return agent{key: "echo", runtime: "process {\n\t\t\t\tcommand " + filepath.Join(t.TempDir(), "missing") + "\n\t\t\t}"}
}

// awaitAnswer waits until the agent answers with its new label. Only the old one
// may answer until then.
func (s *server) awaitAnswer(label, old string) {
	s.t.Helper()
	await(s.t, "agent says "+label, func() bool {
		got, err := s.ask("echo")
		if err != nil || got != label && got != old {
			s.t.Fatalf("the agent says %q (%v), want %q or %q", got, err, label, old)
		}
		return got == label
	})
}

// An agent that has changed drains: its tasks end as they began, new ones run
// with the new command.
func TestChangeAgent(t *testing.T) {
	s := newServer(t)
	s.load(oneAgent("first"))
	echo := s.awaitWorker("echo")
	before := newTask(t)
	running := s.chat("echo", before.prompt)
	running.awaitLine("first")

	s.load(oneAgent("second"))
	s.awaitAnswer("second", "first")
	after := newTask(t)
	fresh := s.execute(echo, after.prompt)
	fresh.awaitLine("second")
	before.say("still here")
	running.awaitLine("still here")
	before.end()
	after.end()
	running.wantWhole(before.output("first"))
	fresh.wantWhole(after.output("second"))
	if got := s.awaitWorker("echo"); got != echo {
		t.Errorf("the agent is %s, was %s", got, echo)
	}
}

// An agent that is removed finishes its tasks and takes no more, then its host
// closes; the gateway and the other agents stay.
func TestRemoveAgent(t *testing.T) {
	s := newServer(t)
	c, _, port := removal(t)
	other := agent{key: "other", label: "other"}
	s.load(c.with("both", append(c.agents, other)...))
	s.awaitWorker("echo")
	s.awaitWorker("other")
	k := newTask(t)
	running := s.chat("echo", k.prompt)
	running.awaitLine("hello")

	s.load(c.with("one", other))
	await(t, "the agent takes no tasks", func() bool { w, ok := s.worker("echo"); return !ok || w.Status == "BUSY" })
	if got, err := s.ask("echo"); err == nil {
		t.Errorf("the removed agent says %q", got)
	}
	s.wantAnswer("other", "other")
	k.say("still here")
	running.awaitLine("still here")
	if freeport.IsFree(port) {
		t.Error("the agent's port is free before its task has come to its end")
	}
	k.say("flood")
	k.end()
	running.wantWhole(k.output("hello"))
	await(t, "the agent's port is free", func() bool { return freeport.IsFree(port) })
	await(t, "the agent is gone", func() bool { _, ok := s.worker("echo"); return !ok })
	s.wantAnswer("other", "other")
}

// A reload that changes allow_peers holds for the next task, also while the
// runtime that came with it is not ready.
func TestAllowPeers(t *testing.T) {
	s := newServer(t)
	c := oneAgent("hello")
	s.load(c)
	echo := s.awaitWorker("echo")
	gateway := s.node().ID.String()
	k := newTask(t)
	running := s.chat("echo", k.prompt)
	running.awaitLine("hello")
	for i, step := range []struct{ allowed, ready bool }{
		{false, true}, {true, true}, {false, false}, {true, false}, {false, true}, {true, true},
	} {
		changed := agent{key: "echo", label: "hello"}
		if !step.ready {
			changed = missing(t)
		}
		changed.lines = "allow_peers " + gateway
		if !step.allowed {
			changed.lines = "allow_peers " + echo // some other peer id
		}
		s.load(c.with(fmt.Sprintf("allow-%d", i), changed))
		got, err := s.ask("echo")
		switch {
		case step.allowed && (err != nil || got != "hello"):
			t.Errorf("%+v: the gateway is told %q (%v)", step, got, err)
		case !step.allowed && (err == nil || !strings.Contains(err.Error(), "not on the worker's list")):
			t.Errorf("%+v: the gateway is told %q (%v)", step, got, err)
		}
	}
	k.end()
	running.wantWhole(k.output("hello"))
}

// An agent whose new runtime cannot be made ready goes on with the old one,
// until a configuration comes whose can.
func TestRuntimeNotReady(t *testing.T) {
	s := newServer(t)
	s.load(oneAgent("first"))
	echo := s.awaitWorker("echo")
	k := newTask(t)
	running := s.chat("echo", k.prompt)
	running.awaitLine("first")

	s.load(config{name: "missing", agents: []agent{missing(t)}})
	for range 5 {
		s.wantAnswer("echo", "first")
	}
	if got := s.awaitWorker("echo"); got != echo {
		t.Errorf("the agent is %s, was %s", got, echo)
	}
	s.load(oneAgent("second"))
	s.awaitAnswer("second", "first")
	k.end()
	running.wantWhole(k.output("first"))
}

// A reload that fails does not leave its runtime in place of the one that still
// stands in for a runtime which is not ready.
func TestRuntimeNotReadyThenFailedReload(t *testing.T) {
	s := newServer(t)
	s.load(oneAgent("first"))
	s.awaitWorker("echo")
	s.load(config{name: "missing", agents: []agent{missing(t)}})

	refused := oneAgent("refused")
	refused.apps = []string{"refusing"}
	// Where our app has been started by then, its runtime gets the time to be ready.
	began := false
	inTime := func() {
		for range 20 {
			if got, _ := s.ask("echo"); got == "refused" {
				began = true
				return
			}
		}
	}
	onRefusal.Store(&inTime)
	defer onRefusal.Store(nil)
	for i := 0; i < attempts && !began; i++ {
		if err := s.try(refused); err == nil {
			t.Fatal("the reload did not fail")
		}
	}
	s.awaitName("missing")
	s.wantAnswer("echo", "first")
}
