// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The programs of the pages for clients work, with nothing changed but where the
// gateway is.
func TestDocClients(t *testing.T) {
	needProgram(t, "curl")
	var pages []byte
	for _, name := range []string{"docs/clients.md", "docs/idempotency.md"} {
		page, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, page...)
	}
	dir := home(t)
	p := start(t, dir, caddyfile(localMesh, "agentfm {\n\t\tapi_keys "+testKey+"\n\t}",
		agent("report", "Text report", "text-report", command(reportScript))))
	p.awaitWorkers(1)
	for _, m := range regexp.MustCompile("(?s)```(sh|python|js)\n(.*?)```").FindAllStringSubmatch(string(pages), -1) {
		t.Run(m[1], func(t *testing.T) {
			code := strings.ReplaceAll(m[2], "https://gateway.example.com", p.url)
			var cmd *exec.Cmd
			switch m[1] {
			case "sh":
				cmd = exec.CommandContext(t.Context(), "sh", "-euc", code)
				cmd.Dir = dir
			case "python":
				cmd = exec.CommandContext(t.Context(), need(t, "AGENTFM_TEST_PYTHON"), "-c", code)
				cmd.Dir = dir
			case "js":
				cmd = exec.CommandContext(t.Context(), need(t, "AGENTFM_TEST_NODE"), "--input-type=module", "-e", code)
				cmd.Dir = "node" // where its packages are
			}
			cmd.Env = append(os.Environ(), "AGENTFM_API_KEY="+testKey)
			if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "Words: 6") {
				t.Errorf("%v, without a report in\n%s\nof\n%s", err, out, code)
			}
		})
	}
}
