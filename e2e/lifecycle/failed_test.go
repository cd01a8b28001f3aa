// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/internal/freeport"
	"github.com/caddyserver/caddy/v2"
	ma "github.com/multiformats/go-multiaddr"
)

func init() { caddy.RegisterModule(new(refusing)) }

// refusing is an app that does not start.
type refusing struct{}

var errRefusing = errors.New("this app never starts")

// onRefusal is called before the app refuses to start.
var onRefusal atomic.Pointer[func()]

func (*refusing) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "refusing", New: func() caddy.Module { return new(refusing) }}
}

func (*refusing) Start() error {
	if f := onRefusal.Load(); f != nil {
		(*f)()
	}
	return errRefusing
}

func (*refusing) Stop() error { return nil }

// standing is a server whose configuration serves, with two answers under way
// and a peer that is connected. A reload that fails must change none of it.
type standing struct {
	*server
	c             config
	port          int // of the gateway's node
	echo          string
	peer          *witness
	tasks         [2]*task
	chat, execute *stream
	fails         int
}

func newStanding(t *testing.T) *standing {
	t.Helper()
	s := &standing{server: newServer(t), port: freeport.Get(t), peer: newWitness(t), tasks: [2]*task{newTask(t), newTask(t)}}
	s.c = config{
		name:   "good",
		listen: fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", s.port),
		agents: []agent{{key: "echo", label: "hello"}},
	}
	s.load(s.c)
	s.echo = s.awaitWorker("echo")
	s.peer.connect(t, s.node(), ma.P_TCP)
	s.chat, s.execute = s.server.chat("echo", s.tasks[0].prompt), s.server.execute(s.echo, s.tasks[1].prompt)
	s.chat.awaitLine("hello")
	s.execute.awaitLine("hello")
	return s
}

// fail loads a configuration that must be refused with an error that says why.
func (s *standing) fail(c config, why string) {
	s.t.Helper()
	node := s.node().ID
	err := s.try(c)
	if err == nil || !strings.Contains(err.Error(), why) {
		s.t.Fatalf("loading %s: %v, want an error with %q", c.name, err, why)
	}
	s.fails++
	s.awaitName(s.c.name)
	if got := s.node().ID; got != node {
		s.t.Errorf("the gateway's node is %s, was %s", got, node)
	}
	if w, ok := s.worker("echo"); !ok || w.ID != s.echo {
		s.t.Errorf("the agent is %v (online: %t), was %s", w, ok, s.echo)
	}
	s.wantAnswer("echo", "hello")
	for i, answer := range []*stream{s.chat, s.execute} {
		line := fmt.Sprintf("after %d failures", s.fails)
		s.tasks[i].say(line)
		answer.awaitLine(line)
	}
}

// end ends the answers, which are whole, and removes the apps, which then close
// everything: nothing of the failed configurations holds on to it.
func (s *standing) end() {
	s.t.Helper()
	for _, k := range s.tasks {
		k.end()
	}
	s.chat.wantWhole(s.tasks[0].output("hello"))
	s.execute.wantWhole(s.tasks[1].output("hello"))
	if n := s.peer.drops.Load(); n != 0 {
		s.t.Errorf("a peer lost its connection %d times", n)
	}
	s.load(config{name: "without", without: true})
	await(s.t, "the node's port is free", func() bool { return freeport.IsFree(s.port) })
}

// A reload that our apps refuse, at every step of the way, changes nothing.
func TestFailedReload(t *testing.T) {
	s := newStanding(t)
	key := filepath.Join(s.place.dir, "swarm.key")
	if err := os.WriteFile(key, []byte("/key/swarm/psk/1.0.0/\n/base16/\nnot hex\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	elsewhere := s.c.with("listen")
	elsewhere.listen = fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", freeport.Get(t))
	renamed := s.c.with("identity")
	renamed.mesh = "identity other"
	private := s.c.with("swarm_key")
	private.mesh = "swarm_key " + key
	trusting := s.c.with("reputation")
	trusting.app = "reputation off"
	for _, broken := range []struct {
		config
		why string
	}{
		{elsewhere, "changing listen needs a restart"},
		{renamed, "changing identity needs a restart"},
		{private, "is not a swarm key"},
		{trusting, "to switch it off, restart"},
		{s.c.with("agent-listen", agent{key: "echo", label: "other", lines: "listen /ip4/127.0.0.1/tcp/" + fmt.Sprint(freeport.Get(t))}),
			"changing listen needs a restart"},
		{s.c.with("agent-identity", agent{key: "echo", label: "other", lines: "identity other"}), "changing identity needs a restart"},
		{s.c.with("agent-allow", agent{key: "echo", lines: "allow_peers nobody"}), "is not a peer id"},
		{s.c.with("agent-runtime", agent{key: "echo", runtime: "process {\n\t\t\t\tcommand cat\n\t\t\t\tprompt loud\n\t\t\t}"}), "loud"},
		{s.c.with("second-agent", s.c.agents[0], agent{key: "second", label: "second", lines: "capability Upper"}), "capability"},
	} {
		s.fail(broken.config, broken.why)
	}
	s.end()
}

// The order in which Caddy starts its apps is random, so that ours start before
// the one that fails in some of these reloads, and not at all in others.
const attempts = 20

// A reload that another app refuses changes nothing.
func TestFailedReloadElsewhere(t *testing.T) {
	s := newStanding(t)
	c := s.c.with("refused", agent{key: "echo", label: "other"}, agent{key: "second", label: "second"})
	c.apps = []string{"refusing"}
	for range attempts {
		s.fail(c, errRefusing.Error())
	}
	s.end()
}

// A reload in which the HTTP app cannot listen changes nothing.
func TestFailedReloadTakenPort(t *testing.T) {
	s := newStanding(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	c := s.c.with("refused", agent{key: "echo", label: "other"})
	c.sites = fmt.Sprintf("http://:%d {\n\tbind 127.0.0.1\n}", taken.Addr().(*net.TCPAddr).Port)
	for range attempts {
		s.fail(c, "address already in use")
	}
	s.end()
}

// A first configuration that another app refuses leaves nothing open.
func TestFailedFirstLoad(t *testing.T) {
	s := newServer(t)
	c, nodePort, agentPort := removal(t)
	refused := c.with("refused")
	refused.apps = []string{"refusing"}
	for range attempts {
		if err := s.try(refused); err == nil || !strings.Contains(err.Error(), errRefusing.Error()) {
			t.Fatalf("loading: %v", err)
		}
		if !closed() || !freeport.IsFree(nodePort) || !freeport.IsFree(agentPort) {
			t.Fatal("the failed configuration has left something open")
		}
	}
	s.load(c)
	s.awaitWorker("echo")
	s.wantAnswer("echo", "hello")
}

// A port of the mesh that is taken, by TCP or by UDP alone, is an error; it is
// none when the port is free again.
func TestTakenMeshPort(t *testing.T) {
	s := newServer(t)
	c, nodePort, agentPort := removal(t)
	for _, port := range []int{nodePort, agentPort} {
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		tcp, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		s.wantTaken(c, port, tcp)
		udp, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		s.wantTaken(c, port, udp)
	}
	s.load(c)
	s.awaitWorker("echo")
	s.wantAnswer("echo", "hello")
}

// wantTaken wants a configuration to fail because of a port, which it frees.
func (s *server) wantTaken(c config, port int, taken io.Closer) {
	s.t.Helper()
	err := s.try(c)
	taken.Close()
	if err == nil || !strings.Contains(err.Error(), fmt.Sprint(port)) {
		s.t.Fatalf("loading with port %d taken: %v", port, err)
	}
	if !closed() {
		s.t.Error("the failed configuration has left something open")
	}
}
