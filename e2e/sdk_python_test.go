// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/client"
)

// brokenScript fails half-way at the prompt of the block about errors, and reports on all
// others.
const brokenScript = `prompt=$(cat)
[ "$prompt" != "..." ] || { echo half; exit 3; }
printf %s "$prompt" | sh "$REPORT"
`

// muteScript fails at that prompt before it has said anything.
const muteScript = `prompt=$(cat)
[ "$prompt" != "..." ] || exit 3
printf %s "$prompt" | sh "$REPORT"
`

// fullScript keeps its place for ever at the prompt "hold", and reports on all others.
const fullScript = `prompt=$(cat)
[ "$prompt" != hold ] || { echo held; exec sleep 600; }
printf %s "$prompt" | sh "$REPORT"
`

// TestAgentFMSDKBlocks runs the code of the page of agentfm-sdk on PyPI, block by block.
func TestAgentFMSDKBlocks(t *testing.T) {
	python := need(t, "AGENTFM_TEST_PYTHON")
	program, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	report, err := filepath.Abs(filepath.Join(root, reportScript))
	if err != nil {
		t.Fatal(err)
	}
	m := newMesh(t, withKey, "AGENTFM_WEBHOOK_SECRET="+webhookSecret, "AGENTFM_WEBHOOK_ALLOW_PRIVATE=1")
	m.worker(
		agent("report", "Text report", "llama3.2", command(report)),
		agent("second", "Second report", "llama3.2", command(report)),
		agent("flux", "Flux", "flux.2", command(report)),
		agent("broken", "Broken", "broken", command(writeScript(t, brokenScript), "REPORT", report)),
		agent("mute", "Mute", "mute", command(writeScript(t, muteScript), "REPORT", report)),
		strings.Replace(agent("full", "Full", "full", command(writeScript(t, fullScript), "REPORT", report)), "max_tasks 4", "max_tasks 1", 1),
	)
	remote := joinMesh(t, "", m.address, withKey).gateway // it has no addresses of the workers that it hears of
	remote.awaitWorkers(6)
	p := m.gateway
	p.awaitWorkers(6)
	for _, w := range p.workers().Agents {
		rating := 0.5
		if _, err := p.sdk().Peers.Comment(t.Context(), w.PeerID, client.CommentRequest{Text: "Quick, and right. ü", Rating: &rating}); err != nil {
			t.Fatal(err)
		}
	}

	key, address := swarmKey(t), "/ip4/127.0.0.1/tcp/"+freePorts(t, 1)[0]
	private := start(t, home(t), caddyfile("\n\t\t\tbootstrap off\n\t\t\tdiscovery off\n\t\t\tswarm_key "+key, "",
		agent("private", "Private report", "llama3.2", command(report)+"\n\t\t\tlisten "+address)))
	bootstrap := fmt.Sprintf("%s/p2p/%s", address, private.awaitLog("agent is on the mesh")["peer"])

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	script, err := filepath.Abs("python/agentfm_sdk_client.py")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, python, script)
	cmd.Dir = t.TempDir()
	if err := os.Symlink(filepath.Join(p.cmd.Dir, "artifacts"), filepath.Join(cmd.Dir, "agentfm_artifacts")); err != nil { // where it looks for files
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "GATEWAY_URL="+p.url, "GATEWAY_KEY="+testKey, "GATEWAY_SECRET="+webhookSecret,
		"GATEWAY_REMOTE="+remote.url, "GATEWAY_CLOSED=http://127.0.0.1:"+freePorts(t, 1)[0],
		"SDK_PORTS="+strings.Join(freePorts(t, 2), " "), "SWARM_KEY="+key, "BOOTSTRAP="+bootstrap,
		"HOME="+cmd.Dir, "XDG_DATA_HOME="+cmd.Dir, "XDG_CONFIG_HOME="+cmd.Dir, "PATH="+filepath.Dir(program)+":"+os.Getenv("PATH")) // with "agentfm"
	output, write := io.Pipe()
	cmd.Stdout, cmd.Stderr = write, write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = write.CloseWithError(cmd.Wait()) }()
	c := &runningClient{outcomes: make(chan outcome, 100)}
	go c.read(output)
	var cases []string
	for o := range c.outcomes {
		verdict, name, _ := strings.Cut(o.verdict, " ")
		if verdict == "ended" {
			if name != "(EOF)" {
				t.Errorf("%s\n%s", o.verdict, o.output)
			}
			continue
		}
		cases = append(cases, name)
		t.Run(name, func(t *testing.T) {
			if verdict != "ok" {
				t.Errorf("%s\n%s", o.verdict, o.output)
			}
		})
	}
	page, err := os.ReadFile("python/agentfm_sdk.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile(`(?m)^## (\w+)$`).FindAllStringSubmatch(string(page), -1) {
		if !slices.Contains(cases, block[1]) {
			t.Errorf("no case for the block %s", block[1])
		}
	}
}
