// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/e2e/internal/build"
	"github.com/Agent-FM/caddy-agentfm/internal/freeport"
)

var binaryDir string

// binary builds the ready-made binary, once.
var binary = sync.OnceValues(func() (string, error) {
	var err error
	if binaryDir, err = os.MkdirTemp("", "lifecycle-bin"); err != nil {
		return "", err
	}
	return build.Build(binaryDir, "../..", outerEnv)
})

// command returns a command of the binary on a configuration.
func (p place) command(t *testing.T, command string, c config, admin string) *exec.Cmd {
	t.Helper()
	if testing.Short() {
		t.Skip("starts processes")
	}
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(p.dir, command+".caddyfile")
	if err := os.WriteFile(file, []byte(c.caddyfile(t, p, admin)), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, command, "--adapter", "caddyfile", "--config", file)
	cmd.Dir = p.dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, c.env...)
	for name, value := range homeEnv(p.dir) {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	return cmd
}

// validate runs the validate command, which must find no fault.
func (p place) validate(t *testing.T, c config) {
	t.Helper()
	if out, err := p.command(t, "validate", c, "off").CombinedOutput(); err != nil {
		t.Errorf("validate: %v\n%s", err, out)
	}
}

// process is a Caddy that runs as a process of its own.
type process struct {
	gateway
	cmd   *exec.Cmd
	admin string        // address of its admin API
	ended chan struct{} // closed once it has ended
}

// start runs the binary in a place. It is killed at the end of the test.
func start(t *testing.T, at place, c config) *process {
	t.Helper()
	p := &process{gateway: gateway{t: t, place: at}, admin: fmt.Sprintf("127.0.0.1:%d", freeport.Get(t)), ended: make(chan struct{})}
	p.cmd = at.command(t, "run", c, p.admin)
	stderr, err := os.Create(filepath.Join(at.dir, "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = stderr // a file, for which nobody waits
	err = p.cmd.Start()
	_ = stderr.Close()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is in p.cmd.ProcessState
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.kill()
		complaints, _ := os.ReadFile(stderr.Name())
		if bytes.Contains(complaints, []byte("DATA RACE")) || bytes.Contains(complaints, []byte("panic: ")) {
			t.Error("the process has a data race, or panicked")
		}
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(at.dir, "log"))
			t.Logf("standard error:\n%s\nlog:\n%s", complaints, log)
		}
	})
	p.awaitName(c.name)
	return p
}

// reload loads another configuration.
func (p *process) reload(c config) {
	p.t.Helper()
	resp, err := client.Post("http://"+p.admin+"/load", "text/caddyfile", strings.NewReader(c.caddyfile(p.t, p.place, p.admin)))
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		p.t.Fatalf("loading %s: %s: %s", c.name, resp.Status, text)
	}
	p.awaitName(c.name)
}

// terminate asks the process to end, as a service manager does.
func (p *process) terminate() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
}

// kill ends the process at once, and waits for that.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it fails only when the process has ended
	<-p.ended
}

// awaitExit waits until the process has ended well.
func (p *process) awaitExit() {
	p.t.Helper()
	await(p.t, "the process ends", func() bool {
		select {
		case <-p.ended:
			return true
		default:
			return false
		}
	})
	if !p.cmd.ProcessState.Success() {
		p.t.Errorf("the process ended with %v", p.cmd.ProcessState)
	}
}

// peerID returns the peer id of an identity in storage.
func (p place) peerID(t *testing.T, name string) peer.ID {
	t.Helper()
	b, err := os.ReadFile(p.keyFile(t, name))
	if err != nil {
		t.Fatal(err)
	}
	key, err := crypto.UnmarshalPrivateKey(b)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// tasksDir is where the tasks of an agent of a process have their folders.
func (p place) tasksDir(agent string) string {
	return filepath.Join(p.data(), filepath.Base(caddy.AppDataDir()), "agentfm", "tasks", agent)
}
