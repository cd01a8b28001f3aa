// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"path"
	"slices"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// Labels of our containers. They tell whose a container is after a crash.
const (
	labelAgent = "agentfm.agent" // peer id
	labelTask  = "agentfm.task"  // task id
	labelServe = "agentfm.serve" // in place of a task id, for one that serves
	labelKey   = "agentfm.key"   // name of the agent in the configuration
)

// outputDir is where an agent leaves its files.
const outputDir = "/tmp/output"

// maxFiles is how many files a process of an agent may have open.
const maxFiles = 1024

// limits are the limits of one container, in bytes and CPUs.
type limits struct {
	memory int64
	tmpfs  int64
	pids   int64
	cpus   float64
}

// spec is what all containers of an agent have in common.
type spec struct {
	agent   worker.Agent
	image   string              // id of the image: its tag may move while the agent runs
	volumes map[string]struct{} // folders that the image declares as volumes
	stdin   bool                // the prompt goes to standard input
	init    bool                // the engine has an init to put in front of the agent
	limits  limits
	env     []string
	network *outlet // what its containers can reach
}

// config returns the configuration of a task's container.
func (s *spec) config(task worker.Task) *container.Config {
	c := s.common(labelTask, task.ID, task.Model, "AGENTFM_OUTPUT="+outputDir)
	if s.stdin {
		c.AttachStdin, c.OpenStdin, c.StdinOnce = true, true, true
	} else {
		c.Cmd = []string{task.Prompt}
	}
	return c
}

// serveConfig returns the configuration of a container that serves. It is called as
// its image says.
func (s *spec) serveConfig(id string) *container.Config {
	return s.common(labelServe, id, s.agent.Model)
}

// common returns what all containers of the agent have. Each has a label of its own,
// from before it is there.
func (s *spec) common(label, id, model string, env ...string) *container.Config {
	return &container.Config{
		Image:        s.image,
		Env:          slices.Concat([]string{"AGENTFM_MODEL=" + model}, env, s.env),
		AttachStdout: true,
		AttachStderr: true,
		Labels: map[string]string{
			labelAgent: s.agent.PeerID,
			label:      id,
			labelKey:   s.agent.Key,
		},
		// A health check is a process that nobody asked for.
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}
}

// hostConfig returns what the agent of a task may do and use.
func (s *spec) hostConfig(task worker.Task) *container.HostConfig {
	c := s.commonHost()
	delete(c.Tmpfs, outputDir)
	c.Mounts = []mount.Mount{{
		Type:        mount.TypeBind,
		Source:      task.OutputDir,
		Target:      outputDir,
		BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate},
	}}
	return c
}

// commonHost returns what all containers of the agent may do and use.
func (s *spec) commonHost() *container.HostConfig {
	return &container.HostConfig{
		NetworkMode:    s.network.dockerMode(),
		IpcMode:        container.IPCModePrivate,
		ShmSize:        s.limits.tmpfs,
		CapDrop:        []string{"ALL"},
		SecurityOpt:    []string{"no-new-privileges"},
		ReadonlyRootfs: true,
		Tmpfs:          s.tmpfs(),
		Init:           &s.init,
		// The output is read as it comes; a log on the engine's disk would
		// have no limit and no reader.
		LogConfig: container.LogConfig{Type: "none"},
		Resources: container.Resources{
			Memory:     s.limits.memory,
			MemorySwap: s.limits.memory, // the sum of both: no swap
			NanoCPUs:   int64(s.limits.cpus * 1e9),
			PidsLimit:  &s.limits.pids,
			Ulimits: []*container.Ulimit{
				{Name: "nofile", Soft: maxFiles, Hard: maxFiles},
				{Name: "core", Soft: 0, Hard: 0},
			},
		},
	}
}

// tmpfs returns the folders that are in memory: /tmp, and those that the image
// declares as volumes, which the engine would make writable without a limit.
func (s *spec) tmpfs() map[string]string {
	options := fmt.Sprintf("rw,noexec,nosuid,nodev,size=%d,mode=1777", s.limits.tmpfs)
	folders := map[string]string{"/tmp": options}
	for dir := range s.volumes {
		folders[path.Clean(dir)] = options
	}
	return folders
}
