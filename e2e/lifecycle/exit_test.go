// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// stubborn is an agent that has a child and does not end when it is asked to.
var stubborn = agent{key: "echo", label: "stubborn", env: "STUBBORN yes"}

// wantGone wants an agent and its child to have ended.
func wantGone(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		await(t, fmt.Sprintf("process %d is gone", pid), func() bool { return !runs(pid) })
	}
}

// A process that is told to end stops its agents when the grace period is over,
// with all that they started. Their answers are no successes.
func TestExit(t *testing.T) {
	const grace, stop = 2 * time.Second, 10 * time.Second
	p := start(t, newPlace(t), config{name: "run", worker: "grace_period " + grace.String(), agents: []agent{stubborn}})
	echo := p.awaitWorker("echo")
	chatting, executing := newTask(t), newTask(t)
	chat, execute := p.chat("echo", chatting.prompt), p.execute(echo, executing.prompt)
	chat.awaitLine("stubborn")
	execute.awaitLine("stubborn")
	pids := []int{chatting.pid(), chatting.child(), executing.pid(), executing.child()}

	began := time.Now()
	p.terminate()
	for _, answer := range []*stream{chat, execute} {
		if err := answer.awaitEnd(); err == nil {
			t.Errorf("the answer of an agent that was stopped ended well: %q", answer.output())
		}
	}
	p.awaitExit()
	if took := time.Since(began); took < grace || took > grace+stop {
		t.Errorf("the end took %v, want at least the grace period of %v and not much more", took, grace)
	}
	wantGone(t, pids...)
}

// A task that ends within the grace period is answered in full.
func TestExitWithinGracePeriod(t *testing.T) {
	c := oneAgent("hello")
	c.worker = "grace_period 1m"
	p := start(t, newPlace(t), c)
	echo := p.awaitWorker("echo")
	chatting, executing := newTask(t), newTask(t)
	chat, execute := p.chat("echo", chatting.prompt), p.execute(echo, executing.prompt)
	chat.awaitLine("hello")
	execute.awaitLine("hello")
	p.terminate()
	await(t, "the agent takes no more tasks", func() bool { w, ok := p.worker("echo"); return !ok || w.Status == "BUSY" })
	for _, k := range []*task{chatting, executing} {
		k.say("flood")
		k.end()
	}
	chat.wantWhole(chatting.output("hello"))
	execute.wantWhole(executing.output("hello"))
	p.awaitExit()
}

// An agent that was removed and only finishes its tasks does not outlive the
// process either.
func TestExitWhileDraining(t *testing.T) {
	c := config{name: "run", worker: "grace_period 2s", agents: []agent{stubborn}}
	p := start(t, newPlace(t), c)
	p.awaitWorker("echo")
	k := newTask(t)
	answer := p.chat("echo", k.prompt)
	answer.awaitLine("stubborn")
	pids := []int{k.pid(), k.child()}
	p.reload(c.with("removed", agent{key: "other", label: "other"}))
	k.say("still here")
	answer.awaitLine("still here")

	p.terminate()
	if err := answer.awaitEnd(); err == nil {
		t.Errorf("the answer of an agent that was stopped ended well: %q", answer.output())
	}
	p.awaitExit()
	wantGone(t, pids...)
}

// A process that is killed takes its agents with it, where the system can do
// that. The next one is the same node, and clears up.
func TestKill(t *testing.T) {
	c, port, _ := removal(t)
	at := newPlace(t)
	p := start(t, at, c)
	echo := p.awaitWorker("echo")
	node := at.peerID(t, "gateway")
	k := newTask(t)
	answer := p.chat("echo", k.prompt)
	answer.awaitLine("hello")
	pid := k.pid()
	p.kill()
	if err := answer.awaitEnd(); err == nil {
		t.Errorf("the answer of a killed process ended well: %q", answer.output())
	}
	if runtime.GOOS == "linux" {
		wantGone(t, pid)
	}
	k.end()

	p = start(t, at, c)
	if got := p.awaitWorker("echo"); got != echo {
		t.Errorf("the agent is %s, was %s", got, echo)
	}
	newWitness(t).connect(t, peer.AddrInfo{ID: node, Addrs: []ma.Multiaddr{
		ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port))}}, ma.P_TCP)
	if left, err := os.ReadDir(at.tasksDir("echo")); err != nil || len(left) != 0 {
		t.Errorf("the folder for tasks holds %v (%v)", left, err)
	}
	p.wantAnswer("echo", "hello")
	p.terminate()
	p.awaitExit()
}

// The identities that the very first start makes are those of every later one.
func TestFirstStart(t *testing.T) {
	for range 8 {
		at := newPlace(t)
		var agents, nodes [2]string
		for i := range agents {
			p := start(t, at, oneAgent("hello"))
			agents[i] = p.awaitWorker("echo")
			nodes[i] = at.peerID(t, "gateway").String()
			p.kill()
		}
		if agents[0] != agents[1] || nodes[0] != nodes[1] {
			t.Errorf("the agent is %s, was %s; the node is %s, was %s", agents[1], agents[0], nodes[1], nodes[0])
		}
	}
}

// Caddy ignores SIGPIPE. Its agents must not: a pipeline of theirs would go on
// without its reader, or complain into the answer.
func TestPipelineOfAgent(t *testing.T) {
	p := start(t, newPlace(t), oneAgent("hello"))
	echo := p.awaitWorker("echo")
	k := newTask(t)
	answer := p.execute(echo, k.prompt)
	answer.awaitLine("hello")
	k.say("pipe")
	k.end()
	answer.wantWhole(k.output("hello"))
}
