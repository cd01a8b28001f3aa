// SPDX-License-Identifier: Apache-2.0

package agentfm_test

import (
	"encoding/json"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/handler/auth"
)

// examples are the Caddyfiles of the examples that the modules of this project
// and Caddy's own are enough for. The one with rate limits is started by e2e.
func examples(t *testing.T) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir("examples", func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, "Caddyfile") && !strings.Contains(path, "rate-limits") {
			found = append(found, path)
		}
		return err
	})
	if err != nil || len(found) < 7 {
		t.Fatalf("examples: %q, %v", found, err)
	}
	return found
}

// pages are the pages of the documentation, and the README.
func pages(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("docs/*.md")
	if err != nil || len(found) < 6 {
		t.Fatalf("pages: %q, %v", found, err)
	}
	return append(found, "README.md")
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// setUpConfigs makes what the configurations of examples and pages need, and
// returns a function that points them to it.
func setUpConfigs(t *testing.T) func(config string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"api-keys":  "alice a-key-of-sixteen-characters\n",
		"swarm.key": "/key/swarm/psk/1.0.0/\n/base16/\n" + strings.Repeat("0f", 32) + "\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("AGENTFM_API_KEYS", "a-key-of-sixteen-characters")
	t.Setenv("AGENTFM_GATEWAY", "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL")
	t.Setenv("MODEL_SERVER", "http://127.0.0.1:11434/v1")
	t.Setenv("AGENTFM_RELAY", os.Getenv("AGENTFM_GATEWAY"))
	t.Setenv("WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	t.Setenv("TEAM_PASSWORD_HASH", "$2a$04$kjP0BeKjPJS41sXDS7ZPBuaafdRhrKFjm5/ZWNP9r2brydXQTh73K")
	t.Setenv("XDG_DATA_HOME", dir)
	return strings.NewReplacer("/etc/caddy/", dir+"/", "/var/log/caddy/", dir+"/", "/var/lib/agentfm/", dir+"/").Replace
}

// adapt returns the JSON of a Caddyfile, of which Caddy says nothing.
func adapt(t *testing.T, file, text string) ([]byte, error) {
	t.Helper()
	adapted, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": file})
	if err == nil && len(warnings) > 0 {
		err = fmt.Errorf("warnings: %v", warnings)
	}
	return adapted, err
}

// validate provisions a configuration.
func validate(config []byte) error {
	var cfg caddy.Config
	if err := caddy.StrictUnmarshalJSON(config, &cfg); err != nil {
		return err
	}
	cfg.Admin = &caddy.AdminConfig{Disabled: true}
	return caddy.Validate(&cfg)
}

// TestExamples validates every example as it stands, but for its folders.
func TestExamples(t *testing.T) {
	here := setUpConfigs(t)
	for _, file := range examples(t) {
		adapted, err := adapt(t, file, here(read(t, file)))
		if err == nil {
			err = validate(adapted)
		}
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// blockForm is a block of code on a page.
var blockForm = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")

// wholeForm begins a whole Caddyfile. Other blocks are for the inside of a site.
var wholeForm = regexp.MustCompile(`^(\{|[^ \n]*[.:][^\n]*\{)\n`)

// TestDocBlocks wants every block of code to be what it says it is, and every
// configuration to be a good one.
func TestDocBlocks(t *testing.T) {
	here := setUpConfigs(t)
	for _, page := range pages(t) {
		if page == "README.md" {
			continue // has tests of its own
		}
		text := read(t, page)
		if n := strings.Count(text, "\n```"); n != 2*len(blockForm.FindAllString(text, -1)) {
			t.Errorf("%s: a block of code does not end, or has a language that is not one word", page)
		}
		for _, m := range blockForm.FindAllStringSubmatch(text, -1) {
			if err := checkBlock(t, page, m[1], here(m[2])); err != nil {
				t.Errorf("%s: %v in\n%s", page, err, m[2])
			}
		}
	}
}

// TestDocTransport wants the example of the transport not to hand what logs a client in to
// whoever takes a name.
func TestDocTransport(t *testing.T) {
	const page = "docs/model-servers.md"
	proxy := regexp.MustCompile(`(?s)\treverse_proxy (\S+) \{\n\t\ttransport agentfm(.*?)\n\t\}`).FindStringSubmatch(read(t, page))
	if proxy == nil {
		t.Fatalf("%s has no example", page)
	}
	if _, err := peer.Decode(proxy[1]); err != nil {
		t.Errorf("to %q: %v", proxy[1], err)
	}
	for _, name := range []string{"Authorization", "Cookie"} {
		if !strings.Contains(proxy[2], "header_up -"+name) {
			t.Errorf("the worker sees %s", name)
		}
	}
}

// checkBlock checks a block by its language.
func checkBlock(t *testing.T, page, language, block string) error {
	switch language {
	case "caddyfile":
		if !wholeForm.MatchString(block) {
			block = ":8080 {\n" + block + "}\n"
		}
		adapted, err := adapt(t, page, block)
		if err != nil {
			return err
		}
		return validate(adapted)
	case "json":
		if !json.Valid([]byte(block)) {
			return fmt.Errorf("not JSON")
		}
		if strings.Contains(block, `"apps"`) {
			return validate([]byte(block))
		}
		return nil
	case "sh":
		out, err := exec.Command("sh", "-n", "-c", block).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	case "go":
		_, err := parser.ParseFile(token.NewFileSet(), "main.go", block, parser.AllErrors)
		return err
	case "text":
		if !strings.Contains(block, "sha256:") {
			return nil
		}
		file := filepath.Join(t.TempDir(), "keys")
		if err := os.WriteFile(file, []byte(block), 0o600); err != nil {
			return err
		}
		_, err := auth.New(auth.Options{File: file})
		return err
	case "python", "js": // e2e runs them
		return nil
	case "promql", "ini":
		return nil
	}
	return fmt.Errorf("language %q is not one of those that are checked", language)
}

var (
	linkForm    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headingForm = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

// anchors returns the anchors of a page, as they are made of headings.
func anchors(text string) map[string]bool {
	found := make(map[string]bool)
	for _, m := range headingForm.FindAllStringSubmatch(blockForm.ReplaceAllString(text, ""), -1) {
		anchor := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		found[strings.ReplaceAll(anchor, " ", "-")] = true
	}
	return found
}

// TestDocLinks wants what a link within the repository leads to to be there, and
// each page and example to be linked.
func TestDocLinks(t *testing.T) {
	linked := make(map[string]bool)
	for _, page := range pages(t) {
		for _, m := range linkForm.FindAllStringSubmatch(blockForm.ReplaceAllString(read(t, page), ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			path, anchor, _ := strings.Cut(m[1], "#")
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), path)
				linked[target] = true
			}
			info, err := os.Stat(target)
			switch {
			case err != nil:
				t.Errorf("%s: link to %s: %v", page, m[1], err)
			case anchor != "" && (info.IsDir() || !anchors(read(t, target))[anchor]):
				t.Errorf("%s: link to %s: no such heading", page, m[1])
			}
		}
	}
	for _, want := range append(append(examples(t), pages(t)...), "examples/rate-limits/Caddyfile", "examples/prometheus/prometheus.yml") {
		if !linked[want] && want != "README.md" {
			t.Errorf("no page links to %s", want)
		}
	}
}

// codeForm is where the source has the code of an error.
var codeForm = regexp.MustCompile(`\b[cC]ode\w*:? *=? *"([a-z_]+)"`)

// TestDocErrors wants the page about errors to have every code that there is, and
// no other.
func TestDocErrors(t *testing.T) {
	there := make(map[string]bool)
	for _, pattern := range []string{"handler/*.go", "handler/auth/*.go", "openai/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			for _, m := range codeForm.FindAllStringSubmatch(read(t, file), -1) {
				there[m[1]] = true
			}
		}
	}
	told := make(map[string]bool)
	for line := range strings.Lines(read(t, "docs/errors.md")) {
		if cells := strings.Split(line, "|"); len(cells) == 6 && regexp.MustCompile(`^ \d+ $`).MatchString(cells[1]) {
			for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(cells[2], -1) {
				told[m[1]] = true
			}
		}
	}
	for code := range there {
		if !told[code] {
			t.Errorf("docs/errors.md does not tell of %s", code)
		}
	}
	for code := range told {
		if !there[code] && code != "forbidden" { // of other handlers alone
			t.Errorf("docs/errors.md tells of %s, which nothing answers with", code)
		}
	}
}
