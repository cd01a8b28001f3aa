// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

func TestMountsThatAreRefused(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	link := func(name, target string) string {
		name = filepath.Join(dir, name)
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
		return name
	}
	engine := filepath.Join(dir, "engine")
	for _, d := range []string{engine, filepath.Join(dir, "services"), filepath.Join(dir, "plain", "deep"), filepath.Join(root, "overlay2")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{filepath.Join(engine, "e.sock"), filepath.Join(dir, "services", "s.sock")} {
		l, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	for _, tc := range []struct {
		source, target string
		err            string // empty: none
	}{
		{filepath.Join(dir, "plain"), "/data", ""},
		{filepath.Join(dir, "plain", "..", "plain"), "/tmp/data", ""},
		{link("to-plain", filepath.Join(dir, "plain")), "/data", ""},
		{"relative", "/data", "want an absolute path on the host"},
		{filepath.Join(dir, "plain"), "data", "want an absolute path in the container"},
		{filepath.Join(dir, "missing"), "/data", "no such file"},
		{"/", "/data", "must not see"},
		{"//", "/data", "must not see"},
		{"/var/..", "/data", "must not see"},
		{"/var", "/data", "must not see"},
		{"/var/run", "/data", "must not see /var/run"},
		{"/run", "/data", "must not see /run"},
		{"/run/docker.sock", "/data", "must not see /run"},
		{"/var/run/docker.sock", "/data", "must not see /var/run"},
		{"/var/./run//docker.sock", "/data", "must not see /var/run"},
		{"/srv/../run/docker.sock", "/data", "must not see /run"},
		{"/var/lib/docker/overlay2", "/data", "must not see /var/lib/docker"},
		{"/proc", "/data", "must not see /proc"},
		{"/proc/self/root", "/data", "must not see /proc"},
		{"/proc/1/root/run/docker.sock", "/data", "must not see /proc"},
		{"/sys/fs/cgroup", "/data", "must not see /sys"},
		{"/dev/null", "/data", "must not see /dev"},
		{link("to-root", "/"), "/data", "must not see"},
		{link("to-run", "/var/run"), "/data", "must not see /run"},
		{link("to-proc", "/proc/self/root"), "/data", "must not see"},
		{filepath.Join(dir, "to-root", "sys"), "/data", "must not see /sys"},
		{engine, "/data", "must not see " + engine},
		{filepath.Join(engine, "e.sock"), "/data", "must not see " + engine},
		{link("to-engine", filepath.Join(engine, "e.sock")), "/data", "must not see " + engine},
		{dir, "/data", "must not see " + engine},
		{filepath.Join(dir, "services"), "/data", "it has a socket in it, s.sock"},
		{filepath.Join(dir, "services", "s.sock"), "/data", "want a file or a folder"},
		{caddy.AppDataDir(), "/data", "must not see " + caddy.AppDataDir()},
		{caddy.AppConfigDir(), "/data", "must not see " + caddy.AppConfigDir()},
		{filesHome("other"), "/data", "must not see " + filesHome("")},
		{filepath.Join(root, "overlay2"), "/data", "must not see " + root},
		{filepath.Join(dir, "plain"), "/", "is not for it"},
		{filepath.Join(dir, "plain"), "/tmp", "since /tmp/output is there"},
		{filepath.Join(dir, "plain"), "/tmp/output/x", "since /tmp/output is there"},
		{filepath.Join(dir, "plain"), "/proc/sys", "since /proc is there"},
		{filepath.Join(dir, "plain"), "/x/../sys", "since /sys is there"},
		{filepath.Join(dir, "plain"), "/run/secrets/a", "since /run/secrets is there"},
	} {
		mounts := []Mount{{Source: tc.source, Target: tc.target}}
		err := checkMounts(mounts)
		if err == nil {
			_, err = resolveMounts(mounts, "unix://"+filepath.Join(engine, "e.sock"), root)
		}
		if (tc.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("mount %s %s: error is %v, want %q", tc.source, tc.target, err, tc.err)
		}
	}
}

func TestMount(t *testing.T) {
	t.Parallel()
	dir := folder(t, map[string]string{"kept": "from the host"})
	for _, d := range []string{dir, filepath.Dir(dir)} { // whoever it is can read it
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	f := startProbe(t, "inspect", func(r *Runtime) { r.Mounts = []Mount{{Source: dir, Target: "/data"}} })
	exit, out := f.answer("")
	var got struct {
		Data     string
		Writable []string
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || exit.Code != 0 || got.Data != "from the host" {
		t.Errorf("%+v, %v: %s", exit, err, out)
	}
	if strings.Contains(strings.Join(got.Writable, " "), "/data") {
		t.Error("the agent may write to the host's folder")
	}
}
