// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"fmt"
	"slices"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/internal/freeport"
	ma "github.com/multiformats/go-multiaddr"
)

// removal is a gateway and an agent on ports that the tests know.
func removal(t *testing.T) (c config, nodePort, agentPort int) {
	t.Helper()
	nodePort, agentPort = freeport.Get(t), freeport.Get(t)
	return config{
		name:   "with",
		listen: fmt.Sprintf("/ip4/127.0.0.1/tcp/%d /ip4/127.0.0.1/udp/%[1]d/quic-v1", nodePort),
		agents: []agent{{key: "echo", label: "hello",
			lines: fmt.Sprintf("listen /ip4/127.0.0.1/tcp/%d /ip4/127.0.0.1/udp/%[1]d/quic-v1", agentPort)}},
	}, nodePort, agentPort
}

// When our apps are removed, the answers under way come to their end, and then
// everything is closed.
func TestRemove(t *testing.T) {
	for name, begin := range map[string]func(s *server, peer, prompt string) *stream{
		"chat":    func(s *server, _, prompt string) *stream { return s.chat("echo", prompt) },
		"execute": func(s *server, peer, prompt string) *stream { return s.execute(peer, prompt) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			with, nodePort, agentPort := removal(t)
			s.load(with)
			echo := s.awaitWorker("echo")
			k := newTask(t)
			answer := begin(s, echo, k.prompt)
			answer.awaitLine("hello")

			s.load(config{name: "without", without: true})
			k.say("after the removal")
			answer.awaitLine("after the removal")
			if freeport.IsFree(nodePort) || freeport.IsFree(agentPort) {
				t.Error("a port is free before the answer has come to its end")
			}
			k.say("flood")
			k.end()
			answer.wantWhole(k.output("hello"))
			await(t, "the node's port is free", func() bool { return freeport.IsFree(nodePort) })
			await(t, "the agent's port is free", func() bool { return freeport.IsFree(agentPort) })
		})
	}
}

// Apps that are removed and added again while an answer is under way are the
// same as before.
func TestRemoveAndAdd(t *testing.T) {
	s := newServer(t)
	with, nodePort, agentPort := removal(t)
	s.load(with)
	echo, node := s.awaitWorker("echo"), s.node()
	peer := newWitness(t)
	peer.connect(t, node, ma.P_QUIC_V1)
	k := newTask(t)
	answer := s.chat("echo", k.prompt)
	answer.awaitLine("hello")

	s.load(config{name: "without", without: true})
	k.say("removed")
	s.load(with.with("again"))
	k.say("added")
	answer.awaitLine("added")
	again := s.node()
	if again.ID != node.ID || !slices.EqualFunc(again.Addrs, node.Addrs, ma.Multiaddr.Equal) {
		t.Errorf("the node is %v, was %v", again, node)
	}
	if got := s.awaitWorker("echo"); got != echo {
		t.Errorf("the agent is %s, was %s", got, echo)
	}
	k.end()
	answer.wantWhole(k.output("hello"))
	s.wantAnswer("echo", "hello")
	for _, protocol := range []int{ma.P_TCP, ma.P_QUIC_V1} {
		newWitness(t).connect(t, again, protocol)
	}
	if n := peer.drops.Load(); n != 0 {
		t.Errorf("a peer lost its connection %d times", n)
	}
	if freeport.IsFree(nodePort) || freeport.IsFree(agentPort) {
		t.Error("a port is free")
	}
	s.load(config{name: "without", without: true})
	await(t, "the node's port is free", func() bool { return freeport.IsFree(nodePort) })
	await(t, "the agent's port is free", func() bool { return freeport.IsFree(agentPort) })
}

// Apps can be added again in the very moment in which the last answer ends and
// their node and agent close.
func TestRemoveAndAddAtTheEnd(t *testing.T) {
	s := newServer(t)
	with, _, _ := removal(t)
	for i := range attempts {
		s.load(with.with(fmt.Sprintf("with-%d", i)))
		s.awaitWorker("echo")
		k := newTask(t)
		answer := s.chat("echo", k.prompt)
		answer.awaitLine("hello")
		s.load(config{name: fmt.Sprintf("without-%d", i), without: true})
		k.end()
		if i%2 == 1 { // the agent has ended, and the node's last lease is about to
			answer.awaitLine("bye from hello")
		}
	}
	s.load(with.with("last"))
	s.awaitWorker("echo")
	s.wantAnswer("echo", "hello")
}

// Apps that come back elsewhere do not wait for the answers of their predecessors.
func TestRemoveAndAddElsewhere(t *testing.T) {
	s := newServer(t)
	here, hereNode, hereAgent := removal(t)
	there, _, _ := removal(t)
	s.load(here)
	echo, node := s.awaitWorker("echo"), s.node()
	k := newTask(t)
	answer := s.chat("echo", k.prompt)
	answer.awaitLine("hello")
	pid := k.pid()

	s.load(config{name: "without", without: true})
	k.say("removed")
	answer.awaitLine("removed")
	s.load(there.with("there"))
	if err := answer.awaitEnd(); err == nil {
		t.Errorf("the answer of a closed node ended well: %q", answer.output())
	}
	wantGone(t, pid)
	if !freeport.IsFree(hereNode) || !freeport.IsFree(hereAgent) {
		t.Error("the old ports are not free")
	}
	if got := s.node().ID; got != node.ID {
		t.Errorf("the node is %s, was %s", got, node.ID)
	}
	if got := s.awaitWorker("echo"); got != echo {
		t.Errorf("the agent is %s, was %s", got, echo)
	}
	s.wantAnswer("echo", "hello")
}
