// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/docker/api/types/registry"
)

// Docker's own registry, as references name it, and as the file of credentials does.
const (
	hubDomain = "docker.io"
	hubKey    = "index.docker.io"
)

// maxDockerConfig is how much of the file of credentials is read, in bytes.
const maxDockerConfig = 1 << 20

// registryAuth returns the credentials for the registry of an image, as the engine takes
// them: those that `docker login` has left in the file config.json in DOCKER_CONFIG, or
// in .docker at home. Empty for none. Programs that keep credentials are not asked. Its
// errors show nothing of the file.
func registryAuth(image string) (string, error) {
	name, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return "", err
	}
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", nil // nobody has logged in
		}
		dir = filepath.Join(home, ".docker")
	}
	file := filepath.Join(dir, "config.json")
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	var config struct {
		Auths map[string]struct {
			Auth          string `json:"auth"`
			IdentityToken string `json:"identitytoken"`
		} `json:"auths"`
	}
	if err := json.NewDecoder(io.LimitReader(f, maxDockerConfig)).Decode(&config); err != nil {
		return "", fmt.Errorf("%s is not as docker login writes it", file)
	}
	// In order: "…/v1/" of Docker's own registry is before "…/v1/access-token", which is
	// for docker login itself.
	for _, key := range slices.Sorted(maps.Keys(config.Auths)) {
		entry := config.Auths[key]
		if registryOf(key) != reference.Domain(name) || entry.Auth == "" && entry.IdentityToken == "" {
			continue
		}
		login, err := base64.StdEncoding.DecodeString(entry.Auth)
		user, password, found := strings.Cut(strings.TrimRight(string(login), "\x00"), ":")
		if err != nil || entry.Auth != "" && !found {
			return "", fmt.Errorf("%s has no login for %s that could be read", file, key)
		}
		return registry.EncodeAuthConfig(registry.AuthConfig{
			Username: user, Password: password, IdentityToken: entry.IdentityToken, ServerAddress: key,
		})
	}
	return "", nil
}

// registryOf returns the registry that a key of the file of credentials means.
func registryOf(key string) string {
	_, rest, found := strings.Cut(key, "://")
	if !found {
		rest = key
	}
	host, _, _ := strings.Cut(rest, "/")
	if host == hubKey {
		return hubDomain
	}
	return host
}
