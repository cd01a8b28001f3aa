// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/Agent-FM/caddy-agentfm/mesh"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Defaults of an agent.
const (
	defaultMaxTasks   = 1
	defaultMaxPercent = 80
	defaultMaxFiles   = 10_000
	mostFiles         = 100_000 // that may be set
)

// Config is one agent.
type Config struct {
	// Name is the agent's public name, by which clients may ask for it. At most
	// 20 characters, and nothing that reads like a peer id. Default: the agent's
	// key.
	Name string `json:"name,omitempty"`

	// Model is the model engine that the agent announces, by which clients may
	// ask for it; the agent finds it in AGENTFM_MODEL. At most 40 characters,
	// and nothing that reads like a peer id. Required, but for a runtime that
	// offers the models of a server: there it is the one of them that is announced
	// first, and which is meant by the agent's name. Default there: the server's first.
	Model string `json:"model,omitempty"`

	// Description tells people what the agent does. At most 1000 characters.
	Description string `json:"description,omitempty"`

	// Author says who runs the agent. At most 50 characters.
	Author string `json:"author,omitempty"`

	// Capability names what the agent can do, in kebab case: "text-report".
	Capability string `json:"capability,omitempty"`

	// MaxTasks is how many tasks run at once. Default: 1.
	MaxTasks int `json:"max_tasks,omitempty"`

	// MaxCPU is the CPU use of the machine, in percent, from which on the agent
	// takes no tasks. -1 switches the limit off. Default: 80; with a runtime that
	// offers the models of a server, -1.
	MaxCPU float64 `json:"max_cpu,omitempty"`

	// MaxGPU is the use of GPU memory, in percent, above which the agent takes
	// no tasks. -1 switches the limit off. Default: 80; with a runtime that offers
	// the models of a server, -1.
	MaxGPU float64 `json:"max_gpu,omitempty"`

	// Timeout is how long one task may run. Default: 10m.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// MaxFiles is how many files and folders of a task are collected, at most 100000.
	// Others are left out. Default: 10000.
	MaxFiles int `json:"max_files,omitempty"`

	// MaxFilesSize is the size of all files of a task that are collected, in bytes, at
	// most 5 GiB. What has no room is left out. A task whose files take twice as much of
	// the disk, are over 250,000 or in folders over 512 deep is stopped within a second
	// or little more. Default: 5 GiB.
	MaxFilesSize int64 `json:"max_files_size,omitempty"`

	// AllowPeers are the peer ids of the gateways that may send tasks. Default:
	// every peer of the mesh.
	AllowPeers []string `json:"allow_peers,omitempty"`

	// Identity of the agent: a name in Caddy's storage or a path (with a slash
	// in it) to a key file. Default: "agent-" and the agent's key.
	Identity string `json:"identity,omitempty"`

	// Listen is the list of multiaddresses on which the agent accepts
	// connections. Default: those of the mesh, with ports chosen by the system.
	Listen []string `json:"listen,omitempty"`

	// Expose is HTTP of this machine that gateways may reach with the reverse proxy
	// transport `agentfm`. Default: nothing.
	Expose *Expose `json:"expose,omitempty"`

	// RuntimeRaw runs the tasks: a module in the namespace agentfm.runtimes.
	// Required.
	RuntimeRaw json.RawMessage `json:"runtime,omitempty" caddy:"namespace=agentfm.runtimes inline_key=runtime"`
}

// agentKey is the form of an agent's key, which is part of file names and labels.
var agentKey = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,62}$`)

// capability is the form of a capability.
var capability = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// Errors of what has no default, or is part of names.
var (
	errNoModel   = errors.New("model: required; the name by which clients ask for the agent")
	errAgentKey  = errors.New("the key must be letters, digits, hyphens and underscores")
	errNoRuntime = errors.New("runtime: required; one of docker, openai, process")
)

// provision resolves the settings of one agent. It opens nothing.
func (c *Config) provision(ctx caddy.Context, key string, app *mesh.App) (*generation, error) {
	if c == nil {
		return nil, errors.New("no settings")
	}
	g := &generation{key: key, config: *c, mesh: app, logger: ctx.Logger().With(caddyAgent(key))}
	if !agentKey.MatchString(key) {
		return nil, errAgentKey
	}
	repl := caddy.NewReplacer()
	for _, s := range []*string{&g.config.Name, &g.config.Model, &g.config.Description, &g.config.Author, &g.config.Identity} {
		var err error
		if *s, err = repl.ReplaceOrErr(*s, true, true); err != nil {
			return nil, err
		}
	}
	var err error
	g.settings = app.Settings()
	g.settings.Identity = cmp.Or(g.config.Identity, "agent-"+key)
	if g.settings.Listen, err = mesh.ParseListen(c.Listen, app.Settings().SwarmKey != nil, sameWithAnyPort(app.Settings().Listen)); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	for _, s := range c.AllowPeers {
		id, err := peer.Decode(s)
		if err != nil {
			return nil, fmt.Errorf("allow_peers: %q is not a peer id: %w", s, err)
		}
		g.allow = append(g.allow, id)
	}
	if c.Expose != nil {
		if g.exposed, err = c.Expose.provision(repl, g.logger); err != nil {
			return nil, fmt.Errorf("expose: %w", err)
		}
	}
	if g.runtime, err = loadRuntime(ctx, c); err != nil {
		return nil, err
	}
	g.defaults()
	return g, nil
}

// loadRuntime loads the runtime of an agent.
func loadRuntime(ctx caddy.Context, c *Config) (Runtime, error) {
	if c.RuntimeRaw == nil {
		return nil, errNoRuntime
	}
	mod, err := ctx.LoadModule(c, "RuntimeRaw")
	if err != nil {
		return nil, fmt.Errorf("loading runtime: %w", err)
	}
	rt, ok := mod.(Runtime)
	if !ok {
		return nil, fmt.Errorf("runtime: %T is not a worker.Runtime", mod)
	}
	return rt, nil
}

// serves reports whether the runtime answers OpenAI's API itself.
func (g *generation) serves() bool {
	return serverOf(g.runtime) != nil
}

// defaults fills in what was left out.
func (g *generation) defaults() {
	c := &g.config
	if c.Name == "" {
		c.Name = g.key
	}
	c.Identity = g.settings.Identity
	if c.MaxTasks == 0 {
		c.MaxTasks = defaultMaxTasks
	}
	limit := float64(defaultMaxPercent)
	if g.serves() {
		limit = -1 // a model that is computed here may have all of the machine
	}
	c.MaxCPU, c.MaxGPU = cmp.Or(c.MaxCPU, limit), cmp.Or(c.MaxGPU, limit)
	if c.Timeout == 0 {
		c.Timeout = caddy.Duration(mesh.TaskTimeout)
	}
	c.MaxFiles = cmp.Or(c.MaxFiles, defaultMaxFiles)
	c.MaxFilesSize = cmp.Or(c.MaxFilesSize, wire.MaxArtifact)
}

// validate checks the settings of one agent.
func (g *generation) validate() error {
	c := g.config
	for _, f := range []struct {
		name, value string
		max         int
	}{
		{"name", c.Name, 20}, {"model", c.Model, 40}, {"author", c.Author, 50}, {"description", c.Description, 1000},
	} {
		if n := utf8.RuneCountInString(f.value); n > f.max {
			return fmt.Errorf("%s: %d characters, at most %d", f.name, n, f.max)
		}
	}
	switch {
	case c.Model == "" && !g.serves():
		return errNoModel
	case c.Capability != "" && !capability.MatchString(c.Capability):
		return fmt.Errorf("capability: %q is not in kebab case, such as text-report", c.Capability)
	case c.MaxTasks < 1 || c.MaxTasks > 10_000:
		return fmt.Errorf("max_tasks: %d is not within 1 and 10000", c.MaxTasks)
	case !percent(c.MaxCPU):
		return fmt.Errorf("max_cpu: %v is neither a percentage nor -1", c.MaxCPU)
	case !percent(c.MaxGPU):
		return fmt.Errorf("max_gpu: %v is neither a percentage nor -1", c.MaxGPU)
	case c.MaxFiles < 1 || c.MaxFiles > mostFiles:
		return fmt.Errorf("max_files: %d is not within 1 and %d", c.MaxFiles, mostFiles)
	case c.MaxFilesSize < 1 || c.MaxFilesSize > wire.MaxArtifact:
		return fmt.Errorf("max_files_size: %d is not within 1 byte and 5 GiB", c.MaxFilesSize)
	case c.Timeout < 0:
		return fmt.Errorf("timeout: %s is negative", time.Duration(c.Timeout))
	}
	// what we announce must be valid for those who receive it
	return g.telemetry("validated", load{cores: 1}, 0, false).Validate()
}

// percent reports whether v is a limit in percent, or -1 for none.
func percent(v float64) bool { return v == -1 || v > 0 && v <= 100 }

// sameWithAnyPort returns the addresses with port 0.
func sameWithAnyPort(addrs []ma.Multiaddr) []string {
	var out []string
	for _, a := range addrs {
		s := ""
		for _, c := range a {
			switch c.Protocol().Code {
			case ma.P_TCP, ma.P_UDP:
				s += "/" + c.Protocol().Name + "/0"
			default:
				s += c.String()
			}
		}
		out = append(out, s)
	}
	return out
}
