// SPDX-License-Identifier: Apache-2.0

package mesh

import lru "github.com/hashicorp/golang-lru/v2"

// maxResponses is how many responses are remembered, of all clients.
const maxResponses = 10_000

// responses remembers which worker keeps which response of OpenAI's API: what is
// asked of one must go there, and is for none but the client that had it made.
type responses struct {
	cache *lru.Cache[responseKey, string]
}

type responseKey struct{ id, client string }

func newResponses() *responses {
	cache, _ := lru.New[responseKey, string](maxResponses) // fails for a size below 1
	return &responses{cache}
}

// NoteResponse remembers that a worker keeps a response for a client.
func (l *Lease) NoteResponse(id, peer, client string) {
	l.node.responses.cache.Add(responseKey{id, client}, peer)
}

// ResponseOf returns the worker that keeps a response for a client; false when none
// is known, or it was long ago.
func (l *Lease) ResponseOf(id, client string) (peer string, ok bool) {
	return l.node.responses.cache.Get(responseKey{id, client})
}
