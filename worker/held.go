// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"
)

// A small zip is held in memory until its gateway has it: else it would be made once more to
// be sent. Variables for tests.
var (
	maxHeld    int64 = 8 << 20  // of one zip
	maxHeldAll int64 = 32 << 20 // of all zips of the process
)

// heldBytes is how much all zips hold now.
var heldBytes atomic.Int64

// holder holds what is written to it; of too much, nothing.
type holder struct {
	pieces [][]byte // of zipBuffer bytes, but for the last
	n      int64
	full   bool
	freed  sync.Once
	users  atomic.Int64 // who reads it; -1 once its room is given back
}

// Write implements io.Writer. It never fails.
func (h *holder) Write(p []byte) (int, error) {
	if !h.full && !h.reserve(int64(len(p))) {
		h.free()
		h.pieces, h.full = nil, true
	}
	for rest := p; len(rest) > 0 && !h.full; {
		at := h.n % zipBuffer
		if at == 0 {
			h.pieces = append(h.pieces, make([]byte, zipBuffer))
		}
		k := copy(h.pieces[len(h.pieces)-1][at:], rest)
		h.n += int64(k)
		rest = rest[k:]
	}
	return len(p), nil
}

// reserve takes room for n bytes more; false when there is none.
func (h *holder) reserve(n int64) bool {
	if h.n+n > maxHeld {
		return false
	}
	if heldBytes.Add(n) > maxHeldAll {
		heldBytes.Add(-n)
		return false
	}
	return true
}

// whole returns what holds all that was written; nil when it was too much.
func (h *holder) whole() *holder {
	if h.full {
		return nil
	}
	if last := len(h.pieces) - 1; last >= 0 {
		h.pieces[last] = bytes.Clone(h.pieces[last][:h.n-int64(last)*zipBuffer])
	}
	return h
}

// read reads from a place before the end.
func (h *holder) read(b []byte, at int64) int { return copy(b, h.pieces[at/zipBuffer][at%zipBuffer:]) }

// writeTo writes all of it.
func (h *holder) writeTo(w io.Writer) error {
	for _, piece := range h.pieces {
		if _, err := w.Write(piece); err != nil {
			return err
		}
	}
	return nil
}

// use keeps its room until release is called; false when that was given back.
func (h *holder) use() bool {
	for {
		n := h.users.Load()
		if n < 0 {
			return false
		}
		if h.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release ends a use.
func (h *holder) release() {
	if h.users.Add(-1) < 0 {
		heldBytes.Add(-h.n)
	}
}

// free gives back its room, once, when nobody uses it any more.
func (h *holder) free() { h.freed.Do(h.release) }
