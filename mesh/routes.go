// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"strings"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
	"github.com/Agent-FM/caddy-agentfm/router"
)

// Route returns the set of the one route of a path, which may lie below it; an
// empty set when there is none. The place of a route in [wire.Routes] is its bit.
func Route(path string) router.Routes {
	for i, r := range wire.Routes {
		if rest, ok := strings.CutPrefix(path, r); ok && (rest == "" || rest[0] == '/') {
			return 1 << i
		}
	}
	return 0
}

// routeSet returns the set of the routes that a worker names. Others than ours
// are of no use.
func routeSet(names []string) (set router.Routes) {
	for _, name := range names {
		for i, r := range wire.Routes {
			if r == name {
				set |= 1 << i
			}
		}
	}
	return set
}
