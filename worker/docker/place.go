// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// Where a container finds what it is given as files.
const (
	inputDir    = "/run/agentfm"
	inputName   = "input" // of that folder on the host
	promptFile  = "prompt"
	requestFile = "request.json"
)

// seccompFile is where Podman finds the seccomp profile, beside the other files.
const seccompFile = "seccomp.json"

// Where a program finds what localhost is, if the engine does not say.
const (
	hostsTarget = "/etc/hosts"
	hostsFile   = "hosts" // beside the other files
	hosts       = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
)

// filesHome returns the folder of the host that has the files for an agent's containers
// while these run: in memory where this process may, and nowhere for others to read.
func filesHome(peerID string) string {
	base := caddy.AppDataDir()
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		base = dir
	} else if info, err := os.Stat("/run"); os.Geteuid() == 0 && err == nil && info.IsDir() {
		base = "/run"
	}
	return filepath.Join(base, "agentfm", "containers", peerID)
}

// placing keeps the folder of an agent from being removed while one is made in it.
var placing sync.Mutex

// leaveHome removes the folder of an agent that gets no more tasks, if it is empty.
func leaveHome(peerID string) {
	placing.Lock()
	defer placing.Unlock()
	_ = os.Remove(filesHome(peerID))
}

// place gives the container of a task, or with nil one that serves, its files: the
// secrets, and the prompt and the request where the agent reads them. Its root is
// read-only and takes no copies, so they are mounted. drop is for when it is gone.
func (p *prepared) place(host *container.HostConfig, id string, task *worker.Task) (drop func(), err error) {
	dir := filepath.Join(filesHome(p.spec.agent.PeerID), id)
	drop = func() {
		if err := os.RemoveAll(dir); err != nil {
			p.logger.Error("removing files of a container", zap.Error(err))
		}
	}
	if err := p.spec.placeAll(host, dir, task); err != nil {
		drop()
		return nil, err
	}
	return drop, nil
}

func (s *spec) placeAll(host *container.HostConfig, dir string, task *worker.Task) error {
	type folder struct {
		name, target string
		fill         func(dir string) error
	}
	var folders []folder
	if len(s.secrets) > 0 {
		folders = append(folders, folder{"secrets", secretsDir, s.placeSecrets})
	}
	if task != nil && (s.prompt == promptInFile || s.warm || task.Request != "") {
		folders = append(folders, folder{inputName, inputDir, func(dir string) error { return s.placeInput(dir, task) }})
	}
	if len(folders) == 0 && !s.seccompAsFile() && !s.hostsAsFile() {
		return nil
	}
	if err := makeFilesDir(dir); err != nil {
		return err
	}
	if err := errors.Join(s.placeSeccomp(host, dir), s.placeHosts(host, dir)); err != nil {
		return err
	}
	for _, f := range folders {
		source := filepath.Join(dir, f.name)
		if err := makeFilesDir(source); err != nil {
			return err
		}
		if err := f.fill(source); err != nil {
			return err
		}
		delete(host.Tmpfs, f.target) // a volume of the image: the engine takes one of them
		host.Mounts = append(host.Mounts, bind(source, f.target))
	}
	return nil
}

// makeFilesDir makes a folder for files of a container, whatever umask this process has.
func makeFilesDir(dir string) error {
	placing.Lock()
	err := os.MkdirAll(dir, 0o700)
	placing.Unlock()
	if err != nil {
		return fmt.Errorf("making a folder for the container's files: %w", err)
	}
	return os.Chmod(dir, 0o755) // the container's user has to get in; others do not get as far as here
}

// seccompAsFile reports whether the engine wants the seccomp profile as a file.
func (s *spec) seccompAsFile() bool { return s.podman && s.seccomp != "" }

// placeSeccomp gives a container its seccomp profile where that has to be a file.
func (s *spec) placeSeccomp(host *container.HostConfig, dir string) error {
	if !s.seccompAsFile() {
		return nil
	}
	profile := filepath.Join(dir, seccompFile)
	if err := os.WriteFile(profile, []byte(s.seccomp), 0o600); err != nil {
		return fmt.Errorf("writing the seccomp profile: %w", err)
	}
	host.SecurityOpt = append(host.SecurityOpt, "seccomp="+profile)
	return nil
}

// hostsAsFile reports whether the container gets its /etc/hosts from us, and not from the
// engine or the operator.
func (s *spec) hostsAsFile() bool {
	return s.isolated() && !slices.ContainsFunc(s.mounts, func(m mount.Mount) bool { return within(hostsTarget, m.Target) })
}

// placeHosts gives a container its /etc/hosts.
func (s *spec) placeHosts(host *container.HostConfig, dir string) error {
	if !s.hostsAsFile() {
		return nil
	}
	name := filepath.Join(dir, hostsFile)
	if err := errors.Join(os.WriteFile(name, []byte(hosts), 0o400), os.Chmod(name, 0o444)); err != nil {
		return fmt.Errorf("writing the container's %s: %w", hostsTarget, err)
	}
	host.Mounts = append(host.Mounts, bind(name, hostsTarget))
	return nil
}

// placeInput writes what the task is.
func (s *spec) placeInput(dir string, task *worker.Task) error {
	if err := s.placeRequest(dir, task); err != nil || s.prompt != promptInFile {
		return err
	}
	if err := s.placeFile(filepath.Join(dir, promptFile), []byte(task.Prompt)); err != nil {
		return fmt.Errorf("writing the prompt: %w", err)
	}
	return nil
}

// placeRequest writes the request that the prompt was made of, if there is one.
func (s *spec) placeRequest(dir string, task *worker.Task) error {
	if task.Request == "" {
		return nil
	}
	if err := s.placeFile(filepath.Join(dir, requestFile), []byte(task.Request)); err != nil {
		return fmt.Errorf("writing the request: %w", err)
	}
	return nil
}

// placeFile writes one file: for the user of the container alone where we may give it to
// that one, and else readable in the container.
func (s *spec) placeFile(name string, b []byte) error {
	if err := os.WriteFile(name, b, 0o400); err != nil {
		return err
	}
	if s.give(name) {
		return nil
	}
	return os.Chmod(name, 0o444)
}

// give makes a file that of the container's user, where we may and know who that is.
func (s *spec) give(name string) bool {
	uid, gid, known := ids(s.user)
	return known && !s.mapped && os.Chown(name, uid, gid) == nil
}

// sweepFiles removes what is left of the files of an agent's containers that are gone.
func sweepFiles(peerID string) error {
	home := filesHome(peerID)
	entries, err := os.ReadDir(home)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if !live.has(liveKey{peerID, e.Name()}) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(home, e.Name())))
		}
	}
	return err
}
