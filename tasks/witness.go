// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
)

// witness tells whether the disk still takes writes. JetStream syncs each write and does
// not look at whether that went (nats-server 2.12, filestore.go, flushPendingMsgsLocked):
// it acknowledges what a disk that has just failed never had. So after the writes that
// decide, a file beside the store is written and synced, with a look. Those who wait at
// one time share a sync.
type witness struct {
	file *os.File

	turn sync.Mutex // of the one who syncs
	mu   sync.Mutex
	next *round // the one that can still be joined
	n    uint64
}

// round is one sync.
type round struct {
	done chan struct{}
	err  error // once done
}

// newWitness opens the file in the folder of the store.
func newWitness(dir string) (*witness, error) {
	f, err := os.OpenFile(filepath.Join(dir, "witness"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &witness{file: f}, nil
}

// sync returns nil when the disk took a write after it was called. The nil witness, of a
// cluster, knows of no disk: there, the acknowledgement is of more than one.
func (w *witness) sync() error {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	r := w.next
	lead := r == nil
	if lead {
		r = &round{done: make(chan struct{})}
		w.next = r
	}
	w.mu.Unlock()
	if lead {
		w.lead(r)
	}
	<-r.done
	return r.err
}

// lead makes the sync of a round, after the one that is under way.
func (w *witness) lead(r *round) {
	defer close(r.done)
	w.turn.Lock()
	defer w.turn.Unlock()
	w.mu.Lock()
	w.next = nil // who comes now is too late for this one
	w.n++
	number := binary.BigEndian.AppendUint64(nil, w.n)
	w.mu.Unlock()
	if _, r.err = w.file.WriteAt(number, 0); r.err == nil {
		r.err = w.file.Sync()
	}
	if r.err != nil {
		r.err = fmt.Errorf("the disk does not take writes: %w", r.err)
	}
}

// close closes the file. The nil witness has none.
func (w *witness) close() {
	if w != nil {
		_ = w.file.Close()
	}
}
