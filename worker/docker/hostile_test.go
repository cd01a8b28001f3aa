// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// Agents that take all they can, at the same time, and one beside them that works.
func TestExhaustion(t *testing.T) {
	t.Parallel()
	for mode, most := range map[string]int{
		"inodes":    minTmpfsFiles, // of 1 MiB
		"open":      maxFiles,
		"spin 1500": 75, // percent of a processor, of which it may have half
		"fork":      63,
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			f := startProbe(t, mode, func(r *Runtime) {
				r.Tmpfs, r.CPUs, r.PIDs = "1MiB", 0.5, 64
				r.Env["GOMAXPROCS"] = "4"
			})
			exit, got := f.answer("")
			if n, err := strconv.Atoi(got); exit.Code != 0 || err != nil || n < 1 || n > most {
				t.Errorf("%+v, %q, want at most %d", exit, got, most)
			}
		})
	}
	t.Run("neighbour", func(t *testing.T) {
		t.Parallel()
		if exit, got := startProbe(t, "argument", nil).answer("all is well"); exit.Code != 0 || got != "all is well" {
			t.Errorf("%+v, %q", exit, got)
		}
	})
}

// An agent that tells all that it can read tells nothing of its operator, and nothing of
// other tasks.
func TestNothingToTell(t *testing.T) {
	const canary = "canary-of-"
	t.Setenv("AGENTFM_TEST_CANARY", canary+"the-environment")
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	t.Setenv("AGENTFM_TEST_MINE", "its own secret")
	dir := folder(t, map[string]string{"key": canary + "a-file"})

	// Another task of the same agent, and one of another agent, run meanwhile.
	start := func(f *fixture) func() {
		task, out := f.task(canary + "a-prompt")
		if err := os.WriteFile(filepath.Join(task.OutputDir, "left"), []byte(canary+"a-task"), 0o644); err != nil {
			t.Fatal(err)
		}
		cancel, done := f.start(task)
		out.await(t, "waiting")
		return func() { cancel(errTest); <-done }
	}
	set := func(r *Runtime) { r.Secrets = map[string]string{"key": filepath.Join(dir, "key")} }
	other := startProbe(t, "block", func(r *Runtime) { set(r); r.Env["KEY"] = canary + "another-agent" })
	f := startProbe(t, "block", func(r *Runtime) { r.Secrets = map[string]string{"mine": "{env.AGENTFM_TEST_MINE}"} })
	defer start(other)()
	defer start(f)()

	dumping := &Runtime{Image: f.Image, Env: map[string]string{"PROBE": "dump"}, Secrets: map[string]string{"mine": "{env.AGENTFM_TEST_MINE}"}}
	if _, err := tryPrepare(t, dumping, f.agent); err != nil {
		t.Fatal(err)
	}
	_, out := f.task("")
	exit, err := dumping.Run(t.Context(), worker.Task{ID: "dump", Output: out, OutputDir: t.TempDir()})
	if err != nil || exit.Code != 0 {
		t.Fatalf("%+v, %v", exit, err)
	}
	for _, want := range []string{"its own secret", "/proc/1/status: "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%d bytes do not have %q", len(out.String()), want)
		}
	}
	if _, found, leaked := strings.Cut(out.String(), canary); leaked {
		t.Errorf("the agent knows: %s%.40s", canary, found)
	}
}
