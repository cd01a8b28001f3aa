// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
)

// baseImage is what the example agent's Dockerfile starts from.
const baseImage = "busybox:stable-musl"

func TestDocker(t *testing.T) {
	engine := newEngine(t)
	docker := func(folder string) string {
		return fmt.Sprintf("docker {\n\t\t\t\thost %s\n\t\t\t\tbuild %s\n\t\t\t\tmemory 256MiB\n\t\t\t}", engine.host, folder)
	}

	// An agent that tells its process id and then stays.
	stay := t.TempDir()
	writeFile(t, stay, "Dockerfile", "FROM "+baseImage+"\nUSER 65534\nENTRYPOINT [\"sh\", \"-c\", \"echo here; exec sleep 600\"]\n")
	dir := home(t)
	config := caddyfile(localMesh, "agentfm",
		agent("report", "Text report", "text-report", docker("examples/agents/report")),
		agent("stay", "Stay", "stay", docker(stay)))
	p := start(t, dir, config)
	p.awaitWorkers(2)
	report, stayer := p.workerID("Text report"), p.workerID("Stay")

	t.Run("chat", func(t *testing.T) {
		p := p.in(t)
		resp := p.post("/v1/chat/completions", chatRequest("text-report", "-n One 'two' $HOME %s", true))
		if got := strings.Join(chatChunks(t, resp), ""); !strings.Contains(got, "- Words: 5, of them 5 different\n") {
			t.Errorf("chat: %q", got)
		}
		engine.awaitNoContainers(p, report)
	})
	t.Run("artifacts", func(t *testing.T) {
		p := p.in(t)
		resp := p.post("/api/execute", map[string]any{"worker_id": report, "prompt": "One two.", "task_id": "task_docker"})
		body, err := io.ReadAll(resp.Body)
		if err != nil || !strings.HasSuffix(string(body), filesIncoming) {
			t.Fatalf("execute: %q: %v", body, err)
		}
		archive, err := io.ReadAll(p.get("/api/tasks/task_docker/artifacts").Body)
		if err != nil {
			t.Fatal(err)
		}
		if files := unzip(t, archive); !strings.Contains(files["report.md"], "- Words: 2, of them 2 different\n") {
			t.Errorf("artifacts: %q", files)
		}
		engine.awaitNoContainers(p, report)
	})
	t.Run("hang up", func(t *testing.T) {
		p := p.in(t)
		ctx, hangUp := context.WithCancel(t.Context())
		defer hangUp()
		newEvents(p.do(ctx, http.MethodPost, "/v1/chat/completions", chatRequest("stay", "", true))).nextText(t)
		if n := engine.containers(t, stayer); n != 1 {
			t.Errorf("%d containers while the agent runs", n)
		}
		hangUp()
		engine.awaitNoContainers(p, stayer)
	})
	t.Run("crash", func(t *testing.T) {
		p := p.in(t)
		newEvents(p.post("/v1/chat/completions", chatRequest("stay", "", true))).nextText(t)
		p.kill()
		if n := engine.containers(t, stayer); n != 1 {
			t.Errorf("%d containers after the crash", n)
		}
		p = start(t, dir, config)
		p.awaitWorkers(2)
		if id := p.workerID("Stay"); id != stayer {
			t.Errorf("after the restart the agent is %s, it was %s", id, stayer)
		}
		engine.awaitNoContainers(p, stayer)
	})
}

// engine is the Docker engine of the tests.
type engine struct {
	host string
	*client.Client
}

// newEngine connects to the engine, and makes sure that it has the base image:
// where it has not, one is made of busybox, so that nothing is pulled.
func newEngine(t *testing.T) *engine {
	t.Helper()
	host := need(t, "AGENTFM_TEST_DOCKER_HOST")
	c, err := client.NewClientWithOpts(client.WithHost(host), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := c.ImageInspect(t.Context(), baseImage); err == nil {
		return &engine{host, c}
	}
	rootfs := busyboxRootfs(t, need(t, "AGENTFM_TEST_BUSYBOX"))
	progress, err := c.ImageImport(t.Context(), image.ImportSource{Source: rootfs, SourceName: "-"}, baseImage, image.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer progress.Close()
	if _, err := io.Copy(io.Discard, progress); err != nil {
		t.Fatal(err)
	}
	return &engine{host, c}
}

// containers counts the containers of an agent, those that have ended too.
func (e *engine) containers(t *testing.T, peerID string) int {
	t.Helper()
	list, err := e.ContainerList(t.Context(), container.ListOptions{
		All:     true,
		Filters: filters.NewArgs(filters.Arg("label", "agentfm.agent="+peerID)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func (e *engine) awaitNoContainers(p *process, peerID string) {
	p.t.Helper()
	p.await("end of the containers", func() bool { return e.containers(p.t, peerID) == 0 })
}

// busyboxRootfs returns the tar of a file system that holds busybox alone.
func busyboxRootfs(t *testing.T, busybox string) io.Reader {
	t.Helper()
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(header tar.Header, content []byte) {
		header.Size = int64(len(content))
		if err := w.WriteHeader(&header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755}, nil)
	add(tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, nil)
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755}, program)
	for _, name := range []string{"sh", "awk", "cat", "echo", "sleep", "tr", "wc"} {
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox"}, nil)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buf
}

func writeFile(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
