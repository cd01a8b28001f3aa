// SPDX-License-Identifier: Apache-2.0

package mode

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// System is what the meaning of a command line depends on.
type System struct {
	// Getenv returns a variable of the environment.
	Getenv func(name string) string
	// Exists reports whether a file is there.
	Exists func(file string) bool
	// DataDir is Caddy's data folder.
	DataDir string
}

// Command is what Caddy does in place of a command line of AgentFM's.
type Command struct {
	// Args is Caddy's command line.
	Args []string
	// Config is a Caddyfile for its standard input; empty when it needs none.
	Config string
	// Print says that the configuration is to be shown, and nothing done.
	Print bool
}

const (
	// defaultAPIPort is the port of the API.
	defaultAPIPort = 8080
	// relayPort is the port of a relay's node.
	relayPort = 4001
	// stopTime is how long a gateway that ends waits for open requests: the Python SDK kills
	// it after three seconds.
	stopTime = "2s"
	// artifactsDir is where a gateway keeps the files that agents leave.
	artifactsDir = "./agentfm_artifacts"
	// maxName is the longest name of an agent, in characters.
	maxName = 20
)

// Translate says what a command line of AgentFM's means for Caddy. It is [flag.ErrHelp]
// for -help.
func Translate(args []string, sys System) (Command, error) {
	mode, v, err := parse(args)
	if err != nil {
		return Command{}, err
	}
	t := &translation{values: v, sys: sys}
	c := Command{Args: []string{"run", "--config", "-", "--adapter", "caddyfile"}, Print: v[printFlag] != ""}
	switch mode {
	case modeGenkey:
		return Command{Args: []string{"agentfm", "genkey", "swarm"}}, nil
	case modeAPI:
		t.api()
	case modeWorker:
		t.worker()
	case modeRelay:
		t.relay()
	case modeWitness:
		t.witness()
	case modeTest:
		if v["prompt"] == "" || v["prompt"] == "-" {
			return Command{}, errors.New("-prompt is required with -mode test: the text for the agent")
		}
		v["model"] = cmp.Or(v["model"], modeTest)
		t.worker()
		c.Args = []string{"agentfm", "test", "--config", "-", "--adapter", "caddyfile", "--prompt=" + v["prompt"]}
	}
	c.Config = t.text.String()
	return c, t.err
}

// translation writes a Caddyfile. Its error is the first that there was.
type translation struct {
	values
	sys  System
	text caddyfile
	err  error
}

// quote makes a word of a flag's value.
func (t *translation) quote(name string) string {
	word, err := quote(t.values[name])
	if err != nil {
		err = fmt.Errorf("-%s: %w", name, err)
	}
	t.note(err)
	return word
}

// word makes a word of a text.
func (t *translation) word(text string) string {
	word, err := quote(text)
	if err != nil {
		err = fmt.Errorf("%q: %w", text, err)
	}
	t.note(err)
	return word
}

// note keeps the first error.
func (t *translation) note(err error) { t.err = cmp.Or(t.err, err) }

// integer is values.integer, for a translation.
func (t *translation) integer(name string, least, most, none int) int {
	n, err := t.values.integer(name, least, most, none)
	t.note(err)
	return n
}

// number is values.number, for a translation.
func (t *translation) number(name string, least, most float64) string {
	n, err := t.values.number(name, least, most)
	t.note(err)
	return n
}

// api writes the configuration of a gateway.
func (t *translation) api() {
	port := t.integer("apiport", 1, 65535, defaultAPIPort)
	bind := cmp.Or(t.values["api-bind"], "127.0.0.1")
	keys := strings.TrimSpace(t.sys.Getenv("AGENTFM_API_KEYS")) != ""
	if !keys && !loopback(bind) && t.sys.Getenv("AGENTFM_ALLOW_UNAUTH_PUBLIC") != "1" {
		t.note(fmt.Errorf("-api-bind %s is not loopback, and everybody could run tasks: set AGENTFM_API_KEYS, or AGENTFM_ALLOW_UNAUTH_PUBLIC=1", bind))
	}
	// A gateway on another port is another node: both can run at one time.
	identity, store := "", ""
	if port != defaultAPIPort {
		identity = fmt.Sprintf("gateway-%d", port)
		store = filepath.Join(t.sys.DataDir, "agentfm", fmt.Sprintf("task-store-%d", port))
	}
	t.text.block("", func() {
		t.process()
		t.text.line("grace_period " + stopTime)
		t.text.block("agentfm", func() {
			t.mesh(&node{t.identity(identity), t.port(0), false})
			t.text.line("artifacts " + artifactsDir)
			if store != "" {
				t.text.block("tasks", func() { t.text.line("store " + t.word(store)) })
			}
			t.reputation()
		})
	})
	t.text.block("http://:"+strconv.Itoa(port), func() {
		t.text.line("bind " + t.word(bind))
		if !keys {
			t.text.line("agentfm")
			return
		}
		t.text.block("agentfm", func() { t.text.line("api_keys {env.AGENTFM_API_KEYS}") })
	})
	t.metrics()
}

// relay writes the configuration of a relay.
func (t *translation) relay() {
	t.text.block("", func() {
		t.process()
		t.text.block("agentfm", func() {
			t.mesh(&node{t.identity(modeRelay), t.port(relayPort), true})
			t.reputation()
		})
	})
	t.metrics()
}

// witness writes the configuration of a witness.
func (t *translation) witness() {
	t.values["witness"] = "true"
	t.text.block("", func() {
		t.process()
		t.text.block("agentfm", func() {
			t.mesh(&node{t.identity(modeWitness), t.port(0), false})
			t.reputation()
		})
	})
	t.metrics()
}

// worker writes the configuration of a worker with one agent.
func (t *translation) worker() {
	dir, image := t.values["agentdir"], t.values["image"]
	if dir == "" && image == "" {
		t.note(errors.New("-agentdir or -image is required: the folder of the agent, or its image"))
	}
	if t.values["agent"] == "" {
		t.values["agent"] = agentName(dir, image)
	}
	if t.values["model"] == "" {
		t.note(errors.New("-model is required: the name of the model that the agent announces, by which clients ask for it"))
	}
	t.text.block("", func() {
		t.process()
		t.text.block("agentfm", func() {
			var own *node
			if t.values["witness"] != "" { // which an agent is not
				own = &node{identity: modeWitness}
			}
			t.mesh(own)
			t.reputation()
		})
		t.text.block("agentfm_worker", func() {
			t.text.block("agent "+agentKey(t.values["agent"]), func() {
				t.agent()
				t.text.block("runtime docker", func() { t.docker(dir, image) })
			})
		})
	})
	t.metrics()
}

// agent writes what an agent says of itself, and what it takes.
func (t *translation) agent() {
	for _, f := range []struct{ flag, option string }{
		{"agent", "name"}, {"model", "model"}, {"desc", "description"}, {"author", "author"}, {"capability", "capability"},
	} {
		if t.values[f.flag] != "" {
			t.text.line(f.option + " " + t.quote(f.flag))
		}
	}
	if n := t.integer("maxtasks", 1, 1<<20, 0); n != 0 {
		t.text.line(fmt.Sprintf("max_tasks %d", n))
	}
	for _, f := range []struct{ flag, option string }{{"maxcpu", "max_cpu"}, {"maxgpu", "max_gpu"}} {
		if percent := t.number(f.flag, 1, 100); percent != "" {
			t.text.line(f.option + " " + percent)
		}
	}
	if identity := t.identity(""); identity != "" {
		t.text.line("identity " + identity)
	}
	if port := t.port(0); port != 0 {
		t.text.line("listen " + t.listen(port))
	}
}

// docker writes where the agent's container comes from.
func (t *translation) docker(dir, image string) {
	if image != "" {
		t.text.line("image " + t.quote("image"))
	}
	if dir == "" {
		t.text.line("pull missing")
		return
	}
	t.text.line("build " + t.quote("agentdir"))
	if file := filepath.Join(dir, ".env"); t.sys.Exists(file) {
		t.text.line("env_file " + t.word(file))
	}
}

// process writes what holds for the whole process. There is no admin API: several of
// these processes can be on one machine.
func (t *translation) process() {
	t.text.line("admin off")
	t.text.line("persist_config off")
	format, err := t.oneOf("log-format", map[string]string{"json": "json", "text": "console", "console": "console"})
	t.note(err)
	level, err := t.oneOf("log-level", map[string]string{"debug": "DEBUG", "info": "INFO", "warn": "WARN", "error": "ERROR"})
	t.note(err)
	if format == "" && level == "" {
		return
	}
	t.text.block("log", func() {
		if format != "" {
			t.text.line("format " + format)
		}
		if level != "" {
			t.text.line("level " + level)
		}
	})
}

// metrics writes the site for Prometheus.
func (t *translation) metrics() {
	address := t.values["prom-listen"]
	if address == "" {
		return
	}
	host, port, err := net.SplitHostPort(address)
	if n, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || n == 0 {
		t.note(fmt.Errorf("-prom-listen %s: want an address and a port, such as 127.0.0.1:9090", address))
		return
	}
	t.text.block("http://:"+port, func() {
		if host != "" {
			t.text.line("bind " + t.word(host))
		}
		t.text.line("metrics /metrics")
	})
}

// loopback reports whether an address for listening is of this machine alone.
func loopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// agentName returns the name of an agent that was given none.
func agentName(dir, image string) string {
	name := path.Base(image)
	if dir != "" {
		if abs, err := filepath.Abs(dir); err == nil {
			dir = abs
		}
		name = filepath.Base(dir)
	} else {
		name, _, _ = strings.Cut(name, "@")
		name, _, _ = strings.Cut(name, ":")
	}
	if r := []rune(name); len(r) > maxName {
		name = string(r[:maxName])
	}
	return name
}

// noKey is what an agent's key cannot have.
var noKey = regexp.MustCompile(`[^a-z0-9]+`)

// agentKey makes the key of an agent from its name: the key of its identity goes by it. Where
// the key cannot say all of the name, it ends with a hash of it: no two agents share a key.
func agentKey(name string) string {
	key := cmp.Or(strings.Trim(noKey.ReplaceAllString(strings.ToLower(name), "-"), "-"), "agent")
	if key == name {
		return key
	}
	sum := sha256.Sum256([]byte(name))
	return fmt.Sprintf("%.50s-%x", key, sum[:4])
}
