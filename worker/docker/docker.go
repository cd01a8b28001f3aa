// SPDX-License-Identifier: Apache-2.0

// Package docker runs agents in containers of a Docker engine: a fresh one for
// each task, or one that serves them all.
package docker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/go-units"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
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
// (or comes otherwise, see `prompt`), `AGENTFM_MODEL` is the advertised model,
// standard output and standard error are the answer (see `stderr`), and what the agent
// writes to `/tmp/output` (also in `AGENTFM_OUTPUT`) becomes the task's artifact. Where
// the prompt was made of a request of OpenAI's API, with messages and parameters, that
// request is the file that `AGENTFM_REQUEST` names; it is missing when the gateway did
// not send it, or it is too large.
//
// A container has no network (unless `network` is set), no capabilities, no new
// privileges, a read-only file system with a small `/tmp`, and limits on memory, CPU
// and processes. Its seccomp profile is Docker's without `io_uring` and `ptrace`, or
// that which the engine's operator has set.
// It runs as the user that its image names, unless that is root. A volume that the
// image declares is an empty folder in memory, like `/tmp`. `/tmp/output` is on the
// host's disk, within the agent's `max_files_size`. A container shares the kernel of
// its host: it contains mistakes and prompts that go wrong, but it is not a virtual
// machine.
//
// The image must be on the engine already, or be pulled (`pull`), or be built from a
// folder when the agent starts, for which the engine pulls what the Dockerfile builds
// upon. The whole folder is sent to the engine: keep secrets out of it,
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
// beside the engine, as root or linked statically: where it is not root, it runs its own
// program in another container, which gives the agent's its network. `bridge` and `host` are what they are in Docker, and no
// isolation; the log warns of them.
//
// While the engine does not answer, the agent is busy; what it has begun goes on, or ends
// as a failure. When its image has gone, it is looked for, pulled or built again.
// Containers that could not be removed are removed within a minute of the engine's return.
//
// With `serve`, the container is not one for each task but a single one, of a model
// server that speaks OpenAI's API, such as Ollama, vLLM or llama.cpp. It is called as
// its image says, listens on 127.0.0.1 or on all addresses, and goes on from request
// to request; they are passed on to it as the runtime `openai` does. It has no network
// all the same, or that of `network`: requests come to it through its own network
// namespace, which needs the same as `network`. So its models are
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
// With `warm`, that many containers are started ahead, and wait for their prompts, on
// standard input or in a file, which is a named pipe then; each gets one task and is
// removed after it, as any other. So a task
// begins at once where one waits, and as usual where none does: a burst that is longer
// than `warm` gets fresh ones meanwhile. All agents together start 5 ahead in a second,
// and have 256 that wait. What an agent does before it reads, it does before there is a
// task: it finds the file that `AGENTFM_REQUEST` names, if there is one, when it has read
// the prompt, and secrets are as old as the container. One that waits takes memory, and
// processor time, as its limits allow, and is replaced after an hour, or when it exits. A
// reload that changes nothing of the container keeps those that wait.
//
// Placeholders are replaced in `image`, `build`, `host`, `env_file`, the values of
// `env` and `secret` and the arguments of `network`, once, when the configuration is
// loaded; one that has no
// value there is an error.
//
// Syntax:
//
//	runtime docker {
//		image    <reference>
//		build    <folder>
//		host     <address>
//		prompt   argument|stdin|file
//		warm     <number>
//		stderr   answer|log
//		serve    <port>
//		models   <name>...
//		rename   <offered> <name at the server>
//		routes   <route>...
//		memory   <size>
//		cpus     <number>
//		pids     <number>
//		tmpfs    <size>
//		output   <size>
//		grace    <duration>|off
//		env      <name> <value>
//		env_file <file>
//		secret   <name> <file>|<placeholder>
//		mount    <path on the host> <path in the container>
//		user     <user>[:<group>]
//		allow_root
//		ulimit   <name> <soft>[:<hard>]
//		runtime  <name>
//		require_runtime
//		gpus     all|<number>|device=<id>,...
//		platform <os>/<architecture>[/<variant>]
//		pull     never|missing|always
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
	// `name@sha256:…` is one image and no other: the digest is that of a registry, or the
	// id of an image that was built on the engine. Default: with `build`,
	// `agentfm/<agent>:latest`; else it is required.
	Image string `json:"image,omitempty"`

	// Pull says when the image is pulled: `never`, `missing` when the engine does not
	// have it, or `always` before the agent starts. The registry gets the credentials that
	// `docker login` has left in `config.json` in `DOCKER_CONFIG`, or in `.docker` in the
	// home of Caddy's user; credential helpers are not asked. Not with `build`. Default:
	// `never`.
	Pull string `json:"pull,omitempty"`

	// Platform is what the image must be for, such as `linux/amd64` or `linux/arm64/v8`.
	// Default: whatever the engine has or chooses.
	Platform string `json:"platform,omitempty"`

	// Build is a folder with a `Dockerfile` or a `Containerfile`, from which the
	// image is built when the agent starts. Default: nothing is built.
	Build string `json:"build,omitempty"`

	// Host is the address of the engine, for example `unix:///run/docker.sock`.
	// Default: the environment variable `DOCKER_HOST`, else the usual socket.
	Host string `json:"host,omitempty"`

	// Prompt says how an agent gets the prompt: `argument`, as the container's
	// one argument (at most 131071 bytes), `stdin`, on its standard input,
	// which then ends, or `file`, in `/run/agentfm/prompt` (also in `AGENTFM_PROMPT`);
	// the last two at most 1 MiB. Default: what the image's label `agentfm.prompt`
	// says, else `argument`.
	Prompt string `json:"prompt,omitempty"`

	// Warm is how many containers are started ahead, at most 256. It needs `prompt stdin`
	// or `prompt file`; with the latter, which begins sooner, the engine must be on this
	// machine, with a `runtime` that shares its kernel.
	// Default: none.
	Warm int `json:"warm,omitempty"`

	// Stderr says where the agent's standard error goes: to the `answer`, as with
	// AgentFM 1.3, or to the `log`, at the level debug, at most 64 KiB of a task. Not with
	// `serve`. Default: `answer`.
	Stderr string `json:"stderr,omitempty"`

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

	// Output is the most that the agent may say in one task, written like `memory`. When
	// it says more, the task ends, as a failure. Not with `serve`. Default: `1GiB`.
	Output string `json:"output,omitempty"`

	// Grace is how long an agent has to end by itself when its task is stopped, because the
	// client went away or the time is over, before it is killed; rounded up to seconds, at
	// most 20s, and -1 for none. It gets SIGTERM, or the signal that the image names, and
	// its task keeps its slot for that time. An agent that says too much is killed at once.
	// Default: 2s, with `serve` 10s.
	Grace caddy.Duration `json:"grace,omitempty"`

	// User is whom the agent runs as: a name that the image has, or a number, and perhaps
	// a group after a colon. Root is refused. Default: the user of the image; where that
	// is root, or the image names none, it is `65534:65534`.
	User string `json:"user,omitempty"`

	// AllowRoot lets an agent run as root, because `user` or the image says so. Root in
	// a container, even without capabilities, owns files of the host's root, and is
	// nearer to the host when the kernel or the engine has a fault. Default: false.
	AllowRoot bool `json:"allow_root,omitempty"`

	// Ulimits are limits of each process by their names, such as `nofile` or `fsize`,
	// each as `<soft>` or `<soft>:<hard>`; -1 is none. Default: `nofile` 1024, `core` 0.
	Ulimits map[string]string `json:"ulimits,omitempty"`

	// OCIRuntime is the engine's runtime that runs the containers, for example `runsc`
	// (gVisor) or `kata-runtime`; in a Caddyfile it is the option `runtime`. An engine
	// that does not have it is refused: there is no other in its place. Default: the
	// engine's own.
	OCIRuntime string `json:"oci_runtime,omitempty"`

	// RequireRuntime refuses a configuration without `runtime`: for a snippet that several
	// agents share, none of which is to run by the engine's own. A runtime that is set and
	// is not there is refused in any case. Default: false.
	RequireRuntime bool `json:"require_runtime,omitempty"`

	// GPUs are those that a container gets: `all`, a number of them, or
	// `device=<id>,<id>`, as in Docker. The engine needs their vendor's toolkit. Default:
	// none.
	GPUs string `json:"gpus,omitempty"`

	// Mounts are files and folders of the host that the agent sees, read-only, without
	// what is mounted below them. Default: none.
	Mounts []Mount `json:"mounts,omitempty"`

	// Secrets are files in `/run/secrets`, by their names. A value that is one
	// placeholder, such as `{env.HR_API_KEY}`, stands for the text; any other is a file
	// that has it, and is read for each container. They are readable by the container's
	// user, and not in its environment, its image or the log; the agent can print them.
	// While the container runs, they are in a private folder, in memory where Caddy is
	// root or has `XDG_RUNTIME_DIR`. Default: none.
	Secrets map[string]string `json:"secrets,omitempty"`

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

	logger   *zap.Logger
	limits   limits
	ulimits  []units.Ulimit
	platform *ocispec.Platform
	devices  []container.DeviceRequest
	secrets  []secret
	outlet   *outlet                // of Network
	environ  []string               // NAME=value, from EnvFile and Env: secrets
	beside   func() (string, error) // programOf, also where the worker may enter containers; for tests
	ready    atomic.Pointer[prepared]
	away     atomic.Pointer[wire.Cause] // why no task can begin; nil when one can
	watched  sync.Once

	// With Serve.
	upstream *upstream.Runtime
	user     *serviceUser // this one, of the service
	service  atomic.Pointer[service]
	requests sync.RWMutex // read-locked by requests; locked for good when there are to be no more
	using    sync.Mutex   // over changes of the service
	retired  bool         // under using: there is to be no service any more
}

// CaddyModule returns the Caddy module information.
func (*Runtime) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "agentfm.runtimes.docker",
		New: func() caddy.Module { return new(Runtime) },
	}
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
	if r.asArgument() {
		return wire.MaxArgumentPrompt
	}
	return wire.MaxTaskFrame
}

// PromptNUL reports whether a prompt may contain NUL bytes; an argument ends at one.
func (r *Runtime) PromptNUL() bool { return !r.asArgument() }

// asArgument reports whether the prompt is an argument, which the image decides where
// the configuration does not.
func (r *Runtime) asArgument() bool {
	prompt := r.Prompt
	if p := r.ready.Load(); p != nil {
		prompt = p.spec.prompt
	}
	return r.Serve == 0 && (prompt == "" || prompt == promptArgument)
}

// Interface guards
var (
	_ caddy.Module          = (*Runtime)(nil)
	_ caddy.Provisioner     = (*Runtime)(nil)
	_ caddy.Validator       = (*Runtime)(nil)
	_ caddyfile.Unmarshaler = (*Runtime)(nil)
	_ worker.Runtime        = (*Runtime)(nil)
	_ worker.MayBeAway      = (*Runtime)(nil)
)
