// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/network"
)

// composed is what the test needs of a service of compose.yaml.
type composed struct {
	Image       string
	ReadOnly    bool              `json:"read_only"`
	Tmpfs       []string          `json:"tmpfs"`
	CapDrop     []string          `json:"cap_drop"`
	SecurityOpt []string          `json:"security_opt"`
	Environment map[string]string `json:"environment"`
	Volumes     []composedVolume
	Secrets     []struct{ Source, Target string }
}

// composedVolume is what a container has of the host.
type composedVolume struct{ Type, Source, Target string }

// TestCompose has the services of the compose example, in containers of the image, on a
// network of the engine. The image is that of the Dockerfile, but for its first stage, which
// needs a base image from elsewhere.
func TestCompose(t *testing.T) {
	engine := newEngine(t)
	needProgram(t, "git")
	tool := need(t, "AGENTFM_TEST_COMPOSE")
	dir := t.TempDir()
	for _, name := range []string{"compose.yaml", "gateway.Caddyfile", "worker.Caddyfile"} {
		writeFile(t, dir, name, readText(t, "examples/compose/"+name))
	}
	made := writeEnv(t, dir)
	services := readCompose(t, dir, tool)
	if name := services["gateway"].Image; name != "agentfm" {
		t.Errorf("the image is %q", name)
	}
	engine.buildImage(t, testImage, imageContext(t))

	key, err := os.ReadFile(swarmKey(t))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir, "swarm.key", string(key))
	name := fmt.Sprintf("agentfm-compose-%d", os.Getpid())
	if _, err := engine.NetworkCreate(t.Context(), name, network.CreateOptions{Driver: "bridge"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = engine.NetworkRemove(context.WithoutCancel(t.Context()), name) })
	gateway := engine.startService(t, services["gateway"], name)
	worker := engine.startService(t, services["worker"], name)
	engine.startModel(t, worker)

	info, err := engine.ContainerInspect(t.Context(), gateway)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, url: "http://" + info.NetworkSettings.Networks[name].IPAddress + ":8080", done: make(chan struct{})}
	p.awaitWorkers(1)
	if a := p.askAs(t, made, http.MethodGet, "/v1/models", ""); a.status != http.StatusOK {
		t.Errorf("with the key in .env: %d %s", a.status, a.body)
	}
	for guesses := 0; p.askAs(t, "a-guess", http.MethodGet, "/v1/models", "", "X-Forwarded-For", "203.0.113.9").status != http.StatusTooManyRequests; guesses++ {
		if guesses > 100 {
			t.Fatal("a client may guess keys without end")
		}
	} // the others go on
	var answer struct {
		Choices []struct{ Message struct{ Content string } }
	}
	p.decode(p.post("/v1/chat/completions", chatRequest("Local models", "hello", false)), &answer)
	if len(answer.Choices) != 1 || answer.Choices[0].Message.Content == "" {
		t.Errorf("chat: %+v", answer)
	}
	if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", info.State.Pid)); err != nil || !strings.Contains(string(status), "\nUid:\t65532\t65532\t") {
		t.Errorf("not the user 65532: %s, %v", status, err)
	}
	if _, err := engine.ContainerStatPath(t.Context(), gateway, "/bin"); err == nil {
		t.Error("the image has a /bin")
	}
	wait := 30
	if err := engine.ContainerStop(t.Context(), gateway, container.StopOptions{Timeout: &wait}); err != nil {
		t.Fatal(err)
	}
	if info, err := engine.ContainerInspect(t.Context(), gateway); err != nil || info.State.ExitCode != 0 {
		t.Errorf("after its end: %+v, %v", info.State, err)
	}
}

// writeEnv writes the .env of the compose example as its first command says, with a model
// server and the key of the tests beside, and returns the key that was made.
func writeEnv(t *testing.T, dir string) string {
	t.Helper()
	needProgram(t, "openssl")
	command, _, _ := strings.Cut(readText(t, "examples/compose/compose.yaml"), "docker compose")
	command = regexp.MustCompile(`(?m)^#\t(.*)`).ReplaceAllString(regexp.MustCompile(`(?m)^#\t.+`).FindString(command), "$1")
	cmd := exec.CommandContext(t.Context(), "sh", "-ec", command)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	file := filepath.Join(dir, ".env")
	fi, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	key := regexp.MustCompile(`^AGENTFM_API_KEYS=([0-9a-f]{48})\n$`).FindSubmatch(b)
	if err != nil || key == nil || fi.Mode() != 0o600 {
		t.Fatalf("%v %q, %v", fi.Mode(), b, err)
	}
	writeFile(t, dir, ".env", strings.TrimSuffix(string(b), "\n")+","+testKey+"\nMODEL_SERVER=http://127.0.0.1:8090/v1\n")
	return string(key[1])
}

// readCompose returns the services of the compose file in a folder.
func readCompose(t *testing.T, dir, tool string) map[string]composed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool)
	cmd.Dir, cmd.Env = dir, []string{}
	var said bytes.Buffer
	cmd.Stderr = &said
	model, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &said)
	}
	var project struct {
		Services map[string]composed
		Secrets  map[string]struct{ File string }
	}
	if err := json.Unmarshal(model, &project); err != nil {
		t.Fatal(err)
	}
	for name, s := range project.Services {
		for _, secret := range s.Secrets {
			s.Volumes = append(s.Volumes, composedVolume{"bind", project.Secrets[secret.Source].File, secret.Target})
		}
		project.Services[name] = s
	}
	return project.Services
}

// startService starts the container of a service on a network. Of its volumes it gets the
// files.
func (e *engine) startService(t *testing.T, s composed, network string) string {
	t.Helper()
	config := &container.Config{Image: testImage}
	for name, value := range s.Environment {
		config.Env = append(config.Env, name+"="+value)
	}
	host := &container.HostConfig{
		NetworkMode: container.NetworkMode(network), ReadonlyRootfs: s.ReadOnly, CapDrop: s.CapDrop, SecurityOpt: s.SecurityOpt,
		Tmpfs: make(map[string]string),
	}
	for _, path := range s.Tmpfs {
		host.Tmpfs[path] = ""
	}
	for _, v := range s.Volumes {
		if v.Type == "bind" {
			host.Binds = append(host.Binds, v.Source+":"+v.Target+":ro")
		}
	}
	return e.startContainer(t, config, host)
}

// startModel starts a model server beside another container, on port 8090 of its loopback.
func (e *engine) startModel(t *testing.T, beside string) {
	t.Helper()
	dir := t.TempDir()
	compile := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "probe"), root+"/worker/docker/internal/probe")
	compile.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("compiling the model server: %v\n%s", err, out)
	}
	writeFile(t, dir, "Dockerfile", "FROM scratch\nCOPY probe /\nENTRYPOINT [\"/probe\"]\n")
	e.buildImage(t, "agentfm-compose-model", dir)
	e.startContainer(t,
		&container.Config{Image: "agentfm-compose-model", Env: []string{"PROBE=serve 8090", "AGENTFM_MODEL=acme/m"}},
		&container.HostConfig{NetworkMode: container.NetworkMode("container:" + beside)})
}
