// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"database/sql"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// TestInboxAwaitsVoid has a peer show an entry of a new log while the old is void and not gone, for it is
// damaged: the inbox is read again from there.
func TestInboxAwaitsVoid(t *testing.T) {
	n, key := fresh(t), newKey(t)
	old := newForger(t, key).grow(t, 600)
	if err := n.take(old.entries, false); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", filepath.Join(n.dir, "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("UPDATE entry SET bytes = x'00' WHERE position = 599"); err != nil {
		t.Fatal(err)
	}
	e := &wire.Epoch{Peer: old.id, Time: time.Now().UnixNano()}
	if err := e.Sign(key); err != nil {
		t.Fatal(err)
	}
	if news, err := n.store.TakeEpoch(ctx, e); !news || !errors.Is(err, store.ErrDamaged) {
		t.Fatal(news, err)
	}
	other := newForger(t, newKey(t)).grow(t, 1)
	entries := append(newForger(t, key).grow(t, 1).entries, other.entries...)
	id := n.serves(t, wire.InboxProtocol, func(r wire.Range) (items []wire.Item) {
		for i, e := range entries[min(int(r.From), len(entries)):] {
			items = append(items, wire.Item{Index: r.From + uint64(i) + 1, Entry: e.Marshal()})
		}
		return items
	})
	if err := n.askInbox(ctx, id); !errors.Is(err, store.ErrVoiding) {
		t.Error(err)
	}
	if c, err := n.store.Cursor(ctx, id); c.Row != 0 || err != nil {
		t.Errorf("it is read from row %d, %v", c.Row, err)
	}
	if size, err := n.store.Size(ctx, other.id); size != 1 || err != nil {
		t.Errorf("of others there are %d entries, %v", size, err)
	}
}
