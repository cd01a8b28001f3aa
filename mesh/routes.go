// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"strings"

	"github.com/Agent-FM/caddy-agentfm/router"
)

// routes are the routes of OpenAI's API that a worker may serve. The place of one
// in the list is its bit in a [router.Routes].
var routes = [...]string{
	"/v1/chat/completions",
	"/v1/completions",
	"/v1/embeddings",
	"/v1/responses",
	"/v1/audio/speech",
	"/v1/audio/transcriptions",
	"/v1/audio/translations",
	"/v1/images/generations",
	"/v1/images/edits",
	"/v1/images/variations",
	"/v1/moderations",
	"/v1/rerank",
}

// Route returns the set of the one route of a path, which may lie below it; an
// empty set when there is none.
func Route(path string) router.Routes {
	for i, r := range routes {
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
		for i, r := range routes {
			if r == name {
				set |= 1 << i
			}
		}
	}
	return set
}
