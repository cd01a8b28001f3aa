// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestSecrets(t *testing.T) {
	t.Setenv("AGENTFM_TEST_KEY", "of the environment")
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	file := filepath.Join(folder(t, map[string]string{"db": "of a file\n"}), "db")
	f := startProbe(t, "inspect", func(r *Runtime) {
		r.Tmpfs = "8MiB"
		r.Secrets = map[string]string{"key": "{env.AGENTFM_TEST_KEY}", "db": file}
	})
	secrets := func() map[string]string {
		exit, out := f.answer("")
		var got report
		if err := json.Unmarshal([]byte(out), &got); err != nil || exit.Code != 0 {
			t.Fatalf("%+v %v: %s", exit, err, out)
		}
		checkSandbox(t, got) // and nothing more is writable
		if strings.Contains(strings.Join(got.Env, " "), "of the environment") {
			t.Errorf("the secret is in the environment: %v", got.Env)
		}
		return got.Secrets
	}
	how := "65534:65534 400 "
	if os.Geteuid() != 0 {
		t.Log("not root: secrets are readable by every user of the container")
		how = ""
	}
	for _, changed := range []string{"of a file\n", "of the file as it is now"} {
		if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		got := secrets()
		if want := map[string]string{"key": how + "of the environment", "db": how + changed}; how != "" && !maps.Equal(got, want) {
			t.Errorf("secrets are %q, want %q", got, want)
		}
	}
	home := filesHome(f.agent.PeerID)
	if left, err := os.ReadDir(home); err != nil || len(left) > 0 {
		t.Errorf("left are %v (%v)", left, err)
	}
	if info, err := os.Stat(home); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder above is %v (%v)", info.Mode(), err)
	}

	// What a process that was killed has left goes, and what runs stays.
	for _, id := range []string{"dead", "running"} {
		if err := os.MkdirAll(filepath.Join(home, id, "x"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	live.add(liveKey{f.agent.PeerID, "running"})
	defer live.remove(liveKey{f.agent.PeerID, "running"})
	if err := sweepFiles(f.agent.PeerID); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(home); err != nil || len(left) != 1 || left[0].Name() != "running" {
		t.Errorf("left are %v (%v), want running", left, err)
	}

	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	task, _ := f.task("")
	if _, err := f.Run(t.Context(), task); err == nil || !strings.Contains(err.Error(), "secret db") || strings.Contains(err.Error(), "of the environment") {
		t.Errorf("without its file: %v", err)
	}
	if _, err := f.Prepare(t.Context(), f.agent); err == nil || !strings.Contains(err.Error(), "secret db") {
		t.Errorf("prepared without its file: %v", err)
	}
}

func TestSecretThatIsNoFile(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := exec.Command("mkfifo", pipe).Run(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{pipe, t.TempDir(), "/dev/null"} {
		if b, err := (secret{name: "a", file: name}).read(); err == nil || !strings.Contains(err.Error(), "is no file") {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	large := filepath.Join(folder(t, map[string]string{"large": strings.Repeat("x", maxSecret+1)}), "large")
	if _, err := (secret{name: "a", file: large}).read(); err == nil || !strings.Contains(err.Error(), "it has over") {
		t.Errorf("a large one: %v", err)
	}
}

func TestSecretForAUserOfTheImage(t *testing.T) {
	dir := t.TempDir()
	s := &spec{user: "app"}
	if err := s.placeFile(filepath.Join(dir, "a"), []byte("x")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "a")); err != nil || info.Mode().Perm() != 0o444 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}
