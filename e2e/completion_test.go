// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// completionScript completes a line as bash does, without the package bash-completion.
const completionScript = `set -u
_get_comp_words_by_ref() { cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD; }
compopt() { :; }
eval "$(agentfm completion bash)"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMPREPLY=()
__start_agentfm
printf '%s\n' "${COMPREPLY[@]-}"
`

// TestCompletion wants bash to complete commands, flags and values, and to run nothing that a
// stranger's worker is called.
func TestCompletion(t *testing.T) {
	t.Parallel()
	needProgram(t, "bash")
	p := start(t, home(t), caddyfile(localMesh, withKey,
		agent("report", "Text report", "text-report", command(reportScript)),
		agent("evil", "$(touch pwned)", `"$(touch pwned)"`, command(reportScript))))
	p.awaitWorkers(2)
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for line, want := range map[string]string{
		"agentfm agentfm ta":                   "tasks\n",
		"agentfm agentfm tasks list --stat":    "--status\n",
		"agentfm agentfm tasks list --status ": "queued\nrunning\n",
		"agentfm agentfm run --model ":         "text-report\n",
		"agentfm agentfm run --peer ":          p.workerID("Text report") + "\n",
		"agentfm agentfm genkey ":              "swarm\n",
	} {
		cmd := exec.CommandContext(t.Context(), "bash", append([]string{"-c", completionScript, "bash"}, strings.Split(line, " ")...)...)
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + filepath.Dir(program) + ":" + os.Getenv("PATH"), "HOME=" + dir, "AGENTFM_GATEWAY_URL=" + p.url, "AGENTFM_API_KEY=" + testKey}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains("\n"+string(out), "\n"+want) || strings.Contains(string(out), "touch") {
			t.Errorf("%s: %q, %v", line, out, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "pwned")); !os.IsNotExist(err) {
		t.Error("the shell has run what a worker is called")
	}
}
