// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/docker/docker/api/types/mount"

	"github.com/Agent-FM/caddy-agentfm/internal/option"
)

// Mount is a file or a folder of the host that a container sees, read-only and without
// what is mounted below it.
type Mount struct {
	// Source is its absolute path on the host. What rules the host is refused: `/`,
	// `/dev`, `/proc`, `/run`, `/sys`, `/var/run`, the engine's and Caddy's own folders,
	// what is in these or has them in it, and whatever is no file and no folder.
	Source string `json:"source"`
	// Target is its absolute path in the container.
	Target string `json:"target"`
}

// engineDir is where an engine keeps its images and containers, unless told otherwise.
const engineDir = "/var/lib/docker"

// ruling are folders of the host by which a container would rule it, or learn what is
// not for it: devices, the kernel's settings, the sockets of its services, what the
// engine keeps in its folder root, and Caddy's folders, of which that of configurations
// has their keys, and that of containers the secrets of other agents.
func ruling(host, root string) []string {
	dirs := []string{"/dev", "/proc", "/run", "/sys", "/var/run", engineDir, caddy.AppDataDir(), caddy.AppConfigDir(), filesHome("")}
	if filepath.IsAbs(root) {
		dirs = append(dirs, root)
	}
	if socket, ok := strings.CutPrefix(host, "unix://"); ok {
		dirs = append(dirs, socket)
	}
	return dirs
}

// readMount reads the option mount.
func readMount(list *[]Mount) option.Option {
	return option.Each(func(d *caddyfile.Dispenser) error {
		args := d.RemainingArgs()
		if len(args) != 2 {
			return d.Err("mount: want a path on the host and a path in the container")
		}
		*list = append(*list, Mount{Source: args[0], Target: args[1]})
		if d.NextBlock(d.Nesting()) {
			return d.Err("unexpected block")
		}
		return nil
	})
}

// checkMounts checks what the paths say.
func checkMounts(mounts []Mount) error {
	taken := make(map[string]bool)
	for _, m := range mounts {
		target := path.Clean(m.Target)
		switch {
		case !filepath.IsAbs(m.Source):
			return fmt.Errorf("mount %q: want an absolute path on the host", m.Source)
		case !path.IsAbs(m.Target):
			return fmt.Errorf("mount %q: want an absolute path in the container, not %q", m.Source, m.Target)
		case taken[target]:
			return fmt.Errorf("mount %q: %s is there twice", m.Source, target)
		}
		taken[target] = true
		for _, own := range []string{"/dev", "/proc", "/sys", inputDir, outputDir, secretsDir} {
			if within(target, own) || within(own, target) {
				return fmt.Errorf("mount %q: %s is not for it, since %s is there", m.Source, target, own)
			}
		}
		if err := checkSource(m.Source, ruling("", "")); err != nil {
			return err
		}
	}
	return nil
}

// checkSource refuses a path of the host that is in one of the folders, or has one in it.
func checkSource(source string, refused []string) error {
	for _, dir := range refused {
		if within(filepath.Clean(source), filepath.Clean(dir)) || within(filepath.Clean(dir), filepath.Clean(source)) {
			return fmt.Errorf("mount %q: an agent must not see %s", source, dir)
		}
	}
	return nil
}

// within reports whether a path is a folder or in it.
func within(name, dir string) bool {
	rest, ok := strings.CutPrefix(name, strings.TrimSuffix(dir, "/"))
	return ok && (rest == "" || rest[0] == '/')
}

// resolveMounts looks where the mounts of an engine's containers lead, and returns them
// as the engine takes them, which is at host and keeps what it has in root.
func resolveMounts(mounts []Mount, host, root string) ([]mount.Mount, error) {
	var refused []string
	for _, dir := range ruling(host, root) {
		refused = append(refused, dir)
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			refused = append(refused, real)
		}
	}
	var resolved []mount.Mount
	for _, m := range mounts {
		source, err := filepath.EvalSymlinks(m.Source)
		if err != nil {
			return nil, fmt.Errorf("mount %q: %w", m.Source, err)
		}
		if err := checkSource(source, refused); err != nil {
			return nil, fmt.Errorf("mount %q: it is %w", m.Source, err)
		}
		if err := plain(source); err != nil {
			return nil, fmt.Errorf("mount %q: %w", m.Source, err)
		}
		resolved = append(resolved, bind(source, path.Clean(m.Target)))
	}
	return resolved, nil
}

// plain refuses what is no file and no folder, and a folder with a socket in it.
func plain(source string) error {
	info, err := os.Stat(source)
	switch {
	case err != nil:
		return err
	case info.Mode().IsRegular():
		return nil
	case !info.IsDir():
		return errors.New("want a file or a folder")
	}
	entries, err := os.ReadDir(source)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type() == fs.ModeSocket {
			return fmt.Errorf("it has a socket in it, %s", e.Name())
		}
	}
	return nil
}

// bind returns a read-only mount of the host. What is mounted below it on the host,
// which the engine might leave writable, is no part of it.
func bind(source, target string) mount.Mount {
	return mount.Mount{
		Type: mount.TypeBind, Source: source, Target: target, ReadOnly: true,
		BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate, NonRecursive: true},
	}
}
