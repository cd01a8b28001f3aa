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
	"os/exec"
	"path/filepath"
	"slices"
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

// A model server in a container, from its start with Caddy to its end with it.
func TestDockerServe(t *testing.T) {
	engine := newEngine(t)
	image := t.TempDir()
	compile := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(image, "probe"), root+"/worker/docker/internal/probe")
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("compiling the model server: %v\n%s", err, out)
	}
	writeFile(t, image, "Dockerfile", "FROM scratch\nCOPY probe /\nUSER 65534\nENTRYPOINT [\"/probe\"]\n")
	const settings = "env PROBE \"serve 8080\""
	dir := home(t)
	config := caddyfile(localMesh, withKey, agent("contained", "Contained", "acme/contained", fmt.Sprintf(
		"docker {\n\t\t\t\thost %s\n\t\t\t\tbuild %s\n\t\t\t\tserve 8080\n\t\t\t\t%s\n\t\t\t}", engine.host, image, settings)))
	p := start(t, dir, config)
	p.awaitWorkers(1)
	worker := p.workerID("Contained")

	t.Run("chat", func(t *testing.T) {
		p := p.in(t)
		var answer struct {
			Choices []struct{ Message struct{ Content string } }
			Usage   struct {
				Total int `json:"total_tokens"`
			}
		}
		p.decode(p.post("/v1/chat/completions", chatRequest("acme/contained", "hello", false)), &answer)
		if len(answer.Choices) != 1 || answer.Choices[0].Message.Content != "you said: hello" || answer.Usage.Total != 9 {
			t.Errorf("got %+v", answer)
		}
		if got := chatChunks(t, p.post("/v1/chat/completions", chatRequest("Contained", "hello", true))); strings.Join(got, "|") != "you said: |hello" {
			t.Errorf("chunks are %q", got)
		}
		resp := p.post("/api/execute", map[string]any{"worker_id": worker, "prompt": "hello"})
		if body, err := io.ReadAll(resp.Body); err != nil || !strings.HasPrefix(string(body), "you said: hello") {
			t.Errorf("execute: %q, %v", body, err)
		}
	})
	t.Run("killed", func(t *testing.T) {
		p := p.in(t)
		before := engine.containerIDs(t, worker)
		if err := engine.ContainerKill(t.Context(), before[0], "KILL"); err != nil {
			t.Fatal(err)
		}
		p.await("another container", func() bool {
			ids := engine.containerIDs(t, worker)
			return len(ids) == 1 && ids[0] != before[0]
		})
		p.awaitChat("acme/contained")
	})
	t.Run("reload", func(t *testing.T) {
		p := p.in(t)
		before := engine.containerIDs(t, worker)
		stream := newEvents(p.post("/v1/chat/completions", chatRequest("acme/contained", "slow", true)))
		stream.nextText(t)
		p.reload(func(caddyfile string) string { return replaceOnce(t, caddyfile, "max_tasks 4", "max_tasks 5") })
		p.await("the new configuration", func() bool { return strings.Count(p.log.String(), `"msg":"agent is ready"`) == 2 })
		if ids := engine.containerIDs(t, worker); !slices.Equal(ids, before) {
			t.Errorf("containers are %v, they were %v", ids, before)
		}
		p.reload(func(caddyfile string) string {
			return replaceOnce(t, caddyfile, settings, settings+"\n\t\t\t\tenv A b")
		})
		p.await("both containers", func() bool { return len(engine.containerIDs(t, worker)) == 2 })
		rest := ""
		for text := stream.nextText(t); text != ""; text = stream.nextText(t) {
			rest += text
		}
		if !strings.HasSuffix(rest, "slow") {
			t.Errorf("the stream ends with %q", rest)
		}
		p.await("the new container alone", func() bool {
			ids := engine.containerIDs(t, worker)
			return len(ids) == 1 && ids[0] != before[0]
		})
		p.awaitChat("acme/contained")
	})
	t.Run("crash", func(t *testing.T) {
		p := p.in(t)
		p.kill()
		before := engine.containerIDs(t, worker)
		if len(before) != 1 {
			t.Errorf("containers after the crash are %v", before)
		}
		p = start(t, dir, config)
		p.awaitWorkers(1)
		p.awaitChat("acme/contained")
		if ids := engine.containerIDs(t, worker); len(ids) != 1 || ids[0] == before[0] {
			t.Errorf("containers are %v, the leftover %v", ids, before)
		}
		p.stop()
		if n := engine.containers(t, worker); n != 0 {
			t.Errorf("%d containers after the exit", n)
		}
	})
}

// awaitChat waits until a model chats.
func (p *process) awaitChat(model string) {
	p.t.Helper()
	p.await("an answer of "+model, func() bool {
		resp, err := p.send(p.t.Context(), http.MethodPost, "/v1/chat/completions", chatRequest(model, "hello", false))
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
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
	return len(e.containerIDs(t, peerID))
}

// containerIDs returns the ids of those containers.
func (e *engine) containerIDs(t *testing.T, peerID string) []string {
	t.Helper()
	list, err := e.ContainerList(t.Context(), container.ListOptions{
		All:     true,
		Filters: filters.NewArgs(filters.Arg("label", "agentfm.agent="+peerID)),
	})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	return ids
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
