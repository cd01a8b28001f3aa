// SPDX-License-Identifier: Apache-2.0

// Package process is the Caddy module "agentfm.runtimes.process": an agent that
// is a local command.
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
)

func init() {
	caddy.RegisterModule(&Runtime{})
}

// How a prompt is handed to the agent.
const (
	promptArgument = "argument"
	promptStdin    = "stdin"
)

// killGrace is how long an agent that was asked to stop may take.
const killGrace = 2 * time.Second

// drainGrace is how long a child that it left behind may keep its output open after its
// end. A variable for tests.
var drainGrace = 5 * time.Second

// Runtime runs a local command for each task. The command gets the prompt as its
// last argument or on its standard input; what it writes to its standard output
// and standard error is the answer, and the files that it leaves in the folder
// AGENTFM_OUTPUT are the task's artifact.
//
// It is not a sandbox: the command has the rights of Caddy. Use it for agents
// that you trust with any prompt, and to try things out; use `docker` for others.
//
// The command does not inherit Caddy's environment, which may hold secrets. It
// has PATH, HOME, LANG and TMPDIR of it, AGENTFM_MODEL, AGENTFM_OUTPUT, and what
// is configured. It runs in a process group of its own; at its end, or when the
// task is stopped, the whole group is killed.
//
// Syntax:
//
//	runtime process {
//		command <program> <args>...
//		prompt  argument|stdin
//		dir     <folder>
//		env     <name> <value>
//	}
type Runtime struct {
	// Command is the program and its arguments. Required.
	Command []string `json:"command,omitempty"`

	// Prompt says how the agent gets the prompt: "argument", as the last one, or
	// "stdin". An argument holds at most 131071 bytes and no NUL. Default:
	// "argument".
	Prompt string `json:"prompt,omitempty"`

	// Dir is the folder in which the command runs. Default: Caddy's own.
	Dir string `json:"dir,omitempty"`

	// Env are further environment variables. Placeholders are replaced, so that
	// a secret can come from {env.NAME} or {file.PATH}.
	Env map[string]string `json:"env,omitempty"`

	command []string
	dir     string
	env     []string
}

// CaddyModule returns the Caddy module information.
func (*Runtime) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "agentfm.runtimes.process",
		New: func() caddy.Module { return new(Runtime) },
	}
}

// Provision replaces placeholders.
func (r *Runtime) Provision(caddy.Context) error {
	repl := caddy.NewReplacer()
	for _, s := range r.Command {
		s, err := repl.ReplaceOrErr(s, true, true)
		if err != nil {
			return fmt.Errorf("command: %w", err)
		}
		r.command = append(r.command, s)
	}
	var err error
	if r.dir, err = repl.ReplaceOrErr(r.Dir, true, true); err != nil && r.Dir != "" {
		return fmt.Errorf("dir: %w", err)
	}
	for _, name := range []string{"PATH", "HOME", "LANG", "TMPDIR"} {
		if v, ok := os.LookupEnv(name); ok {
			r.env = append(r.env, name+"="+v)
		}
	}
	for name, value := range r.Env {
		value, err := repl.ReplaceOrErr(value, true, true)
		if err != nil {
			return fmt.Errorf("env %s: %w", name, err)
		}
		r.env = append(r.env, name+"="+value)
	}
	return nil
}

// errNoCommand refuses a runtime that has nothing to run.
var errNoCommand = errors.New("command: required")

// Validate checks the settings.
func (r *Runtime) Validate() error {
	if len(r.Command) == 0 {
		return errNoCommand
	}
	switch r.Prompt {
	case "", promptArgument, promptStdin:
	default:
		return fmt.Errorf("prompt: %q is neither %s nor %s", r.Prompt, promptArgument, promptStdin)
	}
	for name := range r.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return fmt.Errorf("env: %q is not a name", name)
		}
	}
	return nil
}

// Prepare checks that the command and its folder exist.
func (r *Runtime) Prepare(context.Context, worker.Agent) (worker.Image, error) {
	if !supported {
		return worker.Image{}, fmt.Errorf("the process runtime needs process groups, which %s does not have", runtime.GOOS)
	}
	defaultSIGPIPE()
	if r.dir != "" {
		if fi, err := os.Stat(r.dir); err != nil || !fi.IsDir() {
			return worker.Image{}, fmt.Errorf("dir: %s is not a folder", r.dir)
		}
	}
	program := r.command[0]
	if strings.ContainsRune(program, filepath.Separator) && !filepath.IsAbs(program) && r.dir != "" {
		program = filepath.Join(r.dir, program) // as the system resolves it
	}
	if _, err := exec.LookPath(program); err != nil {
		return worker.Image{}, fmt.Errorf("command: %w", err)
	}
	return worker.Image{}, nil
}

// PromptLimit implements worker.Runtime.
func (r *Runtime) PromptLimit() int {
	if r.Prompt == promptStdin {
		return wire.MaxTaskFrame
	}
	return wire.MaxArgumentPrompt
}

// PromptNUL implements worker.Runtime.
func (r *Runtime) PromptNUL() bool { return r.Prompt == promptStdin }

// Run implements worker.Runtime.
func (r *Runtime) Run(ctx context.Context, task worker.Task) (worker.Exit, error) {
	if ctx.Err() != nil {
		return worker.Exit{}, context.Cause(ctx)
	}
	// Where the system kills a command with its parent, the parent is this thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := r.cmd(ctx, task)
	// A pipe of our own: exec would wait for all who hold it, and a command may
	// leave children behind.
	read, write, err := os.Pipe()
	if err != nil {
		return worker.Exit{}, err
	}
	defer read.Close()
	cmd.Stdout, cmd.Stderr = write, write
	err = cmd.Start()
	_ = write.Close()
	if err != nil {
		return worker.Exit{}, err
	}
	output := &output{pipe: read, ctx: ctx, grace: drainGrace}
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(task.Output, output)
		if err != nil { // nobody listens; let the agent be stopped, not blocked
			_, _ = io.Copy(io.Discard, output)
		}
		copied <- err
	}()
	err = cmd.Wait()
	killGroup(cmd)
	output.end()
	if err := <-copied; err != nil {
		return worker.Exit{}, fmt.Errorf("passing on output: %w", err)
	}
	return exit(cmd, err)
}

// cmd returns the command for a task.
func (r *Runtime) cmd(ctx context.Context, task worker.Task) *exec.Cmd {
	args := r.command[1:len(r.command):len(r.command)]
	var stdin io.Reader
	if r.Prompt == promptStdin {
		stdin = strings.NewReader(task.Prompt)
	} else {
		args = append(args, task.Prompt)
	}
	cmd := exec.CommandContext(ctx, r.command[0], args...)
	cmd.Dir, cmd.Stdin = r.dir, stdin
	cmd.Env = append([]string{"AGENTFM_MODEL=" + task.Model, "AGENTFM_OUTPUT=" + task.OutputDir}, r.env...)
	ownGroup(cmd)
	cmd.Cancel = func() error { return stopGroup(cmd) }
	cmd.WaitDelay = killGrace
	return cmd
}

// exit tells how a command ended.
func exit(cmd *exec.Cmd, err error) (worker.Exit, error) {
	state := cmd.ProcessState
	switch {
	case state == nil:
		return worker.Exit{}, err
	case state.Success():
		return worker.Exit{}, nil
	case state.ExitCode() >= 0:
		return worker.Exit{Code: state.ExitCode()}, nil
	default:
		return worker.Exit{Code: -1, Reason: state.String()}, nil // "signal: killed"
	}
}

// Interface guards
var (
	_ worker.Runtime    = (*Runtime)(nil)
	_ caddy.Provisioner = (*Runtime)(nil)
	_ caddy.Validator   = (*Runtime)(nil)
)
