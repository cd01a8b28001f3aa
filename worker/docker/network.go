// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/docker/docker/api/types/container"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/option"
	"github.com/Agent-FM/caddy-agentfm/worker/upstream"
)

// Network is what the containers of an agent can reach.
type Network struct {
	// Mode is one of these. Default: `none`.
	//
	// - `none`: nothing.
	// - `model`: one model server, that of `url`, and nothing else.
	// - `egress`: the servers in `allow`, through a proxy, and nothing else.
	// - `bridge`: the engine's default network, with all that can be reached from there.
	// - `host`: the network of the engine's machine, with all of its local services.
	Mode string `json:"mode,omitempty"`

	// URL is where the model server of the mode `model` has OpenAI's API, as this
	// machine reaches it, for example `http://127.0.0.1:11434/v1`. One without a path
	// gets `/v1`. Only what is below it can be reached.
	URL string `json:"url,omitempty"`

	// APIKey is the model server's key. Requests get it on their way; the container
	// does not see it. Use a placeholder, such as `{env.VLLM_API_KEY}` or
	// `{file./run/secrets/vllm}`. Default: the agent's own header is passed on.
	APIKey string `json:"api_key,omitempty"`

	// Allow is what the mode `egress` lets through: each a name and a port, such as
	// `api.example.com:443`, or `*.example.com:443` for all names below it. A name
	// leads to addresses of the public internet alone. An address and a port, such as
	// `10.0.0.5:8080`, lead there, whatever is there.
	Allow []string `json:"allow,omitempty"`
}

// Values of Network.Mode.
const (
	networkNone   = "none"
	networkModel  = "model"
	networkEgress = "egress"
	networkBridge = "bridge"
	networkHost   = "host"
)

// Ports in a container, on 127.0.0.1.
const (
	modelPort = 11434
	proxyPort = 3128
)

// Warnings of modes that are no isolation.
var networkWarnings = map[string]string{
	networkBridge: "network bridge: the agent can reach the internet, the local network, cloud metadata, other containers of the bridge, " +
		"and every service of this machine that does not listen on loopback alone; the engine's firewall rules are all that is between",
	networkHost: "network host: the agent is in the network of this machine: it can reach every service on it, also on loopback, and whatever " +
		"this machine can reach, and can listen on its ports",
}

// networkOption reads the option `network`.
func networkOption(v **Network) option.Option {
	return option.Func(func(d *caddyfile.Dispenser) error {
		args := d.RemainingArgs()
		if len(args) == 0 {
			return d.ArgErr()
		}
		n := &Network{Mode: args[0]}
		*v = n
		block := option.Set{}
		switch rest := args[1:]; n.Mode {
		case networkModel:
			if len(rest) != 1 {
				return d.Errf("network model: want the URL of a model server")
			}
			n.URL = rest[0]
			block["api_key"] = option.Key(&n.APIKey)
		case networkEgress:
			if len(rest) == 0 {
				return d.Errf("network egress: want one or more of <host>:<port>")
			}
			n.Allow = rest
		case networkNone, networkBridge, networkHost:
			if len(rest) > 0 {
				return d.ArgErr()
			}
		default:
			return d.WrapErr(errNetworkMode(n.Mode))
		}
		return block.Block(d)
	})
}

func errNetworkMode(mode string) error {
	return fmt.Errorf("network '%s' is not none, model, egress, bridge or host", mode)
}

// outlet is a Network that has been read. A nil outlet leads nowhere.
type outlet struct {
	mode string
	port int // of what is served in the container, or 0
	vars []string

	base   *url.URL // mode model
	key    string   // the header Authorization: a secret
	egress egress   // mode egress

	early func(ctx context.Context, id string, port int) func() *door // openEarly; tests have others
}

// newOutlet reads a Network for containers that use the port serve themselves, if
// that is not 0.
func newOutlet(n *Network, serve int, repl *caddy.Replacer) (*outlet, error) {
	if n == nil {
		return nil, nil
	}
	o := &outlet{mode: n.Mode, early: openEarly}
	switch {
	case n.Mode == "":
		o.mode = networkNone
	case n.Mode != networkModel && n.Mode != networkEgress && n.Mode != networkNone && networkWarnings[n.Mode] == "":
		return nil, errNetworkMode(n.Mode)
	}
	switch {
	case (n.URL != "" || n.APIKey != "") && n.Mode != networkModel:
		return nil, errors.New("url and api_key are for the mode model alone")
	case len(n.Allow) > 0 && n.Mode != networkEgress:
		return nil, errors.New("allow is for the mode egress alone")
	}
	switch n.Mode {
	case networkModel:
		o.port = otherPort(modelPort, serve)
		o.vars = modelVariables(o.port)
		return o, o.readModel(n, repl)
	case networkEgress:
		o.port = otherPort(proxyPort, serve)
		o.vars = proxyVariables(o.port)
		return o, o.readEgress(n, repl)
	}
	return o, nil
}

// otherPort returns a port, or the next one if it is taken.
func otherPort(port, taken int) int {
	if port == taken {
		return port + 1
	}
	return port
}

func modelVariables(port int) []string {
	// Libraries insist on a key. This one is nobody's.
	return []string{"OPENAI_BASE_URL=http://127.0.0.1:" + strconv.Itoa(port) + "/v1", "OPENAI_API_KEY=none"}
}

func proxyVariables(port int) []string {
	proxy := "http://127.0.0.1:" + strconv.Itoa(port)
	const direct = "localhost,127.0.0.1,::1"
	return []string{
		"HTTP_PROXY=" + proxy, "HTTPS_PROXY=" + proxy, "NO_PROXY=" + direct,
		"http_proxy=" + proxy, "https_proxy=" + proxy, "no_proxy=" + direct,
	}
}

func (o *outlet) readModel(n *Network, repl *caddy.Replacer) error {
	address, err := repl.ReplaceOrErr(n.URL, true, true)
	if err != nil {
		return fmt.Errorf("url: %w", err)
	}
	if o.base, err = upstream.ParseBase(address); err != nil {
		return fmt.Errorf("url: %w", err)
	}
	if n.APIKey == "" {
		return nil
	}
	key, err := repl.ReplaceOrErr(n.APIKey, true, true)
	if err != nil { // it would show a key with braces in it
		return errors.New("api_key: a placeholder in it is unknown or empty")
	}
	if o.key, err = upstream.Bearer(key); err != nil {
		return fmt.Errorf("api_key: %w", err)
	}
	return nil
}

func (o *outlet) readEgress(n *Network, repl *caddy.Replacer) error {
	if len(n.Allow) == 0 {
		return errors.New("egress needs one or more of <host>:<port>")
	}
	for _, entry := range n.Allow {
		text, err := repl.ReplaceOrErr(entry, true, true)
		if err != nil {
			return fmt.Errorf("allow: %w", err)
		}
		rule, err := parseRule(text)
		if err != nil {
			return fmt.Errorf("allow: %w", err)
		}
		o.egress.rules = append(o.egress.rules, rule)
	}
	return nil
}

// environ returns the variables of a container, list, with those that it needs for
// what it can reach, where they are not in the list.
func (o *outlet) environ(list []string) []string {
	if o == nil {
		return list
	}
	var more []string
	for _, variable := range o.vars {
		name, _, _ := strings.Cut(variable, "=")
		if !slices.ContainsFunc(list, func(v string) bool { return strings.HasPrefix(v, name+"=") }) {
			more = append(more, variable)
		}
	}
	return append(more, list...)
}

// dockerMode returns what the engine is told.
func (o *outlet) dockerMode() container.NetworkMode {
	if o == nil || o.served() {
		return networkNone
	}
	return container.NetworkMode(o.mode)
}

// isolated reports whether a container has a loopback interface and nothing else, as the
// kernel makes it. The engine need not know of it then: its own record of a network that
// leads nowhere costs about a third of a container's start. It leaves out /etc/hosts too,
// which the container gets from us.
func (s *spec) isolated() bool {
	return s.network.dockerMode() == networkNone && !s.network.served() && s.program == "" && !s.podman
}

// served reports whether something is served in the container.
func (o *outlet) served() bool { return o != nil && o.port != 0 }

// settings returns all that tells this outlet from another.
func (o *outlet) settings() []any {
	if o == nil || o.mode == networkNone {
		return nil
	}
	return []any{o.mode, o.port, fmt.Sprint(o.base), o.key, fmt.Sprint(o.egress.rules)}
}

// warnOfNetwork says what is given up by the network, and what may not work with another
// kernel than the host's.
func (r *Runtime) warnOfNetwork(logger *zap.Logger) {
	if o := r.outlet; o != nil && networkWarnings[o.mode] != "" {
		logger.Warn(networkWarnings[o.mode])
	}
	if r.OCIRuntime == "" || r.OCIRuntime == defaultOCIRuntime {
		return
	}
	if r.Warm > 0 && r.Prompt == promptInFile {
		logger.Warn("a runtime with a kernel of its own, such as gVisor or a virtual machine, does not share the named pipe by which an "+
			"agent gets its prompt: with that, use prompt stdin", zap.String("runtime", r.OCIRuntime))
	}
	if option := r.enters(); option != "" {
		logger.Warn("a runtime with a network stack of its own, such as gVisor's or a virtual machine's, has a loopback interface that "+
			"the worker does not get to: there is no way in then", zap.String("option", option), zap.String("runtime", r.OCIRuntime))
	}
}

// handler returns what is served in a container.
func (o *outlet) handler(log func() *zap.Logger) handler {
	if o.mode == networkModel {
		return newModelHandler(o.base, o.key, log)
	}
	return newProxy(&o.egress, log)
}
