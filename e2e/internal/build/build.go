// SPDX-License-Identifier: Apache-2.0

// Package build builds the ready-made binary for tests that run it.
package build

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
)

// Build builds the binary from the root of the repository into dir and returns
// its path. It has the race detector when the tests have it. env is the
// environment of the go command; nil is the process's own.
func Build(dir, root string, env []string) (string, error) {
	path := filepath.Join(dir, "agentfm")
	args := []string{"build", "-o", path}
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./xcaddy")...)
	cmd.Dir, cmd.Env = root, env
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the binary: %w\n%s", err, out)
	}
	return path, nil
}
