// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestAgentFMPython(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	dir := home(t)
	p := start(t, dir, caddyfile(localMesh, "agentfm {\n\t\tapi_keys "+testKey+"\n\t}",
		agent("report", "Text report", "text-report", command(reportScript)),
		agent("second", "Second report", "text-report", command(reportScript)),
		agent("gated", "Gated", "gated", command(writeScript(t, gatedScript), "GATE", gate)),
	))
	p.awaitWorkers(3)

	cmd := exec.CommandContext(t.Context(), need(t, "AGENTFM_TEST_PYTHON"), "python/agentfm_client.py")
	cmd.Env = append(os.Environ(),
		"GATEWAY_URL="+p.url,
		"GATEWAY_KEY="+testKey,
		"GATEWAY_GATE="+gate,
		"GATEWAY_ARTIFACTS="+filepath.Join(dir, "artifacts"),
	)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// clientKinds are the clients of the conformance tests: scripts and programs
// that hold the checks, in cases of the same names, and what they have no case
// for.
var clientKinds = []struct {
	name     string
	variable string // of the interpreter, or of the folder of the program
	file     string
	lacks    []string
}{
	{"openai-python", "AGENTFM_TEST_PYTHON", "python/openai_client.py", nil},
	{"langchain", "AGENTFM_TEST_PYTHON", "python/langchain_client.py", []string{"models", "keyed"}},
	{"openai-node", "AGENTFM_TEST_NODE", "node/openai_client.mjs", nil},
	{"ai-sdk", "AGENTFM_TEST_NODE", "node/ai_sdk_client.mjs", []string{
		"models", "choices", "responses", "responses_die", // it has no such calls
		"no_second_run", // it takes no notice of X-Should-Retry
	}},
	{"openai-go-3.42", "AGENTFM_TEST_OPENAI_GO", "openai-go-3.42", []string{"keyed"}},
	{"openai-go-3.43", "AGENTFM_TEST_OPENAI_GO", "openai-go-3.43", []string{"keyed"}},
}

// clientName is what a client calls itself in models and in the names of files,
// where a suffix says what is in the file.
func clientName(kind string) string { return strings.ReplaceAll(kind, ".", "_") }

// clients are running clients of a gateway, one of each kind.
type clients struct {
	t     *testing.T
	all   []*runningClient
	cases []string // that were asked for, and not looked at yet
}

type runningClient struct {
	name     string
	lacks    []string
	cases    io.Writer
	outcomes chan outcome // closed at its end
}

// outcome is how a case went.
type outcome struct {
	verdict string // "ok CASE" or "failed CASE"
	output  string
}

// startClients starts every client. The agents of lab note their runs in the
// folder state, and are silent for so long where they are asked to be.
func startClients(t *testing.T, p *process, key, state string, silence time.Duration) *clients {
	t.Helper()
	cs := &clients{t: t}
	for _, kind := range clientKinds {
		args := []string{need(t, kind.variable), kind.file}
		if kind.variable == "AGENTFM_TEST_OPENAI_GO" {
			args = []string{filepath.Join(args[0], kind.file)}
		}
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Env = append(os.Environ(),
			"GATEWAY_URL="+p.url,
			"GATEWAY_KEY="+key,
			"GATEWAY_CLIENT="+clientName(kind.name),
			"GATEWAY_STATE="+state,
			fmt.Sprintf("GATEWAY_SILENCE=%g", silence.Seconds()),
		)
		c := &runningClient{name: kind.name, lacks: kind.lacks, outcomes: make(chan outcome, 100)}
		cases, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		output, write := io.Pipe()
		c.cases, cmd.Stdout, cmd.Stderr = cases, write, write
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go c.read(output)
		go func() {
			_ = write.CloseWithError(cmd.Wait())
		}()
		t.Cleanup(func() { cases.Close() })
		cs.all = append(cs.all, c)
	}
	return cs
}

// read reads the outcomes of the cases.
func (c *runningClient) read(output io.Reader) {
	defer close(c.outcomes)
	var text strings.Builder
	lines := bufio.NewReader(output)
	for {
		line, err := lines.ReadString('\n')
		if verdict, ok := strings.CutPrefix(line, "== "); ok {
			c.outcomes <- outcome{strings.TrimSpace(verdict), text.String()}
			text.Reset()
		} else {
			text.WriteString(line)
		}
		if err != nil {
			c.outcomes <- outcome{fmt.Sprintf("ended (%v)", err), text.String()}
			return
		}
	}
}

// ask has the clients run cases.
func (cs *clients) ask(cases ...string) {
	cs.t.Helper()
	for _, c := range cs.all {
		for _, name := range cases {
			if slices.Contains(c.lacks, name) {
				continue
			}
			if _, err := io.WriteString(c.cases, name+"\n"); err != nil {
				cs.t.Errorf("%s: %v", c.name, err)
			}
		}
	}
	cs.cases = append(cs.cases, cases...)
}

// count is the number of clients that have a case.
func (cs *clients) count(name string) int {
	n := 0
	for _, c := range cs.all {
		if !slices.Contains(c.lacks, name) {
			n++
		}
	}
	return n
}

// check waits for the outcomes of the cases that were asked for.
func (cs *clients) check() {
	ctx, cancel := context.WithTimeout(cs.t.Context(), patience)
	defer cancel()
	for _, name := range cs.cases {
		cs.t.Run(name, func(t *testing.T) {
			for _, c := range cs.all {
				if slices.Contains(c.lacks, name) {
					continue
				}
				t.Run(c.name, func(t *testing.T) {
					select {
					case o, ok := <-c.outcomes:
						if !ok {
							t.Fatal("the client has ended")
						}
						if o.verdict != "ok "+name {
							t.Errorf("%s\n%s", o.verdict, o.output)
						}
					case <-ctx.Done():
						t.Errorf("not within %v", patience)
					}
				})
			}
		})
	}
	cs.cases = nil
}
