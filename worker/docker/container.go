// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/go-units"

	"github.com/Agent-FM/caddy-agentfm/worker"
)

// Labels of our containers. They tell whose a container is after a crash.
const (
	labelAgent   = "agentfm.agent"   // peer id
	labelTask    = "agentfm.task"    // task id
	labelServe   = "agentfm.serve"   // in place of a task id, for one that serves
	labelWarm    = "agentfm.warm"    // the same, for one that was started before its task
	labelSidecar = "agentfm.sidecar" // the same, for one of ours beside another
	labelKey     = "agentfm.key"     // name of the agent in the configuration
)

// outputDir is where an agent leaves its files.
const outputDir = "/tmp/output"

// maxFiles is how many files a process of an agent may have open, unless `ulimit` says.
const maxFiles = 1024

// A folder in memory takes as many files as it has room for when each has a page, and
// some in any case: empty ones have no size.
const (
	bytesPerFile  = 4 << 10
	minTmpfsFiles = 1024
)

// limits are the limits of one container, in bytes and CPUs.
type limits struct {
	memory int64
	tmpfs  int64
	output int64
	pids   int64
	cpus   float64
}

// spec is what all containers of an agent have in common.
type spec struct {
	agent        worker.Agent
	image        string              // id of the image: its tag may move while the agent runs
	user         string              // as in a Dockerfile
	mapped       bool                // users of containers are others on the host
	podman       bool                // the engine is Podman
	volumes      map[string]struct{} // folders that the image declares as volumes
	prompt       string              // how the agent gets it; empty with serve
	stderrLogged bool                // standard error is for the log, not for the answer
	init         bool                // the engine has an init to put in front of the agent
	runtime      string              // of the engine's; empty for its default
	seccomp      string              // its profile, as JSON; empty for that of the engine
	grace        time.Duration       // between being asked to end and being killed; not above 0 for none
	limits       limits
	ulimits      []units.Ulimit
	gpus         []container.DeviceRequest
	mounts       []mount.Mount
	secrets      []secret
	env          []string
	network      *outlet // what its containers can reach
	program      string  // for a container beside each of them; empty for none
	warm         bool    // containers may be started before their tasks
}

// config returns the configuration of a task's container.
func (s *spec) config(task worker.Task) *container.Config {
	env := []string{"AGENTFM_OUTPUT=" + outputDir}
	if task.Request != "" || s.warm {
		env = append(env, "AGENTFM_REQUEST="+path.Join(inputDir, requestFile))
	}
	if s.prompt == promptInFile {
		env = append(env, "AGENTFM_PROMPT="+path.Join(inputDir, promptFile))
	}
	c := s.common(labelTask, task.ID, task.Model, env...)
	switch s.prompt {
	case promptStdin:
		c.AttachStdin, c.OpenStdin, c.StdinOnce = true, true, true
	case promptArgument:
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
		Image:           s.image,
		User:            s.user,
		Env:             slices.Concat([]string{"AGENTFM_MODEL=" + model}, env, s.env),
		AttachStdout:    true,
		AttachStderr:    true,
		NetworkDisabled: s.isolated(),
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
	c.Mounts = append(c.Mounts, mount.Mount{
		Type:        mount.TypeBind,
		Source:      task.OutputDir,
		Target:      outputDir,
		BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate},
	})
	return c
}

// commonHost returns what all containers of the agent may do and use.
func (s *spec) commonHost() *container.HostConfig {
	return &container.HostConfig{
		NetworkMode:    s.network.dockerMode(),
		IpcMode:        container.IPCModePrivate,
		ShmSize:        s.limits.tmpfs,
		CapDrop:        []string{"ALL"},
		SecurityOpt:    s.securityOptions(),
		ReadonlyRootfs: true,
		Tmpfs:          s.tmpfs(),
		Mounts:         slices.Clone(s.mounts),
		Runtime:        s.runtime,
		Init:           &s.init,
		// The output is read as it comes; a log on the engine's disk would
		// have no limit and no reader.
		LogConfig: container.LogConfig{Type: "none"},
		Resources: container.Resources{
			Memory:         s.limits.memory,
			MemorySwap:     s.limits.memory, // the sum of both: no swap
			NanoCPUs:       int64(s.limits.cpus * 1e9),
			PidsLimit:      &s.limits.pids,
			Ulimits:        s.ulimitList(),
			DeviceRequests: slices.Clone(s.gpus),
		},
	}
}

// securityOptions returns what the engine is told beside capabilities. Podman wants the
// seccomp profile as a file, which is placed with those of the container.
func (s *spec) securityOptions() []string {
	options := []string{"no-new-privileges"}
	if s.seccomp != "" && !s.podman {
		options = append(options, "seccomp="+s.seccomp)
	}
	return options
}

// ulimitList returns the limits of a process, those that are set over the defaults.
func (s *spec) ulimitList() []*container.Ulimit {
	var list []*container.Ulimit
	for _, u := range append([]units.Ulimit{
		{Name: "nofile", Soft: maxFiles, Hard: maxFiles},
		{Name: "core", Soft: 0, Hard: 0},
	}, s.ulimits...) {
		list = slices.DeleteFunc(list, func(before *container.Ulimit) bool { return before.Name == u.Name })
		list = append(list, &u)
	}
	return list
}

// tmpfs returns the folders that are in memory: /tmp, and those that the image
// declares as volumes, which the engine would make writable without a limit.
func (s *spec) tmpfs() map[string]string {
	options := fmt.Sprintf("rw,noexec,nosuid,nodev,size=%d,mode=1777", s.limits.tmpfs)
	uid, _, known := ids(s.user)
	switch {
	case s.podman: // which takes no other options, and would copy what the image has there
		options += ",notmpcopyup"
	case known:
		// Where the image has the folder, its mode counts, which may be for its owner alone.
		options += fmt.Sprintf(",uid=%d", uid)
		fallthrough
	default:
		options += fmt.Sprintf(",nr_inodes=%d", max(s.limits.tmpfs/bytesPerFile, minTmpfsFiles))
	}
	folders := map[string]string{"/tmp": options}
	for dir := range s.volumes {
		folders[path.Clean(dir)] = options
	}
	for _, m := range s.mounts { // in place of them
		delete(folders, m.Target)
	}
	return folders
}
