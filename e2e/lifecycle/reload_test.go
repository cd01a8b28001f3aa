// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/internal/freeport"
	ma "github.com/multiformats/go-multiaddr"
)

// Reloads with other settings lose not a byte of the answers that are under way,
// no task and no connection to a peer.
func TestReload(t *testing.T) {
	s := newServer(t)
	port := freeport.Get(t)
	c := config{
		name:   "zero",
		listen: fmt.Sprintf("/ip4/127.0.0.1/tcp/%d /ip4/127.0.0.1/udp/%[1]d/quic-v1", port),
		agents: []agent{{key: "echo", label: "hello"}},
	}
	s.load(c)
	echo, node := s.awaitWorker("echo"), s.node()
	overTCP, overQUIC := newWitness(t), newWitness(t)
	overTCP.connect(t, node, ma.P_TCP)
	overQUIC.connect(t, node, ma.P_QUIC_V1)

	chatting, executing := newTask(t), newTask(t)
	chat, execute := s.chat("echo", chatting.prompt), s.execute(echo, executing.prompt)
	chat.awaitLine("hello")
	execute.awaitLine("hello")

	for _, name := range []string{"one", "two"} {
		chatting.say("before " + name)
		executing.say("before " + name)
		s.load(c.with(name))
		chatting.say("after " + name)
		executing.say("after " + name)
		chat.awaitLine("after " + name)
		execute.awaitLine("after " + name)

		fresh := newTask(t)
		answer := s.chat("echo", fresh.prompt)
		if got := answer.resp.Header.Get("X-Config"); got != name {
			t.Errorf("configuration %q serves a new request, not %s", got, name)
		}
		answer.awaitLine("hello")
		fresh.end()
		answer.wantWhole(fresh.output("hello"))

		if got := s.node().ID; got != node.ID {
			t.Errorf("the gateway's node is %s, was %s", got, node.ID)
		}
		if got := s.awaitWorker("echo"); got != echo {
			t.Errorf("the agent is %s, was %s", got, echo)
		}
		for _, k := range []*task{chatting, executing} {
			if !runs(k.pid()) {
				t.Error("the reload ended a running agent")
			}
		}
	}
	for _, k := range []*task{chatting, executing} {
		k.say("flood")
		k.end()
	}
	chat.wantWhole(chatting.output("hello"))
	execute.wantWhole(executing.output("hello"))
	if tcp, quic := overTCP.drops.Load(), overQUIC.drops.Load(); tcp+quic != 0 {
		t.Errorf("a peer lost its connection: %d over TCP, %d over QUIC", tcp, quic)
	}
}

// Requests that come all the time are answered across reloads, each by a runtime
// of some configuration that was loaded.
func TestReloadUnderLoad(t *testing.T) {
	s := newServer(t)
	s.load(oneAgent("label-0"))
	s.awaitWorker("echo")
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var answered atomic.Int32
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got, err := s.ask("echo")
				switch {
				case errors.Is(err, errNoConnection): // see awaitName
				case err != nil || !strings.HasPrefix(got, "label-"):
					t.Errorf("the agent says %q (%v)", got, err)
				default:
					answered.Add(1)
				}
			}
		})
	}
	for i := range attempts {
		before := answered.Load()
		s.load(oneAgent(fmt.Sprintf("label-%d", i+1)))
		await(t, "requests are answered", func() bool { return answered.Load() > before+4 })
	}
	close(stop)
	clients.Wait()
	log, err := os.ReadFile(filepath.Join(s.place.dir, "log"))
	if err != nil || bytes.Contains(log, []byte("panic")) {
		t.Errorf("the log tells of a panic (%v)", err)
	}
}
