// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
)

const (
	// releaseVersion is the tag of the releases that the tests build.
	releaseVersion = "v0.98.7"
	// testImage is the name of their image.
	testImage = "agentfm-e2e-release"
)

// readText returns a file of the repository.
func readText(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// buildRelease copies the sources into a folder, as a repository with a tag, runs the
// documented command there, and returns the binary.
func buildRelease(dir string) (string, error) {
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type().IsRegular() && strings.HasPrefix(d.Name(), ".") {
			return err
		}
		to := filepath.Join(dir, strings.TrimPrefix(path, root))
		switch {
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "node_modules"):
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(to, 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(path)
		return errors.Join(err, os.WriteFile(to, b, 0o644))
	})
	page, readErr := os.ReadFile(filepath.Join(root, "docs/deployment.md"))
	if err := errors.Join(err, readErr); err != nil {
		return "", err
	}
	command := regexp.MustCompile(`(?m)^CGO_ENABLED=0 go build .*$`).FindString(string(page))
	const date = "2030-01-02T03:04:05Z"
	for _, script := range []string{
		"git init -q && git add -f . && git -c user.name=a -c user.email=a@example.com commit -q -m release && git tag " + releaseVersion,
		command,
	} {
		cmd := exec.Command("sh", "-ec", script)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_AUTHOR_DATE="+date, "GIT_COMMITTER_DATE="+date, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GOFLAGS=-buildvcs=true")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", script, err, out)
		}
	}
	return filepath.Join(dir, "agentfm"), nil
}

// release builds the binary of a release, once.
var release = sync.OnceValues(func() (string, error) {
	if _, err := binary(); err != nil { // it makes the folder
		return "", err
	}
	return buildRelease(filepath.Join(binaryDir, "release"))
})

// TestRelease builds the release in two folders, and wants the same bytes, which tell their
// version.
func TestRelease(t *testing.T) {
	needProgram(t, "git")
	program, err := release()
	if err != nil {
		t.Fatal(err)
	}
	again, err := buildRelease(filepath.Join(t.TempDir(), "another", "folder"))
	if err != nil {
		t.Fatal(err)
	}
	one, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if two, err := os.ReadFile(again); err != nil || !bytes.Equal(one, two) {
		t.Errorf("two builds differ, %v", err)
	}
	out, err := exec.CommandContext(t.Context(), program, "version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "agentfm "+releaseVersion+", caddy v2.") {
		t.Errorf("version: %s, %v", out, err)
	}
}

// TestUnit has systemd read the unit, and hears what systemd waits for: that the process is
// ready, and that it ends.
func TestUnit(t *testing.T) {
	text := readText(t, "examples/systemd/agentfm.service")
	if !strings.Contains(text, "\nType=notify\n") || !strings.Contains(text, "\nExecStart=/usr/bin/agentfm run --config /etc/caddy/Caddyfile\n") {
		t.Fatalf("another unit:\n%s", text)
	}
	dir, err := os.MkdirTemp("", "agentfm") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	p := startWith(t, home(t), caddyfile(localMesh, "agentfm"), []string{"NOTIFY_SOCKET=" + socket.LocalAddr().String()})
	hear := func(want string) {
		t.Helper()
		_ = socket.SetReadDeadline(time.Now().Add(patience))
		for said := make([]byte, 1024); ; {
			n, err := socket.Read(said)
			if err != nil {
				t.Fatalf("%s: %v", want, err)
			}
			if strings.Contains(string(said[:n]), want) {
				return
			}
		}
	}
	hear("READY=1")
	p.stop()
	hear("STOPPING=1")

	needProgram(t, "systemd-analyze")
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "agentfm.service")
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(text, "/usr/bin/agentfm", program)), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%s, %v", out, err)
	}
}

// imageContext returns the last stage of the Dockerfile in a folder that has what the first
// one makes.
func imageContext(t *testing.T) string {
	t.Helper()
	program, err := release()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, d := range []string{"image/usr/bin", "image/etc/caddy", "state/config", "state/data", "state/srv", "state/tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(program)
	if err := errors.Join(err, os.WriteFile(filepath.Join(dir, "image/usr/bin/agentfm"), b, 0o755)); err != nil {
		t.Fatal(err)
	}
	stages := strings.Split(readText(t, "xcaddy/Dockerfile"), "\nFROM ")
	last := "FROM " + stages[len(stages)-1]
	if !strings.HasPrefix(last, "FROM scratch\n") {
		t.Fatalf("the last stage is not from scratch:\n%s", last)
	}
	writeFile(t, dir, "Dockerfile", strings.NewReplacer("--from=build ", "", " /image ", " image ", " /state ", " state ").Replace(last))
	return dir
}

// buildImage builds an image of a folder.
func (e *engine) buildImage(t *testing.T, name, dir string) {
	t.Helper()
	var folder bytes.Buffer
	w := tar.NewWriter(&folder)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close()); err != nil {
		t.Fatal(err)
	}
	resp, err := e.ImageBuild(t.Context(), &folder, build.ImageBuildOptions{Tags: []string{name}, ForceRemove: true})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	progress, err := io.ReadAll(resp.Body)
	if err != nil || !strings.Contains(string(progress), "Successfully tagged") {
		t.Fatalf("building %s: %v\n%s", name, err, progress)
	}
	t.Cleanup(func() {
		_, _ = e.ImageRemove(context.WithoutCancel(t.Context()), name, image.RemoveOptions{Force: true})
	})
}

// startContainer starts a container, which ends with the test.
func (e *engine) startContainer(t *testing.T, config *container.Config, host *container.HostConfig) string {
	t.Helper()
	c, err := e.ContainerCreate(t.Context(), config, host, nil, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if t.Failed() {
			if log, err := e.ContainerLogs(ctx, c.ID, container.LogsOptions{ShowStdout: true, ShowStderr: true}); err == nil {
				text, _ := io.ReadAll(io.LimitReader(log, 1<<20))
				t.Logf("%s:\n%s", slices.Concat(config.Env, host.Binds), text)
			}
		}
		_ = e.ContainerRemove(ctx, c.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
	})
	if err := e.ContainerStart(t.Context(), c.ID, container.StartOptions{}); err != nil {
		t.Fatal(err)
	}
	return c.ID
}
