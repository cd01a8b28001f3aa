// SPDX-License-Identifier: Apache-2.0

package router

import (
	"iter"
	"strings"
)

// Match returns those of the workers to whom a request may go, the first tier
// that has any: the peer id exactly, then the agent's name, then a model engine,
// both in any case. names tells them apart; of the Worker it is only the peer id
// and names that count. It is what a [Router] decides, for lists of workers that
// are not in one.
func Match[T any](workers iter.Seq[T], req Request, names func(T) Worker) []T {
	name := req.Peer
	if name == "" {
		name = strings.TrimSpace(req.Model)
	}
	if name == "" {
		return nil
	}
	var agents, models []T
	for w := range workers {
		n := names(w)
		switch {
		case req.May != nil && !req.May(n.Peer, n.Agent, n.asked(&req)):
		case n.Peer == name:
			return []T{w}
		case req.Peer != "":
		case strings.EqualFold(n.Agent, name):
			agents = append(agents, w)
		case strings.EqualFold(n.asked(&req), name):
			models = append(models, w)
		}
	}
	if len(agents) > 0 {
		return agents
	}
	return models
}
