// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
)

// maxPacking is how many zips are made at once for one gateway. It costs a processor, also
// where but the last byte of each is asked for.
const maxPacking = 8

// turns has each gateway wait for its turn where it wants too much at once.
type turns struct {
	mu sync.Mutex
	of map[peer.ID]*turn
}

// turn is that of one gateway. It is there as long as somebody uses it.
type turn struct {
	room  chan struct{}
	users int
}

// take waits for a turn; false when ctx ended before. It is given back with the function.
func (t *turns) take(ctx context.Context, p peer.ID) (giveBack func(), ok bool) {
	t.mu.Lock()
	if t.of == nil {
		t.of = make(map[peer.ID]*turn)
	}
	mine := t.of[p]
	if mine == nil {
		mine = &turn{room: make(chan struct{}, maxPacking)}
		t.of[p] = mine
	}
	mine.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if mine.users--; mine.users == 0 {
			delete(t.of, p)
		}
	}
	select {
	case mine.room <- struct{}{}:
		return func() {
			<-mine.room
			leave()
		}, true
	case <-ctx.Done():
		leave()
		return nil, false
	}
}
