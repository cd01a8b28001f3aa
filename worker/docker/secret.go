// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
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
	switch info, err := os.Stat(s.file); { // a FIFO would have us wait for its writer
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no file", s.file)
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

// placeSecrets writes the secrets into a folder for a container.
func (s *spec) placeSecrets(dir string) error {
	for _, secret := range s.secrets {
		b, err := secret.read()
		if err == nil {
			err = s.placeFile(filepath.Join(dir, secret.name), b)
		}
		if err != nil {
			return fmt.Errorf("secret %s: %w", secret.name, err)
		}
	}
	return nil
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
