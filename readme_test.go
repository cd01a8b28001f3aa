// SPDX-License-Identifier: Apache-2.0

package agentfm_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/Agent-FM/caddy-agentfm/handler/auth"
)

// blocks returns the code blocks of the README in a language.
func blocks(t *testing.T, language string) []string {
	t.Helper()
	b, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(string(b), -1) {
		out = append(out, m[1])
	}
	if len(out) == 0 {
		t.Fatalf("no %s in the README", language)
	}
	return out
}

// TestReadmeJSON wants the JSON reference to be a valid configuration with every
// field that there is.
func TestReadmeJSON(t *testing.T) {
	t.Setenv("AGENTFM_API_KEYS", "a-key-of-sixteen-characters")
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	for _, block := range blocks(t, "json") {
		var cfg caddy.Config
		if err := json.Unmarshal([]byte(block), &cfg); err != nil {
			t.Fatal(err)
		}
		cfg.Admin = &caddy.AdminConfig{Disabled: true}
		if err := caddy.Validate(&cfg); err != nil {
			t.Errorf("%v in\n%s", err, block)
		}
	}
}

// TestReadmeCaddyfile fills the reference in and adapts it.
func TestReadmeCaddyfile(t *testing.T) {
	replace := strings.NewReplacer(
		"<multiaddr>... | off", "off", "mdns|dht... | off", "mdns dht", "argument|stdin|file", "stdin", "argument|stdin", "stdin", "answer|log", "log",
		"<percent>|off", "50", "<matcher>", "/v1/*", "[", "", "]", "", "<program> <args>...", "cat -u",
		"<name> <value>", "A b", "<size>", "1MiB", "<n>", "1", "<number>", "2", "<score>", "-0.5", "<duration>|off", "off", "<duration>", "1m",
		"policy        <name>", "policy sticky",
		"<multiaddr>...", "/ip4/127.0.0.1/tcp/0",
		"<peer id>...", "12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL", "<key>...", "a-key-of-sixteen-characters",
		"<origin>...", "https://app.example.com",
		"<kebab-case>", "a-b", "<name or file>", "x", "<text>", "x", "<dir>", "/x", "<folder>", "/x", "<secret>", "x", "<old secret>", "y", "<file> <key file>", "/x /y", "<file>", "/x",
		"<url>", "http://x", "<name> <password>", "a b", "<token>", "x", "<key>", "x", "<model>...", "a b", "<offered> <model>", "a b", "<route>...", "/v1/x",
		"<host:port>...", "api.example.com:443", "<reference>", "x", "never|missing|always", "never", "<os>/<arch>", "linux/amd64", "<host path> <path>", "/srv/x /x",
		"secret   <name>", "secret x", "ulimit   <name> <soft>:<hard>", "ulimit nofile 64:64", "<user>", "1000", "runtime  <name>", "runtime x", "<port>", "8080", "<address>", "unix:///x",
	)
	keys := []string{"first", "second", "third", "fourth", "fifth", "sixth"}
	for _, block := range blocks(t, "caddyfile") {
		for _, key := range keys {
			block = strings.Replace(block, "agent <key>", "agent "+key, 1)
		}
		if _, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(replace.Replace(block)), nil); err != nil {
			t.Errorf("%v in\n%s", err, replace.Replace(block))
		}
	}
}

// TestReadmeKeys reads the key file.
func TestReadmeKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, []byte(blocks(t, "text")[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := auth.New(auth.Options{File: file}); err != nil {
		t.Error(err)
	}
}
