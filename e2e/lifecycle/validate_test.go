// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// engine is a socket where a Docker engine could be. It counts who connects.
type engine struct {
	path  string
	calls atomic.Int32
}

func newEngine(t *testing.T) *engine {
	t.Helper()
	dir, err := os.MkdirTemp("", "engine") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	e := &engine{path: filepath.Join(dir, "sock")}
	l, err := net.Listen("unix", e.path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			e.calls.Add(1)
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return e
}

// agent returns an agent that runs on the engine.
func (e *engine) agent(key string) agent {
	return agent{key: key, runtime: "docker {\n\t\t\t\timage lifecycle:none\n\t\t\t\thost unix://" + e.path + "\n\t\t\t}"}
}

// wantUnused wants that nobody has connected.
func (e *engine) wantUnused(t *testing.T) {
	t.Helper()
	if n := e.calls.Load(); n != 0 {
		t.Errorf("%d connections to the Docker engine", n)
	}
}

// validation is a gateway on a port that is taken, an agent as it runs, and
// agents that are new: each would leave a trace if it were opened.
func validation(t *testing.T, e *engine) (running, validated config, port int) {
	t.Helper()
	running, port, _ = removal(t)
	return running, running.with("validated", running.agents[0], e.agent("docker"), agent{key: "fresh", label: "fresh"}), port
}

// A validation beside the running server opens nothing and writes nothing.
func TestValidate(t *testing.T) {
	s, e := newServer(t), newEngine(t)
	running, validated, _ := validation(t, e)
	s.load(running)
	echo, node := s.awaitWorker("echo"), s.node().ID
	k := newTask(t)
	answer := s.chat("echo", k.prompt)
	answer.awaitLine("hello")
	before, home := files(t, s.place.storage()), files(t, caddy.AppDataDir())

	var c caddy.Config
	if err := caddy.StrictUnmarshalJSON(validated.json(t, s.place), &c); err != nil {
		t.Fatal(err)
	}
	if err := caddy.Validate(&c); err != nil {
		t.Fatal(err)
	}
	k.say("after the validation")
	answer.awaitLine("after the validation")
	k.end()
	answer.wantWhole(k.output("hello"))
	s.wantAnswer("echo", "hello")
	if got := s.node().ID; got != node {
		t.Errorf("the node is %s, was %s", got, node)
	}
	if got := s.awaitWorker("echo"); got != echo {
		t.Errorf("the agent is %s, was %s", got, echo)
	}
	e.wantUnused(t)
	if after := files(t, s.place.storage()); !maps.Equal(before, after) {
		t.Errorf("the storage has changed: %v, was %v", names(after), names(before))
	}
	if after := files(t, caddy.AppDataDir()); !maps.Equal(home, after) {
		t.Errorf("the data folder has changed: %v, was %v", names(after), names(home))
	}
	s.load(validated) // the engine would have noticed
	await(t, "the agent asks for its engine", func() bool { return e.calls.Load() > 0 })
}

// A validation before anything has ever run makes no identity.
func TestValidateFresh(t *testing.T) {
	s, e := newServer(t), newEngine(t)
	_, validated, port := validation(t, e)
	taken, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	var c caddy.Config
	if err := caddy.StrictUnmarshalJSON(validated.json(t, s.place), &c); err != nil {
		t.Fatal(err)
	}
	if err := caddy.Validate(&c); err != nil {
		t.Fatal(err)
	}
	e.wantUnused(t)
	got := files(t, s.place.dir)
	delete(got, filepath.Join(s.place.dir, "log"))
	if len(got) != 0 {
		t.Errorf("the validation wrote %v", names(got))
	}
}

// The validate command, as an operator runs it beside the server on the same
// data, opens nothing and writes nothing; nor does it where there is no data yet.
func TestValidateCommand(t *testing.T) {
	e := newEngine(t)
	running, validated, _ := validation(t, e)
	p := start(t, newPlace(t), running)
	echo := p.awaitWorker("echo")
	k := newTask(t)
	answer := p.chat("echo", k.prompt)
	answer.awaitLine("hello")
	before := still(files(t, p.place.data()))

	p.place.validate(t, validated)
	k.say("after the validation")
	answer.awaitLine("after the validation")
	k.end()
	answer.wantWhole(k.output("hello"))
	p.wantAnswer("echo", "hello")
	if got := p.awaitWorker("echo"); got != echo {
		t.Errorf("the agent is %s, was %s", got, echo)
	}
	if after := still(files(t, p.place.data())); !maps.Equal(before, after) {
		t.Errorf("the data has changed: %v, was %v", names(after), names(before))
	}

	fresh := place{dir: t.TempDir(), port: p.place.port}
	fresh.validate(t, validated)
	for name := range files(t, fresh.data()) {
		if filepath.Ext(name) == ".key" || strings.Contains(name, "agentfm") {
			t.Errorf("the validation wrote %s", name)
		}
	}
	e.wantUnused(t)
}

// names are the paths of files, for messages.
func names(files map[string]string) []string {
	var out []string
	for name := range files {
		out = append(out, name)
	}
	return out
}

// still leaves those out of files that a process which runs writes at any time.
func still(files map[string]string) map[string]string {
	maps.DeleteFunc(files, func(name, _ string) bool {
		return strings.Contains(name, "/task-store/") || strings.Contains(name, "/ledger/")
	})
	return files
}
