// SPDX-License-Identifier: Apache-2.0

package mode

import (
	"fmt"
	"strings"
)

// node is what the process's own node has of its own. Its agents have the rest, too.
type node struct {
	identity string
	port     int
	relay    bool
}

// mesh writes how the process takes part in the mesh; own is nil where it has agents alone.
func (t *translation) mesh(own *node) {
	var lines []string
	add := func(option, words string) { lines = append(lines, strings.TrimRight(option+" "+words, " ")) }
	if own != nil {
		if own.identity != "" {
			add("identity", own.identity)
		}
		add("listen", t.listen(own.port))
		if own.relay {
			add("relay", "")
		}
	}
	if t.values["bootstrap"] != "" {
		nodes := strings.Split(t.values["bootstrap"], ",")
		for i, n := range nodes {
			nodes[i] = t.word(strings.TrimSpace(n))
		}
		add("bootstrap", strings.Join(nodes, " "))
	}
	if t.values["swarmkey"] != "" {
		add("swarm_key", t.quote("swarmkey"))
	}
	if len(lines) == 0 {
		return
	}
	t.text.block("mesh", func() {
		for _, l := range lines {
			t.text.line(l)
		}
	})
}

// reputation writes what is to be with the ledger.
func (t *translation) reputation() {
	floor := t.number("reputation-floor", -1, 1)
	if floor == "" && t.values["witness"] == "" {
		return
	}
	t.text.block("reputation", func() {
		if floor != "" {
			t.text.line("floor " + floor)
		}
		if t.values["witness"] != "" {
			t.text.line("witness")
		}
	})
}

// identity returns the file of the key, or what it is without one. A name without a slash
// would be a key in Caddy's storage.
func (t *translation) identity(none string) string {
	file := t.values["identity"]
	switch {
	case file == "":
		return none
	case !strings.ContainsAny(file, `/\`):
		file = "./" + file
	}
	return t.word(file)
}

// port returns the port on the mesh, or what it is without one.
func (t *translation) port(none int) int { return t.integer("port", 0, 65535, none) }

// listen returns the addresses of a node on a port.
func (t *translation) listen(port int) string {
	addrs := fmt.Sprintf("/ip4/0.0.0.0/tcp/%d", port)
	if t.values["swarmkey"] == "" { // a private swarm has TCP only
		addrs += fmt.Sprintf(" /ip4/0.0.0.0/udp/%d/quic-v1", port)
	}
	return addrs
}
