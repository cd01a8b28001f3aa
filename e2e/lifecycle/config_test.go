// SPDX-License-Identifier: Apache-2.0

//go:build unix

package lifecycle

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/internal/freeport"
	"github.com/caddyserver/caddy/v2/caddyconfig"
)

// config is a configuration. Its zero value has the gateway and no agents.
type config struct {
	name    string   // of the configuration, which its site answers with at /name
	listen  string   // addresses of the gateway's node
	peers   []string // nodes that it keeps connections to
	files   string   // the folder for artifacts; default: its own
	mesh    string   // more lines for the mesh block
	app     string   // more lines for agentfm
	env     []string // more of an environment, for a process
	agents  []agent  // of this process
	sites   string   // more sites
	worker  string   // more lines for agentfm_worker
	without bool     // has no gateway and no agents: none of our modules at all
	apps    []string // further apps, which have no settings
}

// agent is an agent in a configuration.
type agent struct {
	key     string
	label   string // what it says first
	env     string // a variable that testdata/agent.sh has beside the label
	lines   string // more lines for its block
	runtime string // default: testdata/agent.sh
}

// with returns the configuration under another name, and with these agents
// where there are any.
func (c config) with(name string, agents ...agent) config {
	c.name = name
	if len(agents) > 0 {
		c.agents = agents
	}
	return c
}

// place is where a Caddy keeps its things and listens.
type place struct {
	dir  string
	port int // of its site
}

func newPlace(t *testing.T) place {
	t.Helper()
	return place{dir: t.TempDir(), port: freeport.Get(t)}
}

// data is where everything is that Caddy and our modules keep.
func (p place) data() string { return filepath.Join(p.dir, "data") }

func (p place) storage() string { return filepath.Join(p.data(), "storage") }

func (p place) url(path string) string { return fmt.Sprintf("http://127.0.0.1:%d%s", p.port, path) }

// caddyfile returns the configuration for a place.
func (c config) caddyfile(t *testing.T, p place, admin string) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "{\n\tadmin %s\n\tstorage file_system %s\n\tlog {\n\t\toutput file %s {\n\t\t\troll_disabled\n\t\t}\n\t\tlevel DEBUG\n\t}\n",
		admin, p.storage(), filepath.Join(p.dir, "log"))
	if !c.without {
		listen := c.listen
		if listen == "" {
			listen = "/ip4/127.0.0.1/tcp/0"
		}
		bootstrap, files := "off", filepath.Join(p.dir, "artifacts")
		if len(c.peers) > 0 {
			bootstrap = strings.Join(c.peers, " ")
		}
		if c.files != "" {
			files = c.files
		}
		fmt.Fprintf(&b, "\tagentfm {\n\t\tmesh {\n\t\t\tlisten %s\n\t\t\tbootstrap %s\n\t\t\tdiscovery off\n\t\t\t%s\n\t\t}\n\t\tartifacts %s\n\t\t%s\n\t}\n",
			listen, bootstrap, c.mesh, files, c.app)
		fmt.Fprintf(&b, "\tagentfm_worker {\n\t\t%s\n", c.worker)
		for _, a := range c.agents {
			b.WriteString(a.block(t))
		}
		b.WriteString("\t}\n")
	}
	fmt.Fprintf(&b, "}\nhttp://:%d {\n\tbind 127.0.0.1\n\theader X-Config %[2]s\n\trespond /name %[2]s\n", p.port, c.name)
	if !c.without {
		b.WriteString("\tagentfm\n")
	}
	fmt.Fprintf(&b, "}\n%s\n", c.sites)
	return b.String()
}

func (a agent) block(t *testing.T) string {
	t.Helper()
	if a.runtime == "" {
		script, err := filepath.Abs("testdata/agent.sh")
		if err != nil {
			t.Fatal(err)
		}
		a.runtime = fmt.Sprintf("process {\n\t\t\t\tcommand sh %q\n\t\t\t\tenv LABEL %q\n", script, a.label)
		if a.env != "" {
			a.runtime += "\t\t\t\tenv " + a.env + "\n"
		}
		a.runtime += "\t\t\t}"
	}
	a.lines += "\n\t\t\truntime " + a.runtime
	return fmt.Sprintf("\t\tagent %[1]s {\n\t\t\tmodel %[1]s\n\t\t\tmax_tasks 8\n\t\t\tmax_cpu off\n\t\t\t%[2]s\n\t\t}\n", a.key, a.lines)
}

// json returns the configuration for a place as JSON, without an admin API.
func (c config) json(t *testing.T, p place) []byte {
	t.Helper()
	out, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(c.caddyfile(t, p, "off")), nil)
	if err != nil {
		t.Fatalf("%v %v\n%s", err, warnings, c.caddyfile(t, p, "off"))
	}
	if len(c.apps) == 0 {
		return out
	}
	var all map[string]map[string]any
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatal(err)
	}
	for _, name := range c.apps {
		all["apps"][name] = struct{}{}
	}
	if out, err = json.Marshal(all); err != nil {
		t.Fatal(err)
	}
	return out
}
