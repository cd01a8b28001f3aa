// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// What the probe says about itself.
type report struct {
	Env         []string          `json:"env"`
	Status      map[string]string `json:"status"`
	Interfaces  []string          `json:"interfaces"`
	Localhost   []string          `json:"localhost"`
	Writable    []string          `json:"writable"`
	Mounts      map[string]string `json:"mounts"`
	UID         int               `json:"uid"`
	Secrets     map[string]string `json:"secrets"`
	First       bool              `json:"first"`
	ExecutesTmp bool              `json:"executes_tmp"`
	TmpBytes    int               `json:"tmp_bytes"`
	NoFile      uint64            `json:"nofile"`
	Core        uint64            `json:"core"`
}

func TestSandbox(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "inspect", func(r *Runtime) {
		r.Tmpfs = "8MiB"
		r.Env["GREETING"] = "hello world"
	})
	exit, out := f.answer("")
	var got report
	if err := json.Unmarshal([]byte(out), &got); err != nil || exit.Code != 0 {
		t.Fatalf("%+v %v: %s", exit, err, out)
	}
	checkSandbox(t, got)
	for _, variable := range []string{"AGENTFM_MODEL=llama3.2", "AGENTFM_OUTPUT=/tmp/output", "GREETING=hello world"} {
		if !slices.Contains(got.Env, variable) {
			t.Errorf("environment %v lacks %s", got.Env, variable)
		}
	}
	if p := f.ready.Load(); p.spec.init == got.First {
		t.Errorf("the agent is the first process: %v, with an init: %v", got.First, p.spec.init)
	}
}

// checkSandbox checks what a container with 8 MiB of tmpfs may do.
func checkSandbox(t *testing.T, got report) {
	t.Helper()
	for name, want := range map[string]string{
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapBnd": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if got.Status[name] != want {
			t.Errorf("%s is %s, want %s", name, got.Status[name], want)
		}
	}
	if got.UID != 65534 { // the image of the probe names no user
		t.Errorf("the agent's user is %d, want 65534", got.UID)
	}
	if !slices.Contains(strings.Split(got.Mounts["/"], ","), "ro") {
		t.Errorf("the root is mounted %s, not read-only", got.Mounts["/"])
	}
	if !slices.Equal(got.Interfaces, []string{"lo"}) {
		t.Errorf("network interfaces are %v, want lo alone", got.Interfaces)
	}
	if !slices.Contains(got.Localhost, "127.0.0.1") {
		t.Errorf("localhost is %v, want 127.0.0.1", got.Localhost)
	}
	if want := []string{"/data", "/tmp", "/tmp/output", "/dev/shm"}; !slices.Equal(got.Writable, want) {
		t.Errorf("writable are %v, want %v", got.Writable, want)
	}
	if got.NoFile != maxFiles || got.Core != 0 {
		t.Errorf("limits are %d files and core %d, want %d and 0", got.NoFile, got.Core, maxFiles)
	}
	if got.ExecutesTmp || got.TmpBytes < 1<<20 || got.TmpBytes > 8<<20 {
		t.Errorf("/tmp runs programs: %v, and takes %d bytes, want at most 8MiB", got.ExecutesTmp, got.TmpBytes)
	}
	for _, dir := range []string{"/tmp", "/data", "/dev/shm"} {
		options := strings.Split(got.Mounts[dir], ",")
		for _, want := range []string{"rw", "nosuid", "nodev", "noexec", "size=8192k"} {
			if !slices.Contains(options, want) {
				t.Errorf("%s is mounted %v, without %s", dir, options, want)
			}
		}
	}
}

// The probe tries its ways out of a container, and none leads anywhere.
func TestEscapes(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "escape", nil)
	exit, out := f.answer("")
	var steps map[string]string
	if err := json.Unmarshal([]byte(out), &steps); err != nil || exit.Code != 0 || len(steps) < 60 {
		t.Fatalf("%+v %v, %d steps: %s", exit, err, len(steps), out)
	}
	for step, refusal := range steps {
		if refusal == "" {
			t.Errorf("%s: the agent may", step)
		}
	}
}

// Without an init on the engine, the agent is the first process, and works too.
func TestNoInit(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "inspect", nil)
	f.ready.Load().spec.init = false
	exit, out := f.answer("")
	var got report
	if err := json.Unmarshal([]byte(out), &got); err != nil || exit.Code != 0 || !got.First {
		t.Errorf("%+v %v, first %v", exit, err, got.First)
	}
}
