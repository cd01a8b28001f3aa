// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/Agent-FM/caddy-agentfm/internal/lifetime"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Trial is one task of an agent that is on no mesh.
type Trial struct {
	// Key is the agent's name in the configuration.
	Key string
	// Agent has its settings, of which the runtime, the model and the timeout count.
	Agent Config
	// Prompt is the task.
	Prompt string
	// Output takes what the agent says, as it comes.
	Output io.Writer
	// Files takes the zip of the files that the task leaves, if there are any.
	Files io.Writer
}

// Outcome is how a [Trial] ended.
type Outcome struct {
	// Cause says it to machines; [wire.CauseOK] is success.
	Cause wire.Cause
	// Code is the agent's exit status.
	Code int
	// Err is what the operator should know; nil for nothing.
	Err error
	// HasFiles reports whether Files has a zip.
	HasFiles bool
}

// Run makes the agent's runtime ready and runs the task, as an agent on the mesh would.
// An error says that the task has not begun. Nothing is left of the agent when Run returns.
func (t Trial) Run(ctx caddy.Context) (Outcome, error) {
	g, err := t.generation(ctx)
	if err != nil {
		return Outcome{}, err
	}
	dir, err := os.MkdirTemp("", "agentfm-test-")
	if err != nil {
		return Outcome{}, err
	}
	a := &agent{key: t.Key, tasksDir: dir, Lifetime: lifetime.New[*generation](func() {})}
	a.Join(g)
	defer a.remove(dir)
	life, retire := context.WithCancel(context.WithoutCancel(ctx))
	var beside sync.WaitGroup
	defer beside.Wait()
	defer retire()
	_, err = g.runtime.Prepare(ctx, Agent{
		Key: t.Key, Name: cmp.Or(g.config.Name, t.Key), PeerID: "test-" + rand.Text(), Model: g.config.Model, TasksDir: dir, MaxDisk: diskFactor * g.config.MaxFilesSize,
		Changed: func() {}, Again: func() {}, Progress: func(string, float64) {}, Context: life, Go: beside.Go,
	})
	if err != nil {
		return Outcome{}, fmt.Errorf("agent %s is not ready: %w", t.Key, err)
	}
	if refused := g.unfitPrompt(t.Prompt); refused != nil {
		return Outcome{}, errors.New(refused.words())
	}
	return t.run(ctx, a, g)
}

// generation loads the agent's runtime.
func (t Trial) generation(ctx caddy.Context) (*generation, error) {
	g := &generation{key: t.Key, config: t.Agent, logger: ctx.Logger().With(caddyAgent(t.Key))}
	if !agentKey.MatchString(t.Key) {
		return nil, errAgentKey
	}
	var err error
	if g.config.Model, err = caddy.NewReplacer().ReplaceOrErr(g.config.Model, true, true); err != nil {
		return nil, err
	}
	if g.runtime, err = loadRuntime(ctx, &g.config); err != nil {
		return nil, err
	}
	g.defaults()
	if g.config.Timeout < 0 {
		return nil, fmt.Errorf("timeout: %s is negative", time.Duration(g.config.Timeout))
	}
	return g, nil
}

// run runs the task.
func (t Trial) run(ctx context.Context, a *agent, g *generation) (Outcome, error) {
	dir := filepath.Join(a.tasksDir, "task")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return Outcome{}, err
	}
	running := &running{ctx: ctx, end: time.Now().Add(time.Duration(g.config.Timeout))}
	e := a.execute(g, running, wire.TaskRequest{TaskID: "task_" + rand.Text(), Data: t.Prompt}, dir, t.Output)
	out := Outcome{Cause: e.cause, Code: e.code, Err: e.err}
	if out.Cause == "" && e.how == succeeded {
		out.Cause = wire.CauseOK
	}
	if e.zip == nil {
		return out, nil
	}
	out.HasFiles = true
	defer e.zip.free()
	if err := e.zip.write(ctx, t.Files); err != nil {
		out.Cause, out.Err = wire.CauseRuntimeError, fmt.Errorf("writing the files: %w", err)
	}
	return out, nil
}
