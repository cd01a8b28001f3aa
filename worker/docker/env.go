// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
)

// maxEnvLine is the longest line of an environment file: Linux hands no longer
// variable to a program.
const maxEnvLine = 128 << 10

// environment returns the variables of an environment file, if there is one,
// with those of env after them, as NAME=value. Its errors show no value, and no
// text of the file: what is wrong there may be a secret in the wrong place.
func environment(file string, env map[string]string, repl *caddy.Replacer) ([]string, error) {
	vars := make(map[string]string)
	if file != "" {
		if err := readEnvFile(file, vars); err != nil {
			return nil, err
		}
	}
	for name, value := range env {
		value, err := repl.ReplaceOrErr(value, true, false)
		if err != nil {
			return nil, fmt.Errorf("replacing placeholders in env %s: %w", name, err)
		}
		if !validVariable(name, value) {
			return nil, fmt.Errorf("env %q is no name of a variable, or its value has a NUL byte", name)
		}
		vars[name] = value
	}
	list := make([]string, 0, len(vars))
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		list = append(list, name+"="+vars[name])
	}
	return list, nil
}

// readEnvFile adds the lines NAME=value of a file to vars. A later line wins.
func readEnvFile(file string, vars map[string]string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("opening env_file: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxEnvLine)
	number := 0
	for lines.Scan() {
		number++
		line := strings.TrimLeft(lines.Text(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, found := strings.Cut(line, "=")
		if !found || !validVariable(name, value) {
			return fmt.Errorf("%s:%d: not a line NAME=value", file, number)
		}
		vars[name] = value
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%s:%d: %w", file, number+1, err)
	}
	return nil
}

// validVariable reports whether a variable can be in the environment of a program.
func validVariable(name, value string) bool {
	return name != "" && !strings.ContainsAny(name, "= \t\x00") && !strings.ContainsRune(value, 0)
}
