// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/system"
	"go.uber.org/zap"
	"golang.org/x/mod/semver"
)

// defaultOCIRuntime is the one of whose weaknesses we know.
const defaultOCIRuntime = "runc"

// checkRuntime checks that the engine has the runtime that is asked for. There is no
// other in its place: who asks for a stronger sandbox should not get a weaker one.
func (r *Runtime) checkRuntime(info system.Info, version types.Version, host string) error {
	if r.OCIRuntime == "" {
		return nil
	}
	if isPodman(version) {
		return fmt.Errorf("runtime %q: Podman, at %s, does not tell which runtime a container gets: set its own in containers.conf, and leave the option out", r.OCIRuntime, host)
	}
	if _, ok := info.Runtimes[r.OCIRuntime]; !ok {
		return fmt.Errorf("runtime %q is not on the Docker engine at %s, which has %s: install it there, or set another",
			r.OCIRuntime, host, strings.Join(slices.Sorted(maps.Keys(info.Runtimes)), ", "))
	}
	return nil
}

// warn says in the log what makes the sandbox weaker than it looks.
func (r *Runtime) warn(host string, info system.Info, version types.Version) {
	for _, w := range weaknesses(info, r.ociRuntime(info), version) {
		r.logger.Warn(w, zap.String("engine", host))
	}
}

// ociRuntime returns the name of the runtime that containers get.
func (r *Runtime) ociRuntime(info system.Info) string {
	if r.OCIRuntime != "" {
		return r.OCIRuntime
	}
	return info.DefaultRuntime
}

// weaknesses returns what is known to be weak of an engine.
func weaknesses(info system.Info, runtime string, version types.Version) []string {
	var found []string
	if _, ok := seccompOf(info.SecurityOptions); !ok {
		found = append(found, "the Docker engine has no seccomp: agents may make every system call")
	}
	for _, c := range version.Components {
		c = ociComponent(c)
		if c.Name != defaultOCIRuntime || c.Name != runtime {
			continue
		}
		if cves := runcCVEs(c.Version); len(cves) > 0 {
			found = append(found, fmt.Sprintf("runc %s of the Docker engine is, by its version, open to %s, by which an agent can leave its container: "+
				"update it, unless your distribution has mended it", c.Version, strings.Join(cves, ", ")))
		}
	}
	return found
}

// ociComponent returns a component of an engine as Docker tells it. Podman says "OCI
// Runtime (runc)", and "runc version 1.1.5" with more lines.
func ociComponent(c types.ComponentVersion) types.ComponentVersion {
	name, ok := strings.CutPrefix(c.Name, "OCI Runtime (")
	if !ok {
		return c
	}
	c.Name = strings.TrimSuffix(name, ")")
	line, _, _ := strings.Cut(c.Version, "\n")
	c.Version = strings.TrimPrefix(line, c.Name+" version ")
	return c
}

// seccompOf returns the seccomp profile of an engine; false where it has no seccomp.
func seccompOf(options []string) (profile string, ok bool) {
	for _, o := range options {
		if o, found := strings.CutPrefix(o, "name=seccomp"); found {
			_, profile, _ = strings.Cut(o, "profile=")
			return profile, true
		}
	}
	return "", false
}

// seccompFor returns the seccomp profile that an engine is told: ours, or none for an
// engine whose operator has chosen one.
func seccompFor(info system.Info) (string, error) {
	profile, ok := seccompOf(info.SecurityOptions)
	if !ok || !slices.Contains([]string{"", "builtin", "default", "unconfined"}, profile) {
		return "", nil
	}
	return seccompProfile()
}

// isPodman reports whether the engine is Podman, which speaks Docker's API.
func isPodman(version types.Version) bool {
	return slices.ContainsFunc(version.Components, func(c types.ComponentVersion) bool { return strings.HasPrefix(c.Name, "Podman") })
}

// runcCVEs returns what a version of runc is open to, of what lets an agent out.
func runcCVEs(version string) []string {
	v := "v" + strings.TrimPrefix(version, "v")
	if !semver.IsValid(v) {
		return nil
	}
	before := func(w string) bool { return semver.Compare(v, w) < 0 }
	var cves []string
	if before("v1.1.12") {
		cves = append(cves, "CVE-2024-21626")
	}
	if before("v1.2.8") || !before("v1.3.0-0") && before("v1.3.3") || !before("v1.4.0-0") && before("v1.4.0-rc.3") {
		cves = append(cves, "CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881")
	}
	return cves
}
