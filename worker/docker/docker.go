// SPDX-License-Identifier: Apache-2.0

// Package docker runs agents in containers of a Docker engine: a fresh one for
// each task, or one that serves them all.
package docker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/docker/go-units"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/worker"
	"github.com/Agent-FM/caddy-agentfm/worker/upstream"
)

func init() {
	caddy.RegisterModule(&Runtime{})
}

// Runtime runs each task of an agent in a fresh container of a Docker engine
// (or of another one that serves the Docker Engine API), and removes the
// container when the task ends.
//
// The container is called as AgentFM calls it: the prompt is its one argument
// (or its standard input, see `prompt`), `AGENTFM_MODEL` is the advertised model,
// standard output and standard error are the answer, and what the agent writes
// to `/tmp/output` (also in `AGENTFM_OUTPUT`) becomes the task's artifact.
//
// A container has no network (unless `network` is set), no capabilities, no new
// privileges, a read-only file system with a small `/tmp`, and limits on memory, CPU
// and processes.
// It runs as the user that its image names, which should not be root. A volume
// that the image declares is an empty folder in memory, like `/tmp`. The size of
// `/tmp/output` is not limited here. A container shares the kernel of its host:
// it contains mistakes and prompts that go wrong, but it is not a virtual machine.
//
// The image must be on the engine already, or be built from a folder when the
// agent starts; nothing is pulled, except by the engine what a Dockerfile
// builds upon. The whole folder is sent to the engine: keep secrets out of it,
// or name them in its `.dockerignore`. The engine must see the folders of this
// process under the same paths, since `/tmp/output` is one of them: it runs on
// the same host.
//
// With `network`, a container can reach something. `model` is one model server: the
// worker listens within the container, and passes on requests below `/v1` to that server
// and to nothing else. `OPENAI_BASE_URL` leads there, and `OPENAI_API_KEY` has a value
// that is no key, unless `env` has them. `egress` is a list of servers, by a proxy within
// the container; `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY` and the same in lower case are
// set for it. A name on the list leads to addresses of the public internet alone, and by
// `CONNECT` goes TLS to that name alone; an address on the list may be any, and anything
// goes there. Both modes leave the container no other way out. They need Linux, and Caddy
// as root beside the engine. `bridge` and `host` are what they are in Docker, and no
// isolation; the log warns of them.
//
// With `serve`, the container is not one for each task but a single one, of a model
// server that speaks OpenAI's API, such as Ollama, vLLM or llama.cpp. It is called as
// its image says, listens on 127.0.0.1 or on all addresses, and goes on from request
// to request; they are passed on to it as the runtime `openai` does. It has no network
// all the same, or that of `network`: requests come to it through its own network
// namespace, which needs Linux, and Caddy as root beside the engine. So its models are
// in the image, it writes to `/tmp` and to the image's volumes, and it needs more than
// the default of `memory`, `cpus` and perhaps `tmpfs`, which is the size of `/dev/shm`
// too. The agent
// is ready when the server answers `GET /v1/models`. When the container exits, the
// agent offers nothing, and it is started again after a pause of 1 second, which
// doubles up to a minute; the log has the end of its output. A reload that changes
// nothing of the container leaves it as it is. Another image or other settings start
// another container, and the old one is stopped when that one answers and the old
// one's last request is done: both must fit into the machine for that time.
//
// Placeholders are replaced in `image`, `build`, `host`, `env_file`, the values of
// `env` and the arguments of `network`, once, when the configuration is loaded; one that has no
// value there is an error.
//
// Syntax:
//
//	runtime docker {
//		image    <reference>
//		build    <folder>
//		host     <address>
//		prompt   argument|stdin
//		serve    <port>
//		models   <name>...
//		rename   <offered> <name at the server>
//		routes   <route>...
//		memory   <size>
//		cpus     <number>
//		pids     <number>
//		tmpfs    <size>
//		env      <name> <value>
//		env_file <file>
//		network  none
//		network  model <url> {
//			api_key <key>
//		}
//		network  egress <host>:<port>...
//		network  bridge
//		network  host
//	}
type Runtime struct {
	// Image is the reference of an image that is on the engine, for example
	// `hr:v1`. With `build`, it is the name that the built image gets.
	// Default: with `build`, `agentfm/<agent>:latest`; else it is required.
	Image string `json:"image,omitempty"`

	// Build is a folder with a `Dockerfile` or a `Containerfile`, from which the
	// image is built when the agent starts. Default: nothing is built.
	Build string `json:"build,omitempty"`

	// Host is the address of the engine, for example `unix:///run/docker.sock`.
	// Default: the environment variable `DOCKER_HOST`, else the usual socket.
	Host string `json:"host,omitempty"`

	// Prompt says how an agent gets the prompt: `argument`, as the container's
	// one argument (at most 131071 bytes), or `stdin`, on its standard input,
	// which then ends (at most 1 MiB). Default: `argument`.
	Prompt string `json:"prompt,omitempty"`

	// Serve is the port on which the container serves OpenAI's API. It must not be
	// set together with `prompt`. Default: it does not, and each task gets a
	// container of its own.
	Serve int `json:"serve,omitempty"`

	// Models are those of the server's models that are offered, in this order, each
	// by its name at the server or by that of `rename`. Only with `serve`. Default:
	// all that the server lists, at most 64.
	Models []string `json:"models,omitempty"`

	// Rename has the names that clients ask for, and for each of them the name that
	// the model has at the server; that name is then not offered. Only with `serve`.
	// Default: nothing.
	Rename map[string]string `json:"rename,omitempty"`

	// Routes are the routes that are offered, for example `/v1/chat/completions`.
	// Only with `serve`. Default: those of OpenAI's API that the server turns out to
	// have.
	Routes []string `json:"routes,omitempty"`

	// Memory is the most memory that a container may use, its `/tmp` included,
	// as a number of bytes or with a unit: `512MiB` (`MB`, `M` and `m` mean MiB
	// too, as in Docker). There is no swap beyond it. At least 6MiB. A model server
	// wants more than the default. Default: `512MiB`.
	Memory string `json:"memory,omitempty"`

	// CPUs is how many CPUs' worth of time a container may use; it may be a
	// fraction, from 0.01 to what the engine has. Default: 1.
	CPUs float64 `json:"cpus,omitempty"`

	// PIDs is the largest number of processes and threads in a container.
	// Default: 256.
	PIDs int64 `json:"pids,omitempty"`

	// Tmpfs is the size of a container's `/tmp`, of its `/dev/shm`, and of each
	// volume of the image, written like `memory`. Default: `64MiB`.
	Tmpfs string `json:"tmpfs,omitempty"`

	// Env is what the container's environment has beside `AGENTFM_MODEL` and, without
	// `serve`, `AGENTFM_OUTPUT`. Use placeholders for secrets, for example
	// `{env.HR_API_KEY}` or `{file./run/secrets/hr}`; the agent can read, and
	// print, what is here. Default: nothing.
	Env map[string]string `json:"env,omitempty"`

	// EnvFile is a file with lines `NAME=value`, added to the environment before
	// `env`. Values are taken as they stand, quotes included; empty lines and
	// lines that start with `#` are skipped. It is read when the configuration
	// is loaded. Default: none, also where the build folder holds an `.env`.
	EnvFile string `json:"env_file,omitempty"`

	// Network is what a container can reach. Default: nothing.
	Network *Network `json:"network,omitempty"`

	logger  *zap.Logger
	limits  limits
	outlet  *outlet  // of Network
	environ []string // NAME=value, from EnvFile and Env: secrets
	ready   atomic.Pointer[prepared]

	// With Serve.
	upstream *upstream.Runtime
	user     *serviceUser // this one, of the service
	service  atomic.Pointer[service]
	requests sync.RWMutex // read-locked by requests; locked for good when there are to be no more
	using    sync.Mutex   // over changes of the service
	retired  bool         // under using: there is to be no service any more
}

// Values of Runtime.Prompt.
const (
	promptArgument = "argument"
	promptStdin    = "stdin"
)

// Defaults, and the least that the Docker engine takes.
const (
	defaultMemory = "512MiB"
	defaultTmpfs  = "64MiB"
	defaultCPUs   = 1
	defaultPIDs   = 256

	minMemory = 6 << 20
	minCPUs   = 0.01
)

// CaddyModule returns the Caddy module information.
func (*Runtime) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "agentfm.runtimes.docker",
		New: func() caddy.Module { return new(Runtime) },
	}
}

// Provision sets defaults and reads the environment of the agent.
func (r *Runtime) Provision(ctx caddy.Context) error {
	r.logger = ctx.Logger()
	repl := caddy.NewReplacer()
	for name, field := range map[string]*string{
		"image": &r.Image, "build": &r.Build, "host": &r.Host, "env_file": &r.EnvFile,
	} {
		// An unknown placeholder stays: braces may be part of a value.
		value, err := repl.ReplaceOrErr(*field, true, false)
		if err != nil {
			return fmt.Errorf("replacing placeholders in %s: %w", name, err)
		}
		*field = value
	}
	var err error
	if r.environ, err = environment(r.EnvFile, r.Env, repl); err != nil {
		return err
	}
	if r.outlet, err = newOutlet(r.Network, r.Serve, repl); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	r.environ = r.outlet.environ(r.environ)
	r.setDefaults()
	r.limits = limits{cpus: r.CPUs, pids: r.PIDs}
	if r.limits.memory, err = units.RAMInBytes(r.Memory); err != nil {
		return fmt.Errorf("reading memory: %w", err)
	}
	if r.limits.tmpfs, err = units.RAMInBytes(r.Tmpfs); err != nil {
		return fmt.Errorf("reading tmpfs: %w", err)
	}
	if r.Serve != 0 {
		r.provisionServer()
	}
	return nil
}

func (r *Runtime) setDefaults() {
	if r.Prompt == "" && r.Serve == 0 {
		r.Prompt = promptArgument
	}
	if r.Memory == "" {
		r.Memory = defaultMemory
	}
	if r.Tmpfs == "" {
		r.Tmpfs = defaultTmpfs
	}
	if r.CPUs == 0 {
		r.CPUs = defaultCPUs
	}
	if r.PIDs == 0 {
		r.PIDs = defaultPIDs
	}
}

// errNoImage refuses a runtime that has nothing to run.
var errNoImage = errors.New("image or build is required")

// Validate checks the settings. It does not ask the engine.
func (r *Runtime) Validate() error {
	if err := r.together(); err != nil {
		return err
	}
	switch {
	case r.Image == "" && r.Build == "":
		return errNoImage
	case r.Serve < 0 || r.Serve > math.MaxUint16:
		return fmt.Errorf("serve is %d, not a port", r.Serve)
	case r.Serve == 0 && r.Prompt != promptArgument && r.Prompt != promptStdin:
		return fmt.Errorf("prompt is %q, not %s or %s", r.Prompt, promptArgument, promptStdin)
	case r.limits.memory < minMemory:
		return fmt.Errorf("memory is %s, less than 6MiB", r.Memory)
	case r.limits.tmpfs <= 0:
		return fmt.Errorf("tmpfs is %s, not a size above 0", r.Tmpfs)
	case math.IsNaN(r.CPUs) || math.IsInf(r.CPUs, 0) || r.CPUs < minCPUs:
		return fmt.Errorf("cpus is %v, not a number from %v", r.CPUs, minCPUs)
	case r.PIDs < 0:
		return fmt.Errorf("pids is %d, not a number above 0", r.PIDs)
	case r.Serve != 0:
		return r.upstream.Validate()
	}
	return nil
}

// Run runs one task in a container of its own, or has the server answer.
func (r *Runtime) Run(ctx context.Context, task worker.Task) (worker.Exit, error) {
	p := r.ready.Load()
	if p == nil {
		return worker.Exit{}, errors.New("docker runtime is not prepared")
	}
	if r.Serve != 0 {
		return r.serveTask(ctx, task)
	}
	return p.run(ctx, task)
}

// PromptLimit is the largest prompt in bytes.
func (r *Runtime) PromptLimit() int {
	if r.Prompt == promptStdin || r.Serve != 0 {
		return wire.MaxTaskFrame
	}
	return wire.MaxArgumentPrompt
}

// PromptNUL reports whether a prompt may contain NUL bytes; an argument ends at one.
func (r *Runtime) PromptNUL() bool { return r.Prompt == promptStdin || r.Serve != 0 }

// Interface guards
var (
	_ caddy.Module          = (*Runtime)(nil)
	_ caddy.Provisioner     = (*Runtime)(nil)
	_ caddy.Validator       = (*Runtime)(nil)
	_ caddyfile.Unmarshaler = (*Runtime)(nil)
	_ worker.Runtime        = (*Runtime)(nil)
)
