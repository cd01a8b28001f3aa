// SPDX-License-Identifier: Apache-2.0

package mode

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Modes of the binary.
const (
	modeAPI     = "api"
	modeWorker  = "worker"
	modeRelay   = "relay"
	modeWitness = "witness"
	modeGenkey  = "genkey"
	modeTest    = "test"
)

// modes are all of them, and what each does.
var modes = []struct{ name, usage string }{
	{modeAPI, "a gateway: AgentFM's API and OpenAI's over HTTP"},
	{modeWorker, "a worker with one agent, in containers of a Docker engine"},
	{modeRelay, "a relay, by which other nodes are found and reached"},
	{modeWitness, "a witness of the reputation ledger"},
	{modeGenkey, "print a new key of a private swarm"},
	{modeTest, "run one task of an agent, without a mesh"},
}

// Sets of modes that share flags. The mode test takes whatever the mode worker does, so
// that the command line of a worker becomes a test of its agent.
var (
	forNodes  = []string{modeAPI, modeWorker, modeRelay, modeWitness, modeTest}
	forAgents = []string{modeWorker, modeTest}
)

// modeFlag and printFlag are the flags that are about the command line itself.
const (
	modeFlag  = "mode"
	printFlag = "print-config"
)

// flags are all flags but -mode, and the modes that know each.
var flags = []struct {
	name  string
	bool  bool
	modes []string
	usage string
}{
	{"agentdir", false, forAgents, "folder of the agent, with a Dockerfile, from which its image is built, and perhaps an .env file"},
	{"image", false, forAgents, "image of the agent; with -agentdir, the name of the one that is built"},
	{"agent", false, forAgents, "name of the agent (default: that of its folder or image)"},
	{"model", false, forAgents, "model that the agent announces; required for a worker"},
	{"desc", false, forAgents, "what the agent does"},
	{"author", false, forAgents, "who runs the agent"},
	{"capability", false, forAgents, "what the agent can do, in kebab case"},
	{"maxtasks", false, forAgents, "tasks at once (default: 1)"},
	{"maxcpu", false, forAgents, "percent of CPU use from which on no task is taken (default: 80)"},
	{"maxgpu", false, forAgents, "percent of GPU memory above which no task is taken (default: 80)"},
	{"prompt", false, []string{modeTest}, "prompt of the task; required for a test"},
	{"apiport", false, []string{modeAPI}, "port of the API (default: 8080)"},
	{"api-bind", false, []string{modeAPI}, "address of the API (default: 127.0.0.1)"},
	{"reputation-floor", false, []string{modeAPI}, "score below which a worker gets no tasks, from -1 to 1 (default: -0.5)"},
	{"witness", true, forNodes, "be a witness of the reputation ledger, too"},
	{"swarmkey", false, forNodes, "file with the key of a private swarm"},
	{"bootstrap", false, forNodes, "nodes to stay connected to, multiaddresses with commas between them, or off"},
	{"port", false, forNodes, "port of the node on the mesh (default: any; of a relay, 4001)"},
	{"identity", false, forNodes, "file with the node's key, which is made where there is none (default: one in Caddy's data folder)"},
	{"prom-listen", false, forNodes, "address for Prometheus, such as 127.0.0.1:9090 (default: none)"},
	{"log-format", false, forNodes, "json or text"},
	{"log-level", false, forNodes, "debug, info, warn or error"},
	{printFlag, true, forNodes, "print the configuration, and do nothing else"},
}

// values are the flags of one command line.
type values map[string]string

// parse reads a command line. Flags have one dash or two, as in AgentFM.
func parse(args []string) (mode string, v values, err error) {
	v = make(values)
	set := flag.NewFlagSet("agentfm", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.StringVar(&mode, modeFlag, "", "")
	for _, f := range flags {
		keep := func(s string) error { v[f.name] = s; return nil }
		if f.bool {
			set.BoolFunc(f.name, "", func(s string) error {
				on, err := strconv.ParseBool(s)
				if !on || err != nil {
					return err
				}
				return keep(s)
			})
			continue
		}
		set.Func(f.name, "", keep)
	}
	err = set.Parse(args)
	name, unknown := strings.CutPrefix(fmt.Sprint(err), "flag provided but not defined: ")
	switch {
	case errors.Is(err, flag.ErrHelp):
		return "", nil, err
	case unknown:
		return "", nil, fmt.Errorf("unknown flag %s; the flags are -mode, %s", name, flagsOf(""))
	case err != nil:
		return "", nil, err
	case set.NArg() > 0:
		return "", nil, fmt.Errorf("unexpected argument %q: what is no value of a flag begins with a dash", set.Arg(0))
	case !slices.ContainsFunc(modes, func(m struct{ name, usage string }) bool { return m.name == mode }):
		return "", nil, fmt.Errorf("unknown mode %q; the modes are %s", mode, modeNames())
	}
	for _, f := range flags {
		if _, given := v[f.name]; given && !slices.Contains(f.modes, mode) {
			known := cmp.Or(flagsOf(mode), "none")
			return "", nil, fmt.Errorf("flag -%s is for -mode %s; the flags of -mode %s are: %s", f.name, strings.Join(f.modes, ", "), mode, known)
		}
	}
	return mode, v, nil
}

// modeNames lists the modes.
func modeNames() string {
	var names []string
	for _, m := range modes {
		names = append(names, m.name)
	}
	return strings.Join(names, ", ")
}

// flagsOf lists the flags that a mode knows, or all.
func flagsOf(mode string) string {
	var names []string
	for _, f := range flags {
		if mode == "" || slices.Contains(f.modes, mode) {
			names = append(names, "-"+f.name)
		}
	}
	return strings.Join(names, ", ")
}

// usage is the help.
func usage() string {
	var b strings.Builder
	b.WriteString("Usage: agentfm -mode <mode> [flags]\n       agentfm <command>, which is Caddy: see agentfm help\n\nModes:\n")
	for _, m := range modes {
		fmt.Fprintf(&b, "  %-9s%s\n", m.name, m.usage)
	}
	b.WriteString("\nFlags, with one dash or two:\n")
	for _, f := range flags {
		fmt.Fprintf(&b, "  -%-18s%s [%s]\n", f.name, f.usage, strings.Join(f.modes, ", "))
	}
	return b.String()
}

// integer returns a flag that is a whole number, or the default.
func (v values) integer(name string, least, most, none int) (int, error) {
	s, given := v[name]
	if !given {
		return none, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("-%s %s: want a whole number from %d to %d", name, s, least, most)
	}
	return n, nil
}

// number returns a flag that is a number, as it is written, or nothing.
func (v values) number(name string, least, most float64) (string, error) {
	s, given := v[name]
	if !given {
		return "", nil
	}
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(n) || n < least || n > most {
		return "", fmt.Errorf("-%s %s: want a number from %g to %g", name, s, least, most)
	}
	return strconv.FormatFloat(n, 'f', -1, 64), nil
}

// oneOf returns what a flag's value stands for.
func (v values) oneOf(name string, choices map[string]string) (string, error) {
	s, given := v[name]
	if !given {
		return "", nil
	}
	if meant, ok := choices[strings.ToLower(s)]; ok {
		return meant, nil
	}
	var known []string
	for c := range choices {
		known = append(known, c)
	}
	slices.Sort(known)
	return "", fmt.Errorf("-%s %s: want one of %s", name, s, strings.Join(known, ", "))
}
