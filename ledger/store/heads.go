// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// Tables of heads, which have one of a peer. Their rows are numbered together.
const (
	// held has the newest head that is of the entries that are stored.
	held = "head"
	// open has a head that is not, or not yet: it may be of another log.
	unproven = "unproven"
)

// head returns the newest head that is kept of the entries of a peer; nil for none.
func (t *tx) head(id peer.ID) (*wire.Head, error) { return headOf(t, held, id) }

func headOf(q interface {
	QueryRow(string, ...any) *sql.Row
}, table string, id peer.ID) (*wire.Head, error) {
	var b []byte
	err := q.QueryRow("SELECT bytes FROM "+table+" WHERE peer = ?", []byte(id)).Scan(&b)
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

// setHead keeps a head, in a new row.
func (t *tx) setHead(table string, h *wire.Head) error {
	_, err := t.Exec("INSERT OR REPLACE INTO "+table+" (id, peer, size, bytes) VALUES ((SELECT coalesce(max(seq), 0) + 1 FROM sqlite_sequence WHERE name IN ('head', 'unproven')), ?, ?, ?)",
		[]byte(h.Peer), h.Size, h.Marshal())
	return err
}

// Observe takes in a head, whose signature is verified here. It returns the evidence, which
// nobody has signed, when its owner has equivocated; the error is [ErrFork] when that is so, and there is
// no evidence yet. ahead reports that the log has more entries than are stored. Of a log of which nothing is known, no head is kept: identities
// are free.
func (s *Store) Observe(ctx context.Context, h *wire.Head) (evidence *wire.Alert, ahead bool, err error) {
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

// observe takes in a head whose signatures are verified.
func (t *tx) observe(h *wire.Head) (evidence *wire.Alert, ahead bool, err error) {
	have, err := t.head(h.Peer)
	if err != nil {
		return nil, false, err
	}
	open, err := headOf(t, unproven, h.Peer)
	if err != nil {
		return nil, false, err
	}
	for _, k := range []*wire.Head{have, open} {
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
	if h.Size > size {
		return nil, true, t.keepUnproven(h, open, size)
	}
	root, err := nodes(t, author).Root(h.Size)
	if err != nil {
		return nil, false, err
	}
	if root != h.Root {
		return t.contradicts(h, have, open, author)
	}
	if have == nil || have.Size < h.Size || have.Size == h.Size && len(have.Witnesses) < len(h.Witnesses) {
		if err := t.setHead(held, h); err != nil {
			return nil, false, err
		}
		have = h
	}
	if open == nil || open.Size > size {
		return nil, false, nil
	}
	evidence, err = t.settle(open, have, author)
	return evidence, false, err
}

// keepUnproven keeps a head of more entries than are stored, the one with the most. One that
// contradicts what is stored stays: it may be evidence.
func (t *tx) keepUnproven(h, open *wire.Head, size uint64) error {
	if open != nil && (open.Size >= h.Size || open.Size <= size) {
		return nil
	}
	if known, err := t.known(h.Peer, size); err != nil || !known {
		return err
	}
	return t.setHead(unproven, h)
}

// known reports whether heads are kept of a log: one of which entries are stored, or that this
// node is a witness of.
func (t *tx) known(id peer.ID, size uint64) (known bool, err error) {
	if size > 0 {
		return true, nil
	}
	err = t.QueryRow("SELECT EXISTS (SELECT 1 FROM cosigned WHERE peer = ?)", []byte(id)).Scan(&known)
	return known, err
}

// contradicts returns the evidence that a head is not of the log of a larger one that is. The
// error is [ErrFork] when there is none yet: the head is kept until there is.
func (t *tx) contradicts(h, have, open *wire.Head, author int64) (*wire.Alert, bool, error) {
	if have != nil && have.Size > h.Size {
		evidence, err := t.evidence(h, have, author)
		return evidence, false, err
	}
	if open == nil || open.Size != h.Size {
		if err := t.setHead(unproven, h); err != nil {
			return nil, false, err
		}
	}
	return nil, false, fmt.Errorf("%w: the head of size %d is not that of the entries that are stored", ErrFork, h.Size)
}

// settle looks again at a head that was not of the entries that were stored then.
func (t *tx) settle(open, have *wire.Head, author int64) (*wire.Alert, error) {
	root, err := nodes(t, author).Root(open.Size)
	switch {
	case err != nil:
		return nil, err
	case root != open.Root && have.Size > open.Size:
		return t.evidence(open, have, author)
	case root == open.Root:
		_, err = t.Exec("DELETE FROM unproven WHERE peer = ?", []byte(open.Peer))
	}
	return nil, err
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
// came, the later is its row.
func (s *Store) Heads(ctx context.Context, r wire.Range) ([]wire.Item, error) {
	if r.From > 1<<62 {
		return nil, nil
	}
	const page = "SELECT * FROM (SELECT id, bytes FROM %s WHERE id > ?1 AND peer <> ?2 ORDER BY id LIMIT ?3)"
	rows, err := s.ro.QueryContext(ctx, fmt.Sprintf(page+" UNION ALL "+page+" ORDER BY id LIMIT ?3", held, unproven), r.From, []byte(s.self), r.Count)
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
		i.Entry = h.Bare().Marshal()
		out = append(out, i)
	}
	return out, rows.Err()
}
