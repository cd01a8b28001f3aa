// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
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
func (r *Runtime) checkRuntime(info system.Info, host string) error {
	if r.OCIRuntime == "" {
		return nil
	}
	if _, ok := info.Runtimes[r.OCIRuntime]; !ok {
		return fmt.Errorf("runtime %q is not on the Docker engine at %s, which has %s: install it there, or set another",
			r.OCIRuntime, host, strings.Join(slices.Sorted(maps.Keys(info.Runtimes)), ", "))
	}
	return nil
}

// warn says in the log what makes the sandbox weaker than it looks.
func (r *Runtime) warn(ctx context.Context, e engine, info system.Info) {
	for _, w := range weaknesses(info, r.ociRuntime(info), func() (types.Version, error) {
		ctx, cancel := context.WithTimeout(ctx, connectLimit)
		defer cancel()
		return e.ServerVersion(ctx)
	}) {
		r.logger.Warn(w, zap.String("engine", e.DaemonHost()))
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
func weaknesses(info system.Info, runtime string, version func() (types.Version, error)) []string {
	var found []string
	if !seccomp(info.SecurityOptions) {
		found = append(found, "the Docker engine has no seccomp profile: agents may make every system call")
	}
	if runtime != defaultOCIRuntime {
		return found
	}
	v, err := version()
	if err != nil {
		return append(found, "the Docker engine does not tell the version of its runc: "+err.Error())
	}
	for _, c := range v.Components {
		if c.Name != defaultOCIRuntime {
			continue
		}
		if cves := runcCVEs(c.Version); len(cves) > 0 {
			found = append(found, fmt.Sprintf("runc %s of the Docker engine is, by its version, open to %s, by which an agent can leave its container: "+
				"update it, unless your distribution has mended it", c.Version, strings.Join(cves, ", ")))
		}
	}
	return found
}

// seccomp reports whether containers get a seccomp profile.
func seccomp(options []string) bool {
	return slices.ContainsFunc(options, func(o string) bool {
		return strings.HasPrefix(o, "name=seccomp") && !strings.Contains(o, "profile=unconfined")
	})
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
