// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// maxUnproven bounds the heads of logs of which nothing is known, which are kept for
// unprovenLife: identities are free. A variable for tests.
var maxUnproven = 10_000

const unprovenLife = time.Hour

// nextHead numbers the rows of the two tables of heads together. In head is the newest of each
// peer that is of the entries that are stored. In unproven are those that are not, or not yet:
// the one that came first, which may turn out to be of another log, and the newest.
const nextHead = "(SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name IN ('head', 'unproven'))"

// head returns the newest head that is kept of the entries of a peer; nil for none.
func (t *tx) head(id peer.ID) (*wire.Head, error) { return headOf(t, "head", id) }

// querier is a connection or a transaction.
type querier interface {
	QueryRow(string, ...any) *sql.Row
}

// headOf returns the head of a peer in a table that has one of each; nil for none.
func headOf(q querier, table string, id peer.ID) (*wire.Head, error) {
	return scanHead(q.QueryRow("SELECT bytes FROM "+table+" WHERE peer = ?", []byte(id)))
}

func scanHead(row *sql.Row) (*wire.Head, error) {
	var b []byte
	err := row.Scan(&b)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	h, err := wire.ParseHead(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return h, nil
}

// setHead keeps a head of the entries that are stored, in a new row.
func (t *tx) setHead(h *wire.Head) error {
	_, err := t.Exec("INSERT OR REPLACE INTO head (id, peer, size, bytes) VALUES ("+nextHead+", ?, ?, ?)", []byte(h.Peer), h.Size, h.Marshal())
	return err
}

// unprovenHead asks for the first or the newest of those of a peer that are not of its entries.
const unprovenHead = "SELECT bytes FROM unproven WHERE peer = ? AND newest = ?"

// unproven returns the heads of a peer that are not of the entries that are stored, or not yet:
// the first, and the newest; nil for none.
func (t *tx) unproven(id peer.ID) (first, newest *wire.Head, err error) {
	if first, err = scanHead(t.QueryRow(unprovenHead, []byte(id), 0)); err != nil {
		return nil, nil, err
	}
	newest, err = scanHead(t.QueryRow(unprovenHead, []byte(id), 1))
	return first, newest, err
}

func (t *tx) setUnproven(h *wire.Head, newest int) error {
	_, err := t.Exec("INSERT OR REPLACE INTO unproven VALUES ("+nextHead+", ?, ?, ?, ?)", []byte(h.Peer), newest, t.s.now().UnixNano(), h.Marshal())
	return err
}

// Holds reports whether a head says nothing that is not known: it is one that is kept, or of the beginning of
// the log of the newest.
func (s *Store) Holds(h *wire.Head) (bool, error) {
	for newest := range 2 {
		k, err := scanHead(s.ro.QueryRow(unprovenHead, []byte(h.Peer), newest))
		if err != nil || k != nil && k.Size == h.Size {
			return err == nil && k.Root == h.Root, err
		}
	}
	have, err := headOf(s.ro, "head", h.Peer)
	if err != nil || have == nil || have.Size <= h.Size {
		return err == nil && have != nil && have.Size == h.Size && have.Root == h.Root, err
	}
	var author int64
	if err := s.ro.QueryRow("SELECT id FROM peer WHERE bytes = ?", []byte(h.Peer)).Scan(&author); err != nil {
		return false, err
	}
	root, err := nodes(s.ro, author).Root(h.Size)
	return err == nil && root == h.Root, err
}

// Observe takes in a head, whose signature is verified here. It returns the evidence, which
// nobody has signed, when its owner has equivocated; the error is [ErrFork] when that is so, and there is
// no evidence yet. ahead reports that the log has more entries than are stored.
func (s *Store) Observe(ctx context.Context, h *wire.Head) (evidence *wire.Alert, ahead bool, err error) {
	switch have, err := headOf(s.ro, "head", h.Peer); {
	case err != nil:
		return nil, false, err
	case have != nil && have.Size == h.Size && have.Root == h.Root && have.Joined(h) == have:
		return nil, false, nil // nothing new
	}
	if err := h.Verify(); err != nil {
		return nil, false, err
	}
	h = h.Checked()
	var fork error
	err = s.write(ctx, func(t *tx) (err error) {
		if evidence, ahead, err = t.observe(h); errors.Is(err, ErrFork) {
			fork, err = err, nil // which keeps the head
		}
		return err
	})
	return evidence, ahead, errors.Join(err, fork)
}

// observe takes in a head whose signatures are verified. One that is void says nothing.
func (t *tx) observe(h *wire.Head) (evidence *wire.Alert, ahead bool, err error) {
	if t.owners.voids(h.Peer, h.Time) {
		return nil, false, nil
	}
	have, err := t.head(h.Peer)
	if err != nil {
		return nil, false, err
	}
	first, newest, err := t.unproven(h.Peer)
	if err != nil {
		return nil, false, err
	}
	for _, k := range []*wire.Head{have, first, newest} {
		if k != nil && k.Size == h.Size && k.Root != h.Root {
			return &wire.Alert{Peer: h.Peer, A: k.Bare(), B: h.Bare()}, false, nil
		}
	}
	var author int64
	var size uint64
	err = t.QueryRow("SELECT id, size FROM peer WHERE bytes = ?", []byte(h.Peer)).Scan(&author, &size)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, false, err
	}
	if have, first, newest, err = t.settle(have, first, newest, author, size); err != nil {
		return nil, false, err
	}
	if h.Size > size {
		return nil, true, t.keepUnproven(h, first, newest, size)
	}
	root, err := nodes(t, author).Root(h.Size)
	if err != nil {
		return nil, false, err
	}
	if root != h.Root {
		evidence, err = t.contradicts(h, have, first, author)
		return evidence, false, err
	}
	if have, err = t.keepHeld(have, h); err != nil {
		return nil, false, err
	}
	if first != nil && first.Size < have.Size {
		evidence, err = t.evidence(first, have, author)
	}
	return evidence, false, err
}

// settled looks again at the heads of a peer that were ahead of its entries, now that there are
// more of these.
func (t *tx) settled(id peer.ID) error {
	first, newest, err := t.unproven(id)
	if err != nil || first == nil {
		return err
	}
	have, err := t.head(id)
	if err != nil {
		return err
	}
	var author int64
	var size uint64
	if err := t.QueryRow("SELECT id, size FROM peer WHERE bytes = ?", []byte(id)).Scan(&author, &size); err != nil {
		return err
	}
	_, _, _, err = t.settle(have, first, newest, author, size)
	return err
}

// settle looks again at heads that were not of the entries that were stored then, the first and
// then the newest: one that is now is held, and the newest is the first of those that are not.
func (t *tx) settle(have, first, newest *wire.Head, author int64, size uint64) (held, still, left *wire.Head, err error) {
	for range 2 {
		if first == nil || first.Size > size {
			break
		}
		root, err := nodes(t, author).Root(first.Size)
		if err != nil {
			return nil, nil, nil, err
		}
		if root != first.Root {
			break
		}
		if have, err = t.keepHeld(have, first); err != nil {
			return nil, nil, nil, err
		}
		if _, err := t.Exec("DELETE FROM unproven WHERE peer = ? AND newest = 0", []byte(first.Peer)); err != nil {
			return nil, nil, nil, err
		}
		if _, err := t.Exec("UPDATE unproven SET newest = 0 WHERE peer = ?", []byte(first.Peer)); err != nil {
			return nil, nil, nil, err
		}
		first, newest = newest, nil
	}
	return have, first, newest, nil
}

// keepHeld keeps the newer of two heads of the entries that are stored, and returns it.
func (t *tx) keepHeld(have, h *wire.Head) (*wire.Head, error) {
	newest := have
	switch {
	case have == nil || have.Size < h.Size:
		newest = h
	case have.Size == h.Size:
		newest = have.Joined(h)
	}
	if newest == have {
		return have, nil
	}
	return newest, t.setHead(newest)
}

// keepUnproven keeps a head of more entries than are stored.
func (t *tx) keepUnproven(h, first, newest *wire.Head, size uint64) error {
	if first != nil && first.Size < h.Size && (newest == nil || newest.Size < h.Size) {
		return t.setUnproven(h, 1)
	}
	if first != nil {
		return nil
	}
	if known, err := t.known(h.Peer, size); err != nil || !known {
		return err
	}
	return t.setUnproven(h, 0)
}

// known reports whether a head is kept of a log: of one of which entries are stored, or that
// this node is a witness of, always, and else while there are not too many.
func (t *tx) known(id peer.ID, size uint64) (known bool, err error) {
	if size > 0 {
		return true, nil
	}
	err = t.QueryRow("SELECT EXISTS (SELECT 1 FROM cosigned WHERE peer = ?) OR (SELECT count(*) FROM unproven) < ?", []byte(id), maxUnproven).Scan(&known)
	return known, err
}

// contradicts returns the evidence that a head is not of the log of a larger one that is. The
// error is [ErrFork] when there is none yet: the head is kept until there is.
func (t *tx) contradicts(h, have, first *wire.Head, author int64) (*wire.Alert, error) {
	if have != nil && have.Size > h.Size {
		return t.evidence(h, have, author)
	}
	if first == nil || first.Size != h.Size {
		if err := t.setUnproven(h, 0); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: the head of size %d is not that of the entries that are stored", ErrFork, h.Size)
}

// evidence proves that a head is not of the log of a larger one, whose entries are stored.
func (t *tx) evidence(small, large *wire.Head, author int64) (*wire.Alert, error) {
	tree := nodes(t, author)
	root, err := tree.Root(small.Size)
	if err != nil {
		return nil, err
	}
	path, err := tree.Consistency(small.Size, large.Size)
	if err != nil {
		return nil, err
	}
	return &wire.Alert{Peer: small.Peer, A: small.Bare(), B: large.Bare(), Path: append([]wire.Hash{root}, path...)}, nil
}

// Heads returns a page of the heads that are kept of others, after a row. The newer a head
// came, the later is its row. Of one log there are three at most.
func (s *Store) Heads(ctx context.Context, r wire.Range) ([]wire.Item, error) {
	if r.From > 1<<62 {
		return nil, nil
	}
	const page = "SELECT * FROM (SELECT id, bytes FROM %s WHERE id > ?1 AND peer <> ?2 ORDER BY id LIMIT ?3)"
	rows, err := s.ro.QueryContext(ctx, fmt.Sprintf(page+" UNION ALL "+page+" ORDER BY id LIMIT ?3", "head", "unproven"), r.From, []byte(s.self), r.Count)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []wire.Item
	for rows.Next() {
		var i wire.Item
		if err := rows.Scan(&i.Index, &i.Entry); err != nil {
			return nil, err
		}
		h, err := wire.ParseHead(i.Entry)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		h.Anchor = "" // so that it is short
		i.Entry = h.Marshal()
		out = append(out, i)
	}
	return out, rows.Err()
}
