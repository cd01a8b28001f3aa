// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/docker/docker/api/types/mount"
)

const (
	// secretsDir is where an agent finds its secrets.
	secretsDir = "/run/secrets"
	// maxSecret is the largest secret in bytes.
	maxSecret = 1 << 20
)

// secret is a file in secretsDir.
type secret struct {
	name string
	text string // what is in it; or else
	file string // the file that has it, read for each container
}

var (
	secretName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	// onePlaceholder is a value that stands for the text of a secret. Any other is the
	// name of a file.
	onePlaceholder = regexp.MustCompile(`^\{[^{}]+\}$`)
)

// readSecrets returns the secrets of a configuration, in the order of their names. Its
// errors show no value.
func readSecrets(values map[string]string, repl *caddy.Replacer) ([]secret, error) {
	var list []secret
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if !secretName.MatchString(name) {
			return nil, fmt.Errorf("secret %q is no name of a file: use letters, digits, '.', '_' and '-'", name)
		}
		value, err := repl.ReplaceOrErr(values[name], true, true)
		if err != nil {
			return nil, fmt.Errorf("replacing placeholders in secret %s: %w", name, err)
		}
		switch {
		case onePlaceholder.MatchString(values[name]) && len(value) > maxSecret:
			return nil, fmt.Errorf("secret %s has over %d bytes", name, maxSecret)
		case onePlaceholder.MatchString(values[name]):
			list = append(list, secret{name: name, text: value})
		case value == "":
			return nil, fmt.Errorf("secret %s: want a file, or a placeholder", name)
		default:
			list = append(list, secret{name: name, file: value})
		}
	}
	return list, nil
}

// read returns what the secret is now.
func (s secret) read() ([]byte, error) {
	if s.file == "" {
		return []byte(s.text), nil
	}
	f, err := os.Open(s.file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(b) > maxSecret {
		err = fmt.Errorf("it has over %d bytes", maxSecret)
	}
	return b, err
}

// secretsHome returns the folder of the host that the secrets of an agent's containers
// are in while these run: in memory where this process may, and nowhere for others to
// read.
func secretsHome(peerID string) string {
	base := caddy.AppDataDir()
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		base = dir
	} else if info, err := os.Stat("/run"); os.Geteuid() == 0 && err == nil && info.IsDir() {
		base = "/run"
	}
	return filepath.Join(base, "agentfm", "secrets", peerID)
}

// placeSecrets lays out the secrets for a container, and returns how the container gets
// them; drop is for when it is gone.
func (s *spec) placeSecrets(id string) (mounts []mount.Mount, drop func() error, err error) {
	if len(s.secrets) == 0 {
		return nil, func() error { return nil }, nil
	}
	home := secretsHome(s.agent.PeerID)
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, nil, fmt.Errorf("making a folder for secrets: %w", err)
	}
	dir := filepath.Join(home, id)
	remove := func() error { return os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			err = errors.Join(err, remove())
		}
	}()
	// the container's user has to get in; others do not get as far as here
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, nil, fmt.Errorf("making a folder for secrets: %w", err)
	}
	for _, secret := range s.secrets {
		b, err := secret.read()
		if err == nil {
			err = s.placeSecret(filepath.Join(dir, secret.name), b)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("secret %s: %w", secret.name, err)
		}
	}
	return []mount.Mount{bind(dir, secretsDir)}, remove, nil
}

// placeSecret writes one secret: for the user of the container alone where we may give
// it to that one, and else readable in the container.
func (s *spec) placeSecret(name string, b []byte) error {
	if err := os.WriteFile(name, b, 0o400); err != nil {
		return err
	}
	uid, gid, known := ids(s.user)
	if known && !s.mapped && os.Chown(name, uid, gid) == nil {
		return nil
	}
	return os.Chmod(name, 0o444)
}

// sweepSecrets removes what is left of the secrets of an agent's containers that are gone.
func sweepSecrets(peerID string) error {
	home := secretsHome(peerID)
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

// secretKey tells what the secrets are, for a container that is kept while that is the
// same.
func (s *spec) secretKey() string {
	var b strings.Builder
	for _, secret := range s.secrets {
		fmt.Fprintf(&b, "%q %q %q\n", secret.name, secret.text, secret.file)
	}
	return b.String()
}
