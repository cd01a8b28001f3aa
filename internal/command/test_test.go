// SPDX-License-Identifier: Apache-2.0

package command

import (
	"archive/zip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	_ "github.com/Agent-FM/caddy-agentfm/caddyfile"
	_ "github.com/Agent-FM/caddy-agentfm/worker/docker"
	_ "github.com/Agent-FM/caddy-agentfm/worker/process"
)

// write makes a file in a new folder.
func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// zipped returns the names and texts in a zip.
func zipped(t *testing.T, file string) string {
	t.Helper()
	r, err := zip.OpenReader(file)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var all strings.Builder
	for _, f := range r.File {
		in, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&all, "%s=%s ", f.Name, b)
	}
	return all.String()
}

const agentsFile = `{
	agentfm_worker {
		agent good {
			model m
			runtime process {
				command sh -c "cat; echo \" for $AGENTFM_MODEL\"; echo 42 > $AGENTFM_OUTPUT/answer.txt"
				prompt stdin
			}
		}
		agent bad {
			model m
			runtime process {
				command sh -c "echo half; exit 3"
			}
		}
		agent slow {
			model m
			runtime process {
				command sh -c "sleep 100"
			}
		}
	}
}
`

// TestTry runs agents of a configuration.
func TestTry(t *testing.T) {
	file := write(t, "Caddyfile", agentsFile)
	for _, c := range []struct {
		args           []string
		out, told, err string
	}{
		{[]string{"--agent", "good"}, "hello for m\n", "\ncause: ok\nexit code: 0\nfile: answer.txt (3 bytes)\n", ""},
		{[]string{"--agent", "bad"}, "half\n", "\ncause: exit_code\nexit code: 3\n", "the task did not succeed: exit status 3"},
		{[]string{"--agent", "slow", "--timeout", "100ms"}, "", "cause: deadline\n", "timed out after 100ms"},
	} {
		out, told, err := run(append([]string{"test", "--config", file, "--prompt", "hello"}, c.args...)...)
		if out != c.out || !strings.HasSuffix(told, c.told) || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: %q, %q, %v", c.args, out, told, err)
		}
	}
	left := filepath.Join(t.TempDir(), "left.zip")
	if _, _, err := run("test", "-c", file, "--agent", "good", "-p", "hello", "-o", left); err != nil || zipped(t, left) != "answer.txt=42\n " {
		t.Errorf("%v, %q", err, zipped(t, left))
	}
	if _, _, err := run("test", "-c", file, "--agent", "good", "-p", "hello", "-o", left); err == nil || !strings.Contains(err.Error(), "--output: ") {
		t.Errorf("written over: %v", err)
	}
	none := filepath.Join(t.TempDir(), "none.zip")
	if _, _, err := run("test", "-c", file, "--agent", "bad", "-p", "hello", "-o", none); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(none); !os.IsNotExist(err) {
		t.Errorf("a zip without files: %v", err)
	}
}

// TestTryErrors wants each mistake to be named, and nothing on standard output.
func TestTryErrors(t *testing.T) {
	file := write(t, "Caddyfile", agentsFile)
	empty := write(t, "caddy.json", "{}")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--image", "x"}, `required flag(s) "prompt" not set`},
		{[]string{"-p", "x"}, "at least one of the flags in the group [image build config] is required"},
		{[]string{"-p", "x", "--image", "x", "more"}, `unknown command "more"`},
		{[]string{"-p", "x", "--image", "x", "--network", "host"}, "unknown flag: --network"},
		{[]string{"-p", "x", "--image", "x", "--config", file}, "--image is not for --config"},
		{[]string{"-p", "x", "--memory", "1GiB", "--config", file}, "--memory is not for --config"},
		{[]string{"-p", "x", "--image", "x", "--agent", "hr"}, "--agent is for --config"},
		{[]string{"-p", "x", "--image", "x", "--adapter", "caddyfile"}, "--adapter is for --config"},
		{[]string{"-p", "x", "--config", file}, "--agent is required: " + file + " has bad, good, slow"},
		{[]string{"-p", "x", "--config", file, "--agent", "other"}, "--agent other: " + file + " has bad, good, slow"},
		{[]string{"-p", "x", "--config", empty}, "has no agents"},
		{[]string{"-p", "x", "--config", "/does/not/exist"}, "no such file"},
		{[]string{"-p", "x", "--image", "x", "--timeout", "soon"}, "--timeout soon: want a duration"},
		{[]string{"-p", "x", "--image", "x", "--cpus", "many"}, "--cpus many: want a number"},
		{[]string{"-p", "x", "--image", "x", "--cpus", "-1"}, "cpus is -1"},
		{[]string{"-p", "x", "--image", "x", "--memory", "lots"}, "reading memory"},
		{[]string{"-p", "x", "--image", "x", "--prompt-as", "mail"}, `prompt is "mail", not argument`},
		{[]string{"-p", "x", "--image", "x", "--user", "0"}, "user is root"},
		{[]string{"-p", "x", "--image", "x", "--host", "unix:///does/not/exist.sock"}, "asking the Docker engine at unix:///does/not/exist.sock"},
		{[]string{"-p", "x", "--image", "x", "--output", "/does/not/exist.zip"}, "--output: open /does/not/exist.zip"},
		{[]string{"-p", "a\x00b", "--config", file, "--agent", "bad"}, "The prompt contains a NUL byte"},
	} {
		out, _, err := run(append([]string{"test"}, c.args...)...)
		if err == nil || !strings.Contains(err.Error(), c.want) || out != "" {
			t.Errorf("%q: got %q, %v, want %s", c.args, out, err, c.want)
		}
	}
}

// TestTryImage runs a container on a real engine.
func TestTryImage(t *testing.T) {
	host := os.Getenv("AGENTFM_TEST_DOCKER_HOST")
	if host == "" {
		if os.Getenv("AGENTFM_TEST_STRICT") == "1" {
			t.Fatal("no Docker engine: set AGENTFM_TEST_DOCKER_HOST to its address")
		}
		t.Skip("no Docker engine: set AGENTFM_TEST_DOCKER_HOST to its address")
	}
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	dir := t.TempDir()
	compile := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "probe"), "../../worker/docker/internal/probe")
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY probe /probe\nENV PROBE=once\nENTRYPOINT [\"/probe\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	image := "agentfm-test/try:latest"
	t.Cleanup(func() { _ = exec.Command("docker", "-H", host, "image", "rm", "-f", image).Run() })
	left := filepath.Join(t.TempDir(), "left.zip")
	out, told, err := run("test", "--host", host, "--build", dir, "--image", image, "--prompt-as", "stdin", "--memory", "64MiB",
		"--cpus", "0.5", "--model", "m", "--prompt", "hello", "--output", left)
	if err != nil || !strings.HasSuffix(out, " hello m \n") || !strings.Contains(told, "\ncause: ok\nexit code: 0\nfile: prompt (5 bytes)\n") {
		t.Fatalf("%q, %q, %v", out, told, err)
	}
	if left, _ := filepath.Glob(filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "agentfm", "containers", "*")); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
	if got := zipped(t, left); got != "prompt=hello " {
		t.Errorf("the zip has %q", got)
	}
	if _, _, err := run("test", "--host", host, "--image", "agentfm-test/missing:v1", "--prompt", "x"); err == nil ||
		!strings.Contains(err.Error(), `agent test is not ready: image "agentfm-test/missing:v1" is not on the Docker engine`) {
		t.Errorf("an image that is not there: %v", err)
	}
}
