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

// What the README says to type under "Try it" works, with nothing changed but
// the port.
func TestReadmeCommands(t *testing.T) {
	needProgram(t, "curl")
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```(sh|python)\n(.*?)```").FindAllStringSubmatch(string(readme), 3)
	if len(blocks) != 3 || blocks[0][2] != "go run ./xcaddy run --config examples/quickstart/Caddyfile\n" {
		t.Fatalf("the README does not begin with the quickstart: %q", blocks)
	}
	p, dir := startQuickstart(t)
	for i, want := range []string{"data: [DONE]\n", "agentfm_artifacts/"} {
		language, block := blocks[i+1][1], blocks[i+1][2]
		t.Run(language, func(t *testing.T) {
			interpreter := "sh"
			if language == "python" {
				interpreter = need(t, "AGENTFM_TEST_PYTHON")
			}
			code := strings.ReplaceAll(block, "http://localhost:8080", p.url)
			cmd := exec.CommandContext(t.Context(), interpreter, "-c", code)
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), want) || !strings.Contains(string(out), "- Words: ") {
				t.Errorf("%v, without %q in\n%s", err, want, out)
			}
		})
	}
}
