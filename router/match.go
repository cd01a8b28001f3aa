// SPDX-License-Identifier: Apache-2.0

package router

import (
	"iter"
	"strings"
)

// Match returns those of the workers to whom a request may go, the first tier
// that has any: the peer id exactly, then the agent's name, then the model engine,
// both in any case. names tells them apart. It is what a [Router] decides, for
// lists of workers that are not in one.
func Match[T any](workers iter.Seq[T], req Request, names func(T) (peer, agent, model string)) []T {
	name := req.Peer
	if name == "" {
		name = strings.TrimSpace(req.Model)
	}
	if name == "" {
		return nil
	}
	var agents, models []T
	for w := range workers {
		peer, agent, model := names(w)
		switch {
		case req.May != nil && !req.May(peer, agent, model):
		case peer == name:
			return []T{w}
		case req.Peer != "":
		case strings.EqualFold(agent, name):
			agents = append(agents, w)
		case strings.EqualFold(model, name):
			models = append(models, w)
		}
	}
	if len(agents) > 0 {
		return agents
	}
	return models
}
