// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/Agent-FM/caddy-agentfm/internal/ipclass"
)

// target is where an agent wants to go: a name, or an address, and a port.
type target struct {
	name string // in lower case, without a dot at its end; empty with an address
	addr netip.Addr
	port uint16
}

// errTarget says that a text is no target.
var errTarget = errors.New("not a host and a port, such as api.example.com:443 or 10.0.0.5:8080")

// parseTarget reads a target. An address has one spelling that is read as one; what
// resolvers may take for others, such as 127.1 and 0x7f000001, is no name either.
func parseTarget(s string) (target, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return target{}, errTarget
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil || number == 0 {
		return target{}, errTarget
	}
	t := target{port: uint16(number)}
	if a, err := netip.ParseAddr(host); err == nil {
		t.addr = a.Unmap()
		if a.Zone() != "" {
			return target{}, errTarget
		}
		return t, nil
	}
	t.name = strings.TrimSuffix(strings.ToLower(host), ".")
	if s[0] == '[' || !ipclass.Name(t.name) {
		return target{}, errTarget
	}
	return t, nil
}

// host returns the name or the address.
func (t target) host() string {
	if t.name != "" {
		return t.name
	}
	return t.addr.String()
}

// String implements fmt.Stringer.
func (t target) String() string {
	return net.JoinHostPort(t.host(), strconv.Itoa(int(t.port)))
}

// rule is what an operator lets through.
type rule struct {
	target
	below bool // all names below the name, and not the name itself
}

// parseRule reads a rule: a target, or one with "*." before its name.
func parseRule(s string) (rule, error) {
	rest, below := strings.CutPrefix(s, "*.")
	t, err := parseTarget(rest)
	switch {
	case err != nil:
		return rule{}, fmt.Errorf("'%s' is %w (other alphabets as xn--…)", s, err)
	case below && t.name == "":
		return rule{}, fmt.Errorf("'%s' is %w", s, errTarget)
	case t.addr.IsUnspecified() || t.addr.IsMulticast():
		return rule{}, fmt.Errorf("'%s' is no address of a server", s)
	}
	return rule{t, below}, nil
}

// covers reports whether the rule lets a target through.
func (r rule) covers(t target) bool {
	switch {
	case t.port != r.port:
		return false
	case r.below:
		return strings.HasSuffix(t.name, "."+r.name)
	}
	return t == r.target
}

// String implements fmt.Stringer.
func (r rule) String() string {
	if r.below {
		return "*." + r.target.String()
	}
	return r.target.String()
}
