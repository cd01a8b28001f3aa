// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"runtime"
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
		{"no runc", []string{"name=seccomp,profile=default"}, "runc", types.Version{}, ""},
		{"no seccomp", []string{"name=apparmor"}, "runc", runc("1.3.3"), "has no seccomp"},
	} {
		got := weaknesses(system.Info{SecurityOptions: tc.options}, tc.runtime, tc.version)
		if (tc.want == "") != (len(got) == 0) || len(got) > 1 || tc.want != "" && !strings.Contains(got[0], tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestSecurityOptions(t *testing.T) {
	for _, tc := range []struct {
		option, component string
		want              bool
	}{
		{"name=seccomp,profile=builtin", "Engine", true},
		{"name=seccomp,profile=default", "Engine", true},
		{"name=seccomp,profile=unconfined", "Engine", true},
		{"name=seccomp", "Engine", true},
		{"name=seccomp,profile=/etc/docker/ours.json", "Engine", false},
		{"name=seccomp,profile=default", "Podman Engine", false},
		{"name=apparmor", "Engine", false},
	} {
		got, err := securityOptions(system.Info{SecurityOptions: []string{"name=cgroupns", tc.option}},
			types.Version{Components: []types.ComponentVersion{{Name: tc.component}}})
		if err != nil || (len(got) == 1) != (tc.want && runtime.GOOS == "linux") {
			t.Errorf("%s of %s: %d options, %v", tc.option, tc.component, len(got), err)
		}
		for _, o := range got {
			if strings.Contains(o, "io_uring") || strings.Contains(o, "ptrace") || !strings.Contains(o, "futex") {
				t.Errorf("profile is %s", o)
			}
		}
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
