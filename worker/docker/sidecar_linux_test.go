// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/go-units"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// beside has a runtime use sidecars, as where Caddy is not root.
func beside(r *Runtime) {
	r.beside = func() (string, error) { return probeProgram, checkProgram(probeProgram) }
}

// eachWay runs a test for each way into a container.
func eachWay(t *testing.T, test func(t *testing.T, way func(*Runtime))) {
	t.Parallel()
	for name, way := range map[string]func(*Runtime){"itself": func(*Runtime) {}, "sidecar": beside} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, way)
		})
	}
}

// With a sidecar, what is served is there before the agent begins, for certain.
func TestSidecarIsThereFirst(t *testing.T) {
	t.Parallel()
	f := startProbe(t, fmt.Sprint("first ", modelPort), func(r *Runtime) {
		r.Network = &Network{Mode: networkModel, URL: "http://127.0.0.1:1"}
		beside(r)
	})
	for range 3 {
		if exit, out := f.answer("x"); exit.Code != 0 || !strings.HasPrefix(out, "0 ") {
			t.Errorf("%+v, refused %s", exit, out)
		}
	}
	if left, err := os.ReadDir(filesHome(f.agent.PeerID)); err == nil && len(left) > 0 {
		t.Errorf("left are %v", left)
	}
}

// The sidecar of a task has ended when the agent runs, and is gone when the task is;
// however that ends.
func TestSidecarEnds(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "block", func(r *Runtime) {
		r.Network = &Network{Mode: networkModel, URL: "http://127.0.0.1:1"}
		beside(r)
	})
	task, out := f.task("x")
	stop, done := f.start(task)
	out.await(t, "waiting")
	eventually(t, "its program has ended", func() bool {
		found, err := containers(t.Context(), f.client(), labelSidecar+"="+task.ID+".way")
		return err == nil && len(found) == 1 && found[0].State == "exited"
	})
	if err := sweep(t.Context(), f.client(), f.agent.PeerID, f.logger); err != nil {
		t.Error(err)
	}
	f.wantContainers(2) // it is not taken for a leftover
	stop(errTest)
	<-done
	f.wantContainers(0)

	// what an earlier process has left
	p := f.ready.Load()
	a, err := p.openSidecar(t.Context(), "left.way")
	if err != nil {
		t.Fatal(err)
	}
	live.remove(liveKey{f.agent.PeerID, "left.way"})
	if err := sweep(t.Context(), f.client(), f.agent.PeerID, f.logger); err != nil {
		t.Error(err)
	}
	f.wantContainers(0)
	a.release()

	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.openSidecar(over, "over.way"); err == nil {
		t.Error("a sidecar begins when its time is over")
	}
	p.spec.program = f.t.TempDir() // no program
	task, _ = f.task("x")
	if _, err := f.Run(t.Context(), task); err == nil || !strings.Contains(err.Error(), "opening a way into the container's network") {
		t.Errorf("Run returned %v", err)
	}
}

// A sidecar has less than an agent.
func TestSidecarSandbox(t *testing.T) {
	s := (&spec{agent: worker.Agent{PeerID: "p"}, image: "i", user: "0", network: &outlet{mode: networkModel, port: 1}, program: "/caddy",
		ulimits: []units.Ulimit{{Name: "nofile", Soft: 9, Hard: 9}, {Name: "nproc", Soft: 7, Hard: 8}}})
	c, h := s.sidecarConfig("x"), s.sidecarHost("/d")
	if c.User != nobody || len(c.Env) > 0 || h.NetworkMode != networkNone || !h.ReadonlyRootfs || h.Memory != sidecarMemory || len(h.Mounts) != 2 || h.CapDrop[0] != "ALL" {
		t.Errorf("%+v %+v", c, h)
	}
	if got := fmt.Sprint(h.Ulimits); got != "[nofile=1024:1024 core=0:0 nproc=7:8]" {
		t.Errorf("its limits are %s", got)
	}
	for _, m := range h.Mounts {
		if !m.ReadOnly {
			t.Errorf("%+v", m)
		}
	}
}

func TestCheckProgram(t *testing.T) {
	engineHost(t)
	if err := buildProbe(); err != nil {
		t.Fatal(err)
	}
	if err := checkProgram(probeProgram); err != nil {
		t.Error(err)
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"/bin/sh": "CGO_ENABLED=0", text: "reading ", filepath.Join(text, "x"): "not a directory"} {
		if err := checkProgram(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}

// A model server whose way in is a sidecar, and who gets another one with its next container.
func TestSidecarServe(t *testing.T) {
	t.Parallel()
	c := serving(t, testAgent(t), beside)
	if got := c.chat("hello"); !strings.Contains(got, "hello") {
		t.Errorf("%s", got)
	}
	c.wantContainers(2)
	found, err := containers(t.Context(), c.client(), labelAgent+"="+c.agent.PeerID, labelSidecar)
	if err != nil || len(found) != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	if err := c.client().ContainerKill(t.Context(), found[0].ID, "KILL"); err != nil {
		t.Fatal(err)
	}
	before := found[0].ID
	eventually(t, "there is another way in", func() bool {
		found, err := containers(t.Context(), c.client(), labelAgent+"="+c.agent.PeerID, labelSidecar)
		return err == nil && len(found) == 1 && found[0].ID != before && found[0].State == "running"
	})
	eventually(t, "it answers again", func() bool {
		_, up := (*server)(c.Runtime).Offer()
		return up
	})
	if got := c.chat("hello"); !strings.Contains(got, "hello") {
		t.Errorf("%s", got)
	}
}
