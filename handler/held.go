// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"net/http"
	"sync"
)

// Bounds of the answers that are being held at one time: an agent of a stranger can
// make any of them as large as it may be, and a client can take hours to read it.
const (
	maxHeld      = 512 << 20   // of all clients together
	maxHeldByOne = maxHeld / 4 // of one client, which must leave room for others
)

// held is the answers that are being held. It is one for the process, as its memory is.
var held = heldBytes{by: make(map[string]int64)}

// heldBytes counts bytes, by client.
type heldBytes struct {
	mu  sync.Mutex
	all int64
	by  map[string]int64
}

// take counts n bytes more for a client, or says why it may not have them. Its agent
// has run by then.
func (h *heldBytes) take(client string, n int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.by[client]+n > maxHeldByOne:
		return &problem{status: http.StatusTooManyRequests, code: codeRateLimit, retryAfter: 1, final: true,
			message: "the gateway holds too many large answers for you; read them first, or ask with \"stream\":true"}
	case h.all+n > maxHeld:
		p := overloaded("the gateway holds too many large answers; try again later, or with \"stream\":true")
		p.final = true
		return p
	}
	h.all += n
	h.by[client] += n
	return nil
}

// give takes n bytes back.
func (h *heldBytes) give(client string, n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all -= n
	if h.by[client] -= n; h.by[client] == 0 {
		delete(h.by, client)
	}
}
