// SPDX-License-Identifier: Apache-2.0

package router

import (
	"iter"
	"strings"
	"unicode/utf8"
)

// Match returns those of the workers to whom a request may go, the first tier
// that has any: the peer id exactly, then the agent's name, then a model engine,
// both in any case. An agent's name of newcomers alone does not go before a model
// that proven workers offer. names tells them apart; of the Worker it is only the
// peer id, the names and the probation that count. It is what a [Router] decides, for
// lists of workers that are not in one.
func Match[T any](workers iter.Seq[T], req Request, names func(T) Worker) []T {
	name := req.Peer
	if name == "" {
		name = strings.TrimSpace(req.Model)
	}
	if name == "" {
		return nil
	}
	var agents, models []T
	var provenAgent, provenModel bool
	for w := range workers {
		n := names(w)
		switch {
		case req.May != nil && !req.May(n.Peer, n.Agent, n.asked(&req)):
		case n.Peer == name:
			return []T{w}
		case req.Peer != "":
		case strings.EqualFold(n.Agent, name):
			agents, provenAgent = append(agents, w), provenAgent || !n.Probation
		case strings.EqualFold(n.asked(&req), name):
			models, provenModel = append(models, w), provenModel || !n.Probation
		}
	}
	if len(agents) > 0 && (provenAgent || !provenModel) {
		return agents
	}
	return models
}

// maxAsked bounds the names that are looked for, in bytes: a name of a worker has
// 128 characters at most.
const maxAsked = 128 * utf8.UTFMax

// asked is the name that the request asks for.
func (q *Request) asked() string {
	if q.Peer != "" {
		return q.Peer
	}
	return strings.TrimSpace(q.Model)
}

// nobody is a pool without workers.
var nobody pool

// match returns the workers of the first tier that has any for this client. Whoever is new
// can take the name of a model for its agent, and so would get all of the requests for it.
func (r *Router) match(req *Request) (*pool, Tier) {
	asked := req.asked()
	if e, ok := r.workers[asked]; ok && e.online && req.may(e) {
		return &e.self, TierPeer
	}
	if req.Peer != "" || asked == "" || len(asked) > maxAsked {
		return &nobody, TierPeer
	}
	var buf [64]byte
	n, ok := r.names[string(appendFold(buf[:0], asked))]
	switch {
	case !ok:
		return &nobody, TierModel
	case n.agents.known.any(req):
		return &n.agents, TierAgent
	case n.models.known.any(req):
		return &n.models, TierModel
	case n.agents.newcomers.any(req):
		return &n.agents, TierAgent
	case n.models.newcomers.any(req):
		return &n.models, TierModel
	}
	return &nobody, TierModel
}

// may reports whether the client may use a worker.
func (q *Request) may(e *worker) bool {
	return q.May == nil || q.May(e.Peer, e.Agent, e.asked(q))
}

// asked returns the model that a request means: the one that it names, or the
// first when it names the worker.
func (w *Worker) asked(q *Request) string {
	for _, m := range w.Models {
		if q.Peer == "" && strings.EqualFold(m, strings.TrimSpace(q.Model)) {
			return m
		}
	}
	return w.Model
}
