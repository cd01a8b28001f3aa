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

// completionScripts complete the line that their arguments are, as the shells do that they are for, and print the words
// that are offered. What those have of it elsewhere, the package bash-completion and the editor of zsh, is stood in for.
var completionScripts = map[string]string{
	"bash": `set -u
_get_comp_words_by_ref() { cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD; }
compopt() { :; }
eval "$(agentfm completion bash)"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMPREPLY=()
__start_agentfm
printf '%s\n' "${COMPREPLY[@]-}"
`,
	"zsh": `compdef() { : }
_describe() { print -rl -- "${(@)${(@P)@[-1]}%%:*}" }
source <(agentfm completion zsh)
words=("$@") CURRENT=$#
_agentfm
`,
	"fish": `agentfm completion fish | source
complete -C "$argv[2..]" | string split -f1 \t; or true
`,
}

// TestCompletion wants shells to complete commands, flags and values, and to run nothing that a
// stranger's worker is called.
func TestCompletion(t *testing.T) {
	t.Parallel()
	for shell := range completionScripts {
		needProgram(t, shell)
	}
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
		for shell, script := range completionScripts {
			cmd := exec.CommandContext(t.Context(), shell, append([]string{"-c", script, shell}, strings.Split(line, " ")...)...)
			cmd.Dir = dir
			cmd.Env = []string{"PATH=" + filepath.Dir(program) + ":" + os.Getenv("PATH"), "HOME=" + dir, "AGENTFM_GATEWAY_URL=" + p.url, "AGENTFM_API_KEY=" + testKey}
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains("\n"+string(out), "\n"+want) || strings.Contains(string(out), "touch") {
				t.Errorf("%s: %s: %q, %v", shell, line, out, err)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "pwned")); !os.IsNotExist(err) {
		t.Error("the shell has run what a worker is called")
	}
}
