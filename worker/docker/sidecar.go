// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/go-units"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/way"
)

// Where Caddy may not enter the network of a container, a container of ours beside the
// agent's opens sockets in there: the agent's gets its network. It has the agent's image,
// of which it uses nothing, and runs Caddy's own program, which hands the sockets out
// over a Unix socket. It is there before the agent's, so that what listens for an agent
// does so before the agent's program begins.

// Where that container finds what it needs.
const (
	sidecarProgram = "/run/agentfm-program"
	sidecarDir     = "/run/agentfm-way"
	sidecarSocket  = "way"
)

const (
	// sidecarMemory is what that program may use.
	sidecarMemory = 256 << 20
	sidecarPIDs   = 64
	// sidecarStart is how long it may take to begin.
	sidecarStart = 30 * time.Second
)

// sidecarCommand is what the program is called with.
var sidecarCommand = []string{"agentfm", "way", sidecarDir + "/" + sidecarSocket}

// dialer connects to ports in the network of a container: from there, or through a
// container beside it.
type dialer interface {
	dial(ctx context.Context, port int) (net.Conn, error)
}

// sidecar is a container of ours with the network of an agent's. A nil one is none.
type sidecar struct {
	*way.Way
	id   string // of the container
	end  func() // of the container
	drop func() // of its files
}

// programOf returns the program that runs in a container beside: this one, if it needs
// nothing of a file system.
func programOf() (string, error) {
	name, err := os.Executable()
	if err != nil {
		return "", err
	}
	return name, checkProgram(name)
}

// checkProgram checks that a program can run in any container.
func checkProgram(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	f, err := elf.Open(name)
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	defer f.Close()
	switch {
	case info.Mode().Perm()&0o005 != 0o005:
		return fmt.Errorf("others may not run %s: chmod o+rx", name)
	case f.FileHeader.Type != elf.ET_EXEC && f.FileHeader.Type != elf.ET_DYN:
		return fmt.Errorf("%s is not a program", name)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is not linked statically: build Caddy with CGO_ENABLED=0, as xcaddy does", name)
		}
	}
	return nil
}

// make creates a container, which has the id among those of the agent, and starts one
// beside it where it takes that to get in.
func (p *prepared) make(ctx context.Context, id string, config *container.Config, host *container.HostConfig) (string, *sidecar, error) {
	var a *sidecar
	if p.spec.program != "" {
		var err error
		if a, err = p.openSidecar(ctx, id+".way"); err != nil {
			return "", nil, fmt.Errorf("opening a way into the container's network: %w", err)
		}
		host.NetworkMode = container.NetworkMode("container:" + a.id)
	}
	c, err := p.create(ctx, config, host)
	if err != nil {
		a.close()
		return "", nil, fmt.Errorf("creating container: %w", err)
	}
	return c, a, nil
}

// openSidecar starts a container for one that is to have its network.
func (p *prepared) openSidecar(ctx context.Context, id string) (*sidecar, error) {
	key := liveKey{p.spec.agent.PeerID, id}
	live.add(key)
	dir := filepath.Join(filesHome(key.peerID), id)
	a := &sidecar{end: func() {}, drop: func() {
		defer live.remove(key)
		if err := os.RemoveAll(dir); err != nil {
			p.logger.Error("removing files of a container", zap.Error(err))
		}
	}}
	if err := p.startSidecar(ctx, a, id, dir); err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

// startSidecar makes the container's files, creates it, and starts it.
func (p *prepared) startSidecar(ctx context.Context, a *sidecar, id, dir string) error {
	if err := makeFilesDir(dir); err != nil {
		return err
	}
	host := p.spec.sidecarHost(dir)
	if err := p.spec.placeSeccomp(host, dir); err != nil {
		return err
	}
	door, err := way.NewDoor(dir, sidecarSocket)
	if err != nil {
		return err
	}
	defer door.Close()
	if a.id, err = p.create(ctx, p.spec.sidecarConfig(id), host); err != nil {
		return fmt.Errorf("creating container: %w", err)
	}
	a.end = func() { p.remove(a.id) }
	a.Way, err = p.admit(ctx, a.id, door)
	return err
}

// admit starts the container, and waits until its program comes to the door.
func (p *prepared) admit(ctx context.Context, id string, door *way.Door) (*way.Way, error) {
	ctx, cancel := context.WithTimeout(ctx, sidecarStart)
	defer cancel()
	exited, lost := p.engine.ContainerWait(ctx, id, container.WaitConditionNextExit)
	if err := p.startContainer(ctx, id); err != nil {
		cancel()
		drain(exited, lost)
		return nil, err
	}
	failed := make(chan error, 1)
	go func() {
		err := fmt.Errorf("%s has not begun in %v", p.spec.program, sidecarStart)
		select {
		case answer := <-exited:
			err = fmt.Errorf("%s has ended with status %d", p.spec.program, answer.StatusCode)
		case <-lost: // the end of ctx, also
			if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				err = context.Cause(ctx)
			}
		}
		failed <- err
		door.Close()
	}()
	w, err := door.Accept()
	cancel()
	if why := <-failed; err != nil {
		return nil, why
	}
	return w, nil
}

// errNoWay says that a container that runs cannot be reached any more.
var errNoWay = errors.New("the container beside it, through which requests come to it, has ended")

// watchSidecar calls stop when a sidecar ends before ctx does. The channel closes when
// nobody watches any more.
func (p *prepared) watchSidecar(ctx context.Context, a *sidecar, stop context.CancelCauseFunc) <-chan struct{} {
	exited, lost := p.engine.ContainerWait(ctx, a.id, container.WaitConditionNotRunning)
	over := make(chan struct{})
	go func() {
		defer close(over)
		select {
		case <-exited:
			stop(errNoWay)
		case <-lost: // with the engine, or the end of ctx
		}
	}()
	return over
}

// drain takes what a wait for a container still tells: an unread result keeps its goroutine.
func drain(exited <-chan container.WaitResponse, lost <-chan error) {
	select {
	case <-exited:
	case <-lost:
	}
}

// sidecarConfig returns the configuration of the container beside that with the id.
func (s *spec) sidecarConfig(id string) *container.Config {
	c := s.common(labelSidecar, id, s.agent.Model)
	c.User, c.Env, c.WorkingDir = nobody, nil, "/"
	c.Entrypoint, c.Cmd = []string{sidecarProgram}, sidecarCommand
	return c
}

// sidecarHost returns what it may do and use: less than an agent. Of the agent's limits of a
// process it has nproc, without which Podman may not be able to start a container.
func (s *spec) sidecarHost(dir string) *container.HostConfig {
	c := s.commonHost()
	c.NetworkMode = networkNone
	c.Mounts = []mount.Mount{bind(s.program, sidecarProgram), bind(dir, sidecarDir)}
	c.Memory, c.MemorySwap = sidecarMemory, sidecarMemory
	pids := int64(sidecarPIDs)
	c.PidsLimit, c.DeviceRequests = &pids, nil
	c.Ulimits = (&spec{ulimits: slices.DeleteFunc(slices.Clone(s.ulimits), func(u units.Ulimit) bool { return u.Name != "nproc" })}).ulimitList()
	return c
}

// release has the program end: nothing more is asked of it. What it has opened stays.
func (a *sidecar) release() {
	if a != nil {
		a.Close()
	}
}

// dial implements dialer.
func (a *sidecar) dial(ctx context.Context, port int) (net.Conn, error) { return a.Dial(ctx, port) }

// close has the program end, and removes its container.
func (a *sidecar) close() {
	if a == nil {
		return
	}
	if a.Way != nil {
		a.Close()
	}
	a.end()
	a.drop()
}
