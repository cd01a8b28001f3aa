// SPDX-License-Identifier: Apache-2.0

package store

import (
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"

	"github.com/Agent-FM/caddy-agentfm/ledger/tree"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// nodes returns the tree of an author.
func nodes(q interface {
	QueryRow(string, ...any) *sql.Row
}, author int64) tree.Nodes {
	return func(level uint, place uint64) (h wire.Hash, err error) {
		var b []byte
		err = q.QueryRow("SELECT hash FROM tree WHERE author = ? AND level = ? AND place = ?", author, level, place).Scan(&b)
		if err == nil && len(b) != len(h) || errors.Is(err, sql.ErrNoRows) {
			err = ErrDamaged
		}
		if err == nil {
			h = wire.Hash(b)
		}
		return h, err
	}
}

// insert adds an entry at the end of its author's log, which has size entries by now, and
// returns the new root.
func (t *tx) insert(e *wire.Entry, author int64, size uint64) (root wire.Hash, err error) {
	subject, err := t.peer(e.Subject)
	if err != nil {
		return root, err
	}
	hash, now := e.Hash(), t.s.now().UnixNano()
	var cid []byte
	if e.Kind == wire.Comment {
		cid = e.TextCID
	}
	if _, err := t.Exec("INSERT INTO entry (hash, author, position, subject, received, cid, bytes) VALUES (?, ?, ?, ?, ?, ?, ?)",
		hash[:], author, size, subject, now, cid, seal(e)); err != nil {
		return root, err
	}
	added, root, err := nodes(t, author).Append(size, hash)
	if err != nil {
		return root, err
	}
	for _, n := range added {
		if _, err := t.Exec("INSERT INTO tree VALUES (?, ?, ?, ?)", author, n.Level, n.Index, n.Hash[:]); err != nil {
			return root, err
		}
	}
	if _, err := t.Exec("UPDATE peer SET size = ?, stored = stored + ?, since = CASE since WHEN 0 THEN ? ELSE since END WHERE id = ?", size+1, cost(e), now, author); err != nil {
		return root, err
	}
	if known, ok := t.owners.epochs[e.Rater]; ok && known.since == 0 {
		known.since = now
		t.know(known)
	}
	if err := t.count(e, author, subject, 1); err != nil {
		return root, err
	}
	if cid == nil {
		return root, nil
	}
	_, err = t.Exec("INSERT INTO wanted (cid, author, received) SELECT ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM comment WHERE cid = ?) ON CONFLICT DO NOTHING", cid, author, now, cid)
	return root, err
}

// HalfLife is after what time a rating counts half.
const HalfLife = 30 * 24 * time.Hour

// voteBase is the time to which the weights of votes are relative. Weights grow with the time
// of a rating, so that none has to be touched when time passes.
var voteBase = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// Weight is what a rating of a time weighs, as votes have it.
func Weight(t time.Time) float64 { return math.Exp2(t.Sub(voteBase).Hours() / HalfLife.Hours()) }

// count adds an entry to what is counted of its subject, or with sign -1 takes it away.
func (t *tx) count(e *wire.Entry, author, subject int64, sign float64) error {
	sum, weight, rating := 0.0, 0.0, 0
	if e.Kind == wire.Rating {
		rating = 1
		if e.Dimension == wire.Honesty {
			weight = Weight(time.Unix(0, e.Time))
			sum = weight * e.Score
		}
	}
	if err := t.countVote(subject, author, int64(sign), sign*sum, sign*weight); err != nil {
		return err
	}
	_, err := t.Exec("UPDATE peer SET entries = entries + ?, ratings = ratings + ?, last = max(last, ?) WHERE id = ?",
		int(sign), int(sign)*rating, e.Time, subject)
	return err
}

// countVote adds to what an author says of a subject.
func (t *tx) countVote(subject, author, entries int64, sum, weight float64) error {
	var n, have int64
	var s, w float64
	err := t.QueryRow("SELECT entries, sum, weight, mark FROM vote WHERE subject = ? AND author = ?", subject, author).Scan(&n, &s, &w, &have)
	switch {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return err
	case have != voteMark(subject, author, n, s, w):
		return errVoteDamaged
	}
	n, s, w = n+entries, s+sum, w+weight
	if n == 0 {
		_, err = t.Exec("DELETE FROM vote WHERE subject = ? AND author = ?", subject, author)
		return err
	}
	_, err = t.Exec("INSERT OR REPLACE INTO vote VALUES (?, ?, ?, ?, ?, ?)", subject, author, n, s, w, voteMark(subject, author, n, s, w))
	return err
}

// castagnoli is the table of the check sum of what is stored: the hash of an entry does not
// cover its signature.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal returns an entry as it is stored.
func seal(e *wire.Entry) []byte {
	b := e.Marshal()
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// unseal returns the entry of what is stored, as it travels.
func unseal(b []byte) ([]byte, error) {
	n := len(b) - crc32.Size
	if n < 0 || crc32.Checksum(b[:n], castagnoli) != binary.BigEndian.Uint32(b[n:]) {
		return nil, fmt.Errorf("%w: the check sum of an entry is wrong", ErrDamaged)
	}
	return b[:n], nil
}

// parse reads an entry that was stored.
func parse(sealed, hash []byte) (*wire.Entry, error) {
	b, err := unseal(sealed)
	if err != nil {
		return nil, err
	}
	e, err := wire.ParseEntry(b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if h := e.Hash(); string(h[:]) != string(hash) {
		return nil, fmt.Errorf("%w: an entry has not the hash that it had", ErrDamaged)
	}
	return e, nil
}
