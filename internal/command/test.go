// SPDX-License-Identifier: Apache-2.0

package command

import (
	"archive/zip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

// maxPromptRead is how much is read of a prompt on standard input, in bytes.
const maxPromptRead = wire.MaxTaskFrame

// testCommand is `caddy agentfm test`.
func testCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "test (--image <reference> | --build <folder> | --config <path> [--agent <key>]) --prompt <text>",
		Short: "Runs one task of an agent as a worker would, without a mesh",
		Long: `
Runs one task as a worker would, with the same runtime, limits and sandbox, and
without a mesh. The agent is an image, or a folder with a Dockerfile, with the
defaults of the runtime docker; or it is an agent of a configuration:

	caddy agentfm test --image hr:v1 --prompt "Write a letter"
	caddy agentfm test --config Caddyfile --agent hr --prompt - < letter.txt

What the agent says comes on standard output, as it comes. Standard error has
Caddy's log, and at the end the cause, the exit code and the files that the agent
left, which --output writes as a zip. The exit status is 0 only for the cause ok.`,
		Args: cobra.NoArgs,
		RunE: runTest,
	}
	f := cmd.Flags()
	f.StringP("prompt", "p", "", `The prompt; "-" reads it from standard input`)
	f.StringP("output", "o", "", "Zip for the files that the agent leaves")
	f.StringP("config", "c", "", "Configuration file that has the agent")
	f.StringP("adapter", "a", "", "Name of config adapter to apply (if --config is used)")
	f.String("agent", "", "Name of the agent in --config; not needed where there is one")
	f.String("timeout", "", "How long the task may run (default: as configured, else 10m)")
	f.String("image", "", "Image on the engine, or the tag to build")
	f.String("build", "", "Folder to build the image from")
	for _, o := range testOptions {
		f.String(o.flag, "", o.usage)
	}
	jsonFlag(cmd)
	_ = cmd.MarkFlagRequired("prompt")
	cmd.MarkFlagsOneRequired("image", "build", "config")
	return cmd
}

// testOptions are the options of an agent that is not configured.
var testOptions = []struct{ flag, field, usage string }{
	{"host", "host", "Address of the engine (default: DOCKER_HOST, or the local one)"},
	{"prompt-as", "prompt", "How the agent gets the prompt: argument, stdin or file (default: as the image says)"},
	{"memory", "memory", "Memory of the container (default: 512MiB)"},
	{"cpus", "cpus", "Processors of the container (default: 1)"},
	{"user", "user", "User of the agent (default: that of the image)"},
	{"model", "", "AGENTFM_MODEL"},
}

// testAgentKey is the name of an agent that is not configured.
const testAgentKey = "test"

// runTest runs a task.
func runTest(cmd *cobra.Command, _ []string) error {
	trial, err := readTrial(cmd)
	if err != nil {
		return usage(err)
	}
	cmd.SilenceUsage = true // what goes wrong from here on is not in the flags
	target, err := openZip(cmd.Flag("output").Value.String())
	if err != nil {
		return err
	}
	defer target.close()
	var text strings.Builder
	trial.Output, trial.Files = cmd.OutOrStdout(), target
	if asJSON(cmd) {
		trial.Output = &text
	}

	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, err := caddy.ProvisionContext(new(caddy.Config)) // with Caddy's log
	if err != nil {
		return err
	}
	ctx.Context = interrupted
	ctx, cancel := caddy.NewContext(ctx)
	defer cancel()
	out, err := trial.Run(ctx)
	if err != nil {
		return plainError{err}
	}
	result := trialResult{Cause: string(out.Cause), Text: text.String(), Files: []trialFile{}}
	if out.Code > 0 || out.Cause == wire.CauseOK || out.Cause == wire.CauseEmpty {
		result.Code = &out.Code
	}
	if out.HasFiles {
		if result.Files, err = target.finish(); err != nil {
			return fmt.Errorf("listing the files: %w", err)
		}
	}
	if err := result.print(cmd); err != nil {
		return err
	}
	if out.Cause != wire.CauseOK {
		return coded{plainError{fmt.Errorf("the task did not succeed: %w", reason(out))}, exitAgent}
	}
	return nil
}

// trialResult is what `test --json` prints.
type trialResult struct {
	Cause string      `json:"cause"`
	Code  *int        `json:"exit_code,omitempty"` // nil where the agent has not ended by itself
	Text  string      `json:"text"`
	Files []trialFile `json:"files"`
}

// trialFile is a file that the agent left.
type trialFile struct {
	Name  string `json:"name"`
	Bytes uint64 `json:"bytes"`
}

// print prints how a task ended; what the agent said is printed where it is not JSON.
func (r trialResult) print(cmd *cobra.Command) error {
	if asJSON(cmd) {
		return printValue(cmd, r)
	}
	w := cmd.ErrOrStderr()
	fmt.Fprintf(w, "\ncause: %s\n", r.Cause)
	if r.Code != nil {
		fmt.Fprintf(w, "exit code: %d\n", *r.Code)
	}
	for _, f := range r.Files {
		fmt.Fprintf(w, "file: %s (%d bytes)\n", plain(f.Name), f.Bytes)
	}
	return nil
}

// reason is why a task did not succeed.
func reason(out worker.Outcome) error {
	if out.Err != nil {
		return out.Err
	}
	return errors.New(string(out.Cause))
}

// readTrial reads the flags.
func readTrial(cmd *cobra.Command) (worker.Trial, error) {
	flag := func(name string) string { return cmd.Flag(name).Value.String() }
	t := worker.Trial{Key: testAgentKey, Prompt: flag("prompt")}
	var err error
	if flag("config") != "" {
		t.Key, t.Agent, err = configured(cmd)
	} else {
		t.Agent, err = unconfigured(cmd)
	}
	if err != nil {
		return t, err
	}
	if timeout := flag("timeout"); timeout != "" {
		d, err := caddy.ParseDuration(timeout)
		if err != nil || d <= 0 {
			return t, fmt.Errorf("--timeout %s: want a duration above 0, such as 30s", timeout)
		}
		t.Agent.Timeout = caddy.Duration(d)
	}
	if t.Prompt == "-" {
		b, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxPromptRead+1))
		if err != nil {
			return t, fmt.Errorf("reading the prompt: %w", err)
		}
		t.Prompt = string(b)
	}
	return t, nil
}

// configured returns an agent of a configuration, and its key.
func configured(cmd *cobra.Command) (string, worker.Config, error) {
	flag := func(name string) string { return cmd.Flag(name).Value.String() }
	for _, name := range []string{"image", "build"} {
		if cmd.Flag(name).Changed {
			return "", worker.Config{}, fmt.Errorf("--%s is not for --config, which says what the agent is", name)
		}
	}
	for _, o := range testOptions {
		if cmd.Flag(o.flag).Changed {
			return "", worker.Config{}, fmt.Errorf("--%s is not for --config, which says what the agent is", o.flag)
		}
	}
	b, _, _, err := caddycmd.LoadConfig(flag("config"), flag("adapter"))
	if err != nil {
		return "", worker.Config{}, err
	}
	var config struct {
		Apps struct {
			Worker struct {
				Agents map[string]worker.Config `json:"agents"`
			} `json:"agentfm_worker"`
		} `json:"apps"`
	}
	if err := json.Unmarshal(b, &config); err != nil {
		return "", worker.Config{}, fmt.Errorf("reading %s: %w", flag("config"), err)
	}
	agents := config.Apps.Worker.Agents
	keys := slices.Sorted(maps.Keys(agents))
	key := flag("agent")
	if key == "" && len(keys) == 1 {
		key = keys[0]
	}
	agent, ok := agents[key]
	switch {
	case len(keys) == 0:
		return "", agent, fmt.Errorf("%s has no agents", flag("config"))
	case key == "":
		return "", agent, fmt.Errorf("--agent is required: %s has %s", flag("config"), strings.Join(keys, ", "))
	case !ok:
		return "", agent, fmt.Errorf("--agent %s: %s has %s", key, flag("config"), strings.Join(keys, ", "))
	}
	return key, agent, nil
}

// unconfigured returns an agent of an image, with the flags for its options.
func unconfigured(cmd *cobra.Command) (worker.Config, error) {
	for _, name := range []string{"adapter", "agent"} {
		if cmd.Flag(name).Changed {
			return worker.Config{}, fmt.Errorf("--%s is for --config, which is not given", name)
		}
	}
	runtime := map[string]any{"runtime": "docker"}
	for _, name := range []string{"image", "build"} {
		if value := cmd.Flag(name).Value.String(); value != "" {
			runtime[name] = value
		}
	}
	for _, o := range testOptions {
		value := cmd.Flag(o.flag).Value.String()
		switch {
		case value == "" || o.field == "":
		case o.field == "cpus":
			if !json.Valid([]byte(value)) {
				return worker.Config{}, fmt.Errorf("--cpus %s: want a number", value)
			}
			runtime[o.field] = json.Number(value)
		default:
			runtime[o.field] = value
		}
	}
	b, err := json.Marshal(runtime)
	if err != nil {
		return worker.Config{}, fmt.Errorf("--cpus: %w", err)
	}
	return worker.Config{Model: cmd.Flag("model").Value.String(), RuntimeRaw: b}, nil
}

// zipFile is where the files of a task go.
type zipFile struct {
	*os.File
	kept     bool // the file is the user's
	finished bool
}

// openZip opens a new file for a zip; with no name, one that does not stay.
func openZip(name string) (*zipFile, error) {
	if name == "" {
		f, err := os.CreateTemp("", "agentfm-test-*.zip")
		return &zipFile{File: f}, err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--output: %w", err)
	}
	return &zipFile{File: f, kept: true}, nil
}

// finish lists what is in the zip.
func (z *zipFile) finish() (files []trialFile, err error) {
	size, err := z.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	r, err := zip.NewReader(z.File, size)
	if err != nil {
		return nil, err
	}
	for _, f := range r.File {
		if !f.FileInfo().IsDir() {
			files = append(files, trialFile{f.Name, f.UncompressedSize64})
		}
	}
	z.finished = true
	return files, nil
}

// close closes the zip, and removes it where there is none or nobody wants it.
func (z *zipFile) close() {
	_ = z.Close()
	if !z.kept || !z.finished {
		_ = os.Remove(z.Name())
	}
}
