// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/go-units"
)

// Values of Runtime.Prompt.
const (
	promptArgument = "argument"
	promptStdin    = "stdin"
	promptInFile   = "file"
)

var prompts = []string{promptArgument, promptStdin, promptInFile}

// Values of Runtime.Stderr.
const (
	stderrAnswer = "answer"
	stderrLog    = "log"
)

// Defaults, and the least that the Docker engine takes.
const (
	defaultMemory = "512MiB"
	defaultTmpfs  = "64MiB"
	defaultOutput = "1GiB"
	defaultCPUs   = 1
	defaultPIDs   = 256

	// Times to end, and the longest: stopped tasks of a worker that exits have no longer.
	defaultGrace      = 2 * time.Second
	defaultServeGrace = 10 * time.Second
	maxGrace          = 20 * time.Second

	minMemory = 6 << 20
	minCPUs   = 0.01
)

// Provision sets defaults and reads the environment of the agent.
func (r *Runtime) Provision(ctx caddy.Context) error {
	r.logger = ctx.Logger()
	repl := caddy.NewReplacer()
	for name, field := range map[string]*string{
		"image": &r.Image, "build": &r.Build, "host": &r.Host, "env_file": &r.EnvFile,
	} {
		// An unknown placeholder stays: braces may be part of a value.
		value, err := repl.ReplaceOrErr(*field, true, false)
		if err != nil {
			return fmt.Errorf("replacing placeholders in %s: %w", name, err)
		}
		*field = value
	}
	var err error
	if r.environ, err = environment(r.EnvFile, r.Env, repl); err != nil {
		return err
	}
	if r.outlet, err = newOutlet(r.Network, r.Serve, repl); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	r.environ = r.outlet.environ(r.environ)
	if r.secrets, err = readSecrets(r.Secrets, repl); err != nil {
		return err
	}
	r.setDefaults()
	r.limits = limits{cpus: r.CPUs, pids: r.PIDs}
	if r.limits.memory, err = units.RAMInBytes(r.Memory); err != nil {
		return fmt.Errorf("reading memory: %w", err)
	}
	if r.limits.tmpfs, err = units.RAMInBytes(r.Tmpfs); err != nil {
		return fmt.Errorf("reading tmpfs: %w", err)
	}
	if r.Serve == 0 {
		if r.limits.output, err = units.RAMInBytes(r.Output); err != nil {
			return fmt.Errorf("reading output: %w", err)
		}
	}
	if r.ulimits, err = readUlimits(r.Ulimits); err != nil {
		return err
	}
	if r.devices, err = readGPUs(r.GPUs); err != nil {
		return err
	}
	if r.Platform != "" {
		if r.platform, err = parsePlatform(r.Platform); err != nil {
			return err
		}
	}
	if r.Serve != 0 {
		r.provisionServer()
	}
	return nil
}

// readUlimits reads the limits of processes, in the order of their names.
func readUlimits(values map[string]string) ([]units.Ulimit, error) {
	var list []units.Ulimit
	for _, name := range slices.Sorted(maps.Keys(values)) {
		u, err := units.ParseUlimit(name + "=" + values[name])
		if err != nil {
			return nil, fmt.Errorf("reading ulimit %s: %w", name, err)
		}
		list = append(list, *u)
	}
	return list, nil
}

// readGPUs reads which GPUs a container gets.
func readGPUs(s string) ([]container.DeviceRequest, error) {
	request := container.DeviceRequest{Capabilities: [][]string{{"gpu"}}}
	number, err := strconv.Atoi(s)
	list, listed := strings.CutPrefix(s, "device=")
	switch {
	case s == "":
		return nil, nil
	case s == "all":
		request.Count = -1
	case err == nil && number > 0:
		request.Count = number
	case listed && !slices.Contains(strings.Split(list, ","), ""):
		request.DeviceIDs = strings.Split(list, ",")
	default:
		return nil, fmt.Errorf("gpus is %q, not all, a number above 0, or device=<id>,<id>", s)
	}
	return []container.DeviceRequest{request}, nil
}

func (r *Runtime) setDefaults() {
	if r.Stderr == "" && r.Serve == 0 {
		r.Stderr = stderrAnswer
	}
	switch {
	case r.Grace == 0 && r.Serve != 0:
		r.Grace = caddy.Duration(defaultServeGrace)
	case r.Grace == 0:
		r.Grace = caddy.Duration(defaultGrace)
	}
	if r.Pull == "" {
		r.Pull = pullNever
	}
	if r.Memory == "" {
		r.Memory = defaultMemory
	}
	if r.Tmpfs == "" {
		r.Tmpfs = defaultTmpfs
	}
	if r.Output == "" && r.Serve == 0 {
		r.Output = defaultOutput
	}
	if r.CPUs == 0 {
		r.CPUs = defaultCPUs
	}
	if r.PIDs == 0 {
		r.PIDs = defaultPIDs
	}
}

// errNoImage refuses a runtime that has nothing to run.
var errNoImage = errors.New("image or build is required")

// Validate checks the settings. It does not ask the engine.
func (r *Runtime) Validate() error {
	if err := r.together(); err != nil {
		return err
	}
	switch {
	case r.Image == "" && r.Build == "":
		return errNoImage
	case r.Serve < 0 || r.Serve > math.MaxUint16:
		return fmt.Errorf("serve is %d, not a port", r.Serve)
	case r.Prompt != "" && !slices.Contains(prompts, r.Prompt):
		return fmt.Errorf("prompt is %q, not %s", r.Prompt, strings.Join(prompts, ", "))
	case r.Warm < 0 || r.Warm > maxWarm:
		return fmt.Errorf("warm is %d, not a number from 1 to %d", r.Warm, maxWarm)
	case r.Serve == 0 && r.Stderr != stderrAnswer && r.Stderr != stderrLog:
		return fmt.Errorf("stderr is %q, not %s or %s", r.Stderr, stderrAnswer, stderrLog)
	case r.limits.memory < minMemory:
		return fmt.Errorf("memory is %s, less than 6MiB", r.Memory)
	case r.limits.tmpfs <= 0:
		return fmt.Errorf("tmpfs is %s, not a size above 0", r.Tmpfs)
	case r.Serve == 0 && r.limits.output <= 0:
		return fmt.Errorf("output is %s, not a size above 0", r.Output)
	case math.IsNaN(r.CPUs) || math.IsInf(r.CPUs, 0) || r.CPUs < minCPUs:
		return fmt.Errorf("cpus is %v, not a number from %v", r.CPUs, minCPUs)
	case r.Grace < -1 || time.Duration(r.Grace) > maxGrace:
		return fmt.Errorf("grace is %v, not a duration up to %v, or -1", time.Duration(r.Grace), maxGrace)
	case r.PIDs < 0:
		return fmt.Errorf("pids is %d, not a number above 0", r.PIDs)
	case r.User != "" && isRoot(r.User) && !r.AllowRoot:
		return errRoot
	case r.RequireRuntime && r.OCIRuntime == "":
		return errors.New("require_runtime: no runtime is set")
	case r.Pull != pullNever && r.Pull != pullMissing && r.Pull != pullAlways:
		return fmt.Errorf("pull is %q, not %s, %s or %s", r.Pull, pullNever, pullMissing, pullAlways)
	case r.Build != "" && r.Pull != pullNever:
		return errors.New("pull: not with build")
	}
	if err := checkReference(r.Image, r.Build != ""); err != nil {
		return err
	}
	if err := checkMounts(r.Mounts); err != nil {
		return err
	}
	if r.Serve != 0 {
		return r.upstream.Validate()
	}
	return nil
}

// digests are the digests that a reference may have.
var digests = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// checkReference checks the digest of a reference; the rest is the engine's to judge.
func checkReference(ref string, build bool) error {
	name, digest, digested := strings.Cut(ref, "@")
	switch {
	case !digested:
		return nil
	case build:
		return errors.New("image: a digest is not for an image that is built")
	case name == "" || !digests.MatchString(digest):
		return fmt.Errorf("image is %q: want a digest of sha256: and 64 hex digits after a name", ref)
	}
	return nil
}
