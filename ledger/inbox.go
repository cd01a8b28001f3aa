// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// inboxPage is how many entries of an inbox are asked for at once. A variable for tests.
var inboxPage uint64 = wire.MaxPage

// askInbox fetches what is new in a peer's inbox. The page begins with the last entry that
// is known of it: when that is another, the inbox is a new one. While a page is stored, the next is
// fetched.
func (l *Ledger) askInbox(ctx context.Context, id peer.ID) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := l.store.Cursor(ctx, id)
	if err != nil {
		return err
	}
	for next := l.fetchInbox(ctx, id, c.Row); ; {
		page := <-next
		items := page.items
		if page.err != nil {
			return page.err
		}
		if c.Row > 0 {
			if len(items) == 0 || items[0].Index != c.Row || hashOf(items[0]) != c.Hash {
				c = store.Cursor{}
				next = l.fetchInbox(ctx, id, 0)
				continue
			}
			items = items[1:]
		}
		if len(items) == 0 {
			return nil
		}
		last := items[len(items)-1]
		if last.Index <= c.Row {
			return fmt.Errorf("%w: the rows do not grow", wire.ErrBad)
		}
		more := uint64(len(items)) >= inboxPage/2
		if more {
			next = l.fetchInbox(ctx, id, last.Index)
		}
		if err := l.takeItems(items, ""); err != nil {
			return err
		}
		to := store.Cursor{Row: last.Index, Hash: hashOf(last)}
		switch err := l.store.SetCursor(ctx, id, c, to); {
		case errors.Is(err, store.ErrCursor):
			c = store.Cursor{}
			next = l.fetchInbox(ctx, id, 0)
			continue
		case err != nil:
			return err
		}
		c = to
		if !more {
			return nil
		}
	}
}

// inboxItems are a page of an inbox, or why there is none.
type inboxItems struct {
	items []wire.Item
	err   error
}

// fetchInbox begins to fetch the page that begins with a row; 0 for the first.
func (l *Ledger) fetchInbox(ctx context.Context, id peer.ID, row uint64) <-chan inboxItems {
	out := make(chan inboxItems, 1)
	l.running.Go(func() {
		items, err := l.page(ctx, id, wire.InboxProtocol, max(row, 1)-1, inboxPage)
		out <- inboxItems{items, err}
	})
	return out
}

// hashOf returns the hash of an item's entry; zero when it is none.
func hashOf(i wire.Item) wire.Hash {
	e, err := wire.ParseEntry(i.Entry)
	if err != nil {
		return wire.Hash{}
	}
	return e.Hash()
}

// takeItems stores what of a page are entries, or only those of one author. The page is to be read again
// when the error is [store.ErrVoiding].
func (l *Ledger) takeItems(items []wire.Item, author peer.ID) error {
	var entries []*wire.Entry
	for _, i := range items {
		if e, err := wire.ParseEntry(i.Entry); err == nil && (author == "" || e.Rater == author) {
			entries = append(entries, e)
		}
	}
	var again error
	for chunk := range slices.Chunk(entries, 500) { // so that others can write in between
		switch err := l.take(chunk, false); {
		case errors.Is(err, store.ErrVoiding):
			again = err
		case err != nil:
			return err
		}
	}
	return again
}
