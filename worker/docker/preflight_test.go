// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/system"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestRuncCVEs(t *testing.T) {
	const leaky, later = "CVE-2024-21626", "CVE-2025-31133 CVE-2025-52565 CVE-2025-52881"
	for version, want := range map[string]string{
		"1.1.5+ds1":  leaky + " " + later,
		"v1.1.11":    leaky + " " + later,
		"1.0.0-rc93": leaky + " " + later,
		"1.1.12":     later,
		"1.2.7":      later,
		"1.2.8":      "",
		"1.2.9":      "",
		"1.3.0-rc.1": later,
		"1.3.2":      later,
		"1.3.3":      "",
		"1.4.0-rc.2": later,
		"1.4.0-rc.3": "",
		"1.4.0":      "",
		"2.0.0":      "",
		"N/A":        "",
		"":           "",
	} {
		if got := strings.Join(runcCVEs(version), " "); got != want {
			t.Errorf("runc %q: %q, want %q", version, got, want)
		}
	}
}

func TestWeaknesses(t *testing.T) {
	runc := func(version string) types.Version {
		return types.Version{Components: []types.ComponentVersion{{Name: "Engine", Version: "20.10"}, {Name: "runc", Version: version}}}
	}
	for _, tc := range []struct {
		name    string
		options []string
		runtime string
		version types.Version
		want    string // in the one weakness; empty: none
	}{
		{"all is well", []string{"name=apparmor", "name=seccomp,profile=builtin"}, "runc", runc("1.3.3"), ""},
		{"old runc", []string{"name=seccomp,profile=default"}, "runc", runc("1.1.5+ds1"), "runc 1.1.5+ds1 of the Docker engine is, by its version, open to CVE-2024-21626, CVE-2025-31133"},
		{"old runc that is not used", []string{"name=seccomp,profile=default"}, "runsc", runc("1.1.5"), ""},
		{"old runc of Podman", []string{"name=seccomp,profile=default"}, "runc", types.Version{Components: []types.ComponentVersion{
			{Name: "Podman Engine", Version: "4.3.1"}, {Name: "OCI Runtime (runc)", Version: "runc version 1.1.5+ds1\ncommit: 1.1.5\n"},
		}}, "runc 1.1.5+ds1 of the Docker engine"},
		{"no runc", []string{"name=seccomp,profile=default"}, "runc", types.Version{}, ""},
		{"no seccomp", []string{"name=apparmor"}, "runc", runc("1.3.3"), "has no seccomp"},
	} {
		got := weaknesses(system.Info{SecurityOptions: tc.options}, tc.runtime, tc.version)
		if (tc.want == "") != (len(got) == 0) || len(got) > 1 || tc.want != "" && !strings.Contains(got[0], tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestSeccompFor(t *testing.T) {
	for option, want := range map[string]bool{
		"name=seccomp,profile=builtin":               true,
		"name=seccomp,profile=default":               true,
		"name=seccomp,profile=unconfined":            true,
		"name=seccomp":                               true,
		"name=seccomp,profile=/etc/docker/ours.json": false,
		"name=apparmor":                              false,
	} {
		got, err := seccompFor(system.Info{SecurityOptions: []string{"name=cgroupns", option}})
		if err != nil || (got != "") != (want && runtime.GOOS == "linux") {
			t.Errorf("%s: %d bytes, %v", option, len(got), err)
		}
		if got != "" && (strings.Contains(got, "io_uring") || strings.Contains(got, "ptrace") || !strings.Contains(got, "futex")) {
			t.Errorf("profile is %s", got)
		}
	}
}

// Podman gets the profile as a file, which goes with the container.
func TestSeccompOfPodman(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	p := newFakeEngine().prepared()
	p.spec.seccomp = "{}"
	if got := p.spec.commonHost().SecurityOpt; !slices.Equal(got, []string{"no-new-privileges", "seccomp={}"}) {
		t.Errorf("options are %q", got)
	}
	p.spec.podman = true
	host := p.spec.commonHost()
	drop, err := p.place(host, "c", nil)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(filesHome("fake"), "c", "seccomp.json")
	if b, err := os.ReadFile(file); err != nil || string(b) != "{}" || !slices.Equal(host.SecurityOpt, []string{"no-new-privileges", "seccomp=" + file}) {
		t.Errorf("options are %q; the file has %q (%v)", host.SecurityOpt, b, err)
	}
	drop()
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("left: %v", err)
	}
}

// The real engine tells what the warnings need.
func TestWarnings(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "exit 0", nil)
	info, err := f.client().Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	version, err := f.client().ServerVersion(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.WarnLevel)
	f.logger = zap.New(core)
	if _, err := f.Prepare(t.Context(), f.agent); err != nil {
		t.Fatal(err)
	}
	want := 0
	for _, c := range version.Components {
		if c.Name == defaultOCIRuntime && info.DefaultRuntime == defaultOCIRuntime && len(runcCVEs(c.Version)) > 0 {
			want++
		}
	}
	if got := logs.FilterMessageSnippet("CVE-2025-31133").Len(); got != want {
		t.Errorf("%d warnings of runc, want %d: %v", got, want, logs.All())
	}
	if _, ok := seccompOf(info.SecurityOptions); !ok {
		t.Errorf("no seccomp in %v", info.SecurityOptions)
	}
}

func TestRuntimeOfTheEngine(t *testing.T) {
	t.Parallel()
	f := startProbe(t, "exit 0", func(r *Runtime) { r.OCIRuntime = "runc" })
	if exit, _ := f.answer(""); exit.Code != 0 {
		t.Errorf("exit %+v", exit)
	}
	r := &Runtime{Image: f.Image, OCIRuntime: "runsc-that-is-not-there"}
	_, err := tryPrepare(t, r, f.agent)
	if err == nil || !strings.Contains(err.Error(), `runtime "runsc-that-is-not-there" is not on the Docker engine`) || !strings.Contains(err.Error(), "runc") {
		t.Errorf("error is %v", err)
	}
	podman := types.Version{Components: []types.ComponentVersion{{Name: "Podman Engine"}}}
	if err := f.checkRuntime(system.Info{}, podman, "here"); err == nil || !strings.Contains(err.Error(), "Podman, at here, does not tell") {
		t.Errorf("error is %v", err)
	}
	// An engine that takes the container for another runtime.
	p := f.ready.Load()
	p.spec.runtime = "io.containerd.runc.v2"
	task, _ := f.task("")
	id, err := (&prepared{engine: p.engine, spec: spec{agent: f.agent, image: p.spec.image}, logger: zap.NewNop()}).create(t.Context(), p.spec.config(task), p.spec.commonHost())
	if err != nil {
		t.Fatal(err)
	}
	defer p.remove(id)
	p.spec.runtime = "runsc"
	if err := p.verify(t.Context(), id); err == nil || !strings.Contains(err.Error(), `does not use runtime "runsc"`) {
		t.Errorf("error is %v", err)
	}
}
