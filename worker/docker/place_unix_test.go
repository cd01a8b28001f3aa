// SPDX-License-Identifier: Apache-2.0

//go:build unix

package docker

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/docker/docker/api/types/mount"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// What a container's user must be able to read is so under a umask that leaves others
// nothing, as systemd's UMask may.
func TestFilesUnderUmask(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	p := newFakeEngine().prepared()
	p.spec.prompt = promptInFile
	host := p.spec.commonHost()
	drop, err := p.place(host, "c", &worker.Task{ID: "c", Prompt: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	defer drop()
	home := filepath.Join(filesHome("fake"), "c")
	for name, want := range map[string]fs.FileMode{"": 0o755, inputName: 0o755, hostsFile: 0o444} {
		info, err := os.Stat(filepath.Join(home, name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%q: %v, %v, want %o", name, info, err, want)
		}
	}
	want := []mount.Mount{bind(filepath.Join(home, hostsFile), hostsTarget), bind(filepath.Join(home, inputName), inputDir)}
	if len(host.Mounts) != len(want) || host.Mounts[0].Target != want[0].Target || host.Mounts[1].Source != want[1].Source {
		t.Errorf("mounts are %+v, want %+v", host.Mounts, want)
	}
}

// A container without a network gets its hosts file from us, unless the operator mounts one
// or the engine has it.
func TestHostsFile(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	for name, tc := range map[string]struct {
		set  func(*spec)
		want bool
	}{
		"no network":     {func(*spec) {}, true},
		"a mount":        {func(s *spec) { s.mounts = []mount.Mount{bind("/srv/hosts", "/etc/hosts")} }, false},
		"a folder":       {func(s *spec) { s.mounts = []mount.Mount{bind("/srv/etc", "/etc")} }, false},
		"a neighbour":    {func(s *spec) { s.mounts = []mount.Mount{bind("/srv/x", "/etc/hosts.allow")} }, true},
		"Podman":         {func(s *spec) { s.podman = true }, false},
		"a sidecar":      {func(s *spec) { s.program = "/bin/caddy" }, false},
		"bridge":         {func(s *spec) { s.network = &outlet{mode: networkBridge} }, false},
		"a model server": {func(s *spec) { s.network = &outlet{mode: networkModel, port: modelPort} }, false},
	} {
		p := newFakeEngine().prepared()
		tc.set(&p.spec)
		host := p.spec.commonHost()
		drop, err := p.place(host, "c", nil)
		if err != nil {
			t.Fatal(err)
		}
		drop()
		last := ""
		if n := len(host.Mounts); n > 0 {
			last = host.Mounts[n-1].Target
		}
		off := p.spec.config(worker.Task{}).NetworkDisabled
		if got := last == hostsTarget && host.Mounts[len(host.Mounts)-1].Source != "/srv/hosts"; got != tc.want || off != (tc.want || name == "a mount" || name == "a folder") {
			t.Errorf("%s: a hosts file: %v, no network of the engine's: %v", name, got, off)
		}
	}
}
