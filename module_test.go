// SPDX-License-Identifier: Apache-2.0

package agentfm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	_ "github.com/Agent-FM/caddy-agentfm"
)

// TestModules wants exactly these modules: their names are in people's
// configurations.
func TestModules(t *testing.T) {
	want := []string{
		"admin.api.agentfm",
		"agentfm",
		"agentfm.runtimes.docker",
		"agentfm.runtimes.openai",
		"agentfm.runtimes.process",
		"agentfm.selection_policies.least_loaded",
		"agentfm.selection_policies.power_of_two",
		"agentfm.selection_policies.round_robin",
		"agentfm.selection_policies.sticky",
		"agentfm_worker",
		"http.authentication.providers.agentfm",
		"http.handlers.agentfm",
		"http.reverse_proxy.transport.agentfm",
	}
	var got []string
	for _, id := range caddy.Modules() {
		if strings.Contains(id, "agentfm") {
			got = append(got, id)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

const module = "github.com/Agent-FM/caddy-agentfm"

// allowed are the packages of the project that each package may import. Imports
// point one way, from what is joined together to the parts.
var allowed = map[string][]string{
	"openai":                       {},
	"mesh/wire":                    {},
	"router":                       {},
	"internal/await":               {},
	"internal/command":             {"client", "handler/auth", "internal/way", "ledger/wire", "mesh/wire", "openai", "worker"},
	"internal/freeport":            {},
	"internal/ipclass":             {},
	"internal/lifetime":            {},
	"internal/limit":               {},
	"internal/metrics":             {},
	"internal/mode":                {},
	"internal/option":              {},
	"internal/way":                 {},
	"internal/webhook":             {},
	"mesh":                         {"mesh/wire", "router", "internal/ipclass", "internal/lifetime", "internal/limit", "internal/metrics", "internal/option"},
	"ledger/wire":                  {},
	"ledger/tree":                  {"ledger/wire"},
	"ledger/store":                 {"ledger/tree", "ledger/wire"},
	"ledger":                       {"ledger/store", "ledger/wire", "mesh", "internal/lifetime", "internal/limit", "internal/metrics"},
	"tasks":                        {"internal/ipclass", "internal/lifetime", "internal/metrics", "internal/webhook"},
	"worker":                       {"mesh", "mesh/wire", "internal/lifetime", "internal/metrics", "internal/option"},
	"worker/process":               {"worker", "mesh/wire", "internal/option"},
	"worker/docker":                {"worker", "worker/upstream", "mesh/wire", "internal/ipclass", "internal/option", "internal/way"},
	"worker/upstream":              {"worker", "openai", "mesh/wire", "internal/option"},
	"router/policy":                {"router", "internal/option"},
	"handler/auth":                 {"internal/metrics", "internal/option", "internal/webhook"},
	"handler":                      {"handler/auth", "ledger", "ledger/store", "ledger/wire", "tasks", "internal/metrics", "internal/webhook", "openai", "router", "router/policy", "mesh", "mesh/wire", "internal/option"},
	"caddyfile":                    {"mesh", "worker", "handler", "handler/auth"},
	"":                             {"caddyfile", "handler", "handler/auth", "internal/command", "mesh", "router/policy", "worker", "worker/docker", "worker/process", "worker/upstream"},
	"client":                       {"client/unzip", "openai"},
	"client/unzip":                 {},
	"client/localgateway":          {"client"},
	"xcaddy":                       {"", "internal/mode", "mesh"},
	"bench":                        {},
	"bench/profiled":               {""},
	"bench/simulation":             {},
	"worker/docker/internal/probe": {"internal/way"},
}

// forbidden are packages from outside that a package must not know.
var forbidden = map[string][]string{
	"openai":    {"caddyserver", "libp2p"},
	"mesh/wire": {"."}, // nothing but the standard library
	"router":    {"caddyserver", "libp2p", "net/http"},
	"tasks":     {"caddyhttp", "libp2p"},

	"ledger/wire":  {"caddyserver"},
	"ledger/tree":  {"caddyserver", "libp2p"},
	"ledger/store": {"caddyserver"},
}

func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		may, known := allowed[name]
		if strings.HasPrefix(name, "examples/go/") {
			may, known = []string{"client", "client/localgateway"}, true
		}
		if !known && len(p.Imports) > 0 && !strings.HasPrefix(name, "e2e") {
			t.Errorf("package %q is not in the plan of imports", name)
		}
		for _, i := range p.Imports {
			if rest, ours := strings.CutPrefix(i, module); ours {
				if !slices.Contains(may, strings.TrimPrefix(rest, "/")) {
					t.Errorf("%s imports %s", p.ImportPath, i)
				}
				continue
			}
			for _, f := range forbidden[name] {
				if strings.Contains(i, f) {
					t.Errorf("%s imports %s", p.ImportPath, i)
				}
			}
		}
	}
}

// TestLicence wants its line in every source file.
func TestLicence(t *testing.T) {
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains([]string{".git", ".tools", ".peers", "node_modules"}, d.Name()) {
			return filepath.SkipDir
		}
		if !slices.Contains([]string{".go", ".sh", ".py", ".mjs"}, filepath.Ext(path)) {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !strings.Contains(string(b[:min(len(b), 200)]), "SPDX-License-Identifier: Apache-2.0") {
			t.Errorf("%s has no licence line", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
