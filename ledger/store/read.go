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

// items reads a page of entries: the number by which each is asked for, its bytes and hash.
func items(rows *sql.Rows, err error) ([]wire.Item, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []wire.Item
	for rows.Next() {
		var i wire.Item
		var hash []byte
		if err := rows.Scan(&i.Index, &i.Entry, &hash); err != nil {
			return nil, err
		}
		e, err := parse(i.Entry, hash)
		if err != nil {
			return nil, err
		}
		i.Entry = e.Marshal()
		out = append(out, i)
	}
	return out, rows.Err()
}

// Log returns a page of the own log. The index of the first entry is 1.
func (s *Store) Log(ctx context.Context, r wire.Range) (out []wire.Item, err error) {
	from := max(r.From, 1)
	t, err := s.ro.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer t.Rollback()
	var size uint64
	if err := t.QueryRowContext(ctx, "SELECT coalesce(max(value), 0) FROM number WHERE name = ?", published).Scan(&size); err != nil || from > size {
		return nil, err
	}
	count := min(r.Count, size-from+1)
	out, err = items(t.QueryContext(ctx, "SELECT position + 1, bytes, hash FROM entry WHERE author = ? AND position >= ? ORDER BY position LIMIT ?", s.me, from-1, count))
	for n := range count {
		if err == nil && (n >= uint64(len(out)) || out[n].Index != from+n) {
			err = fmt.Errorf("%w: entry %d of the own log is not found", ErrDamaged, from+n)
		}
	}
	return out, err
}

// Inbox returns a page of what is stored of others, after a row.
func (s *Store) Inbox(ctx context.Context, r wire.Range) ([]wire.Item, error) {
	if r.From > 1<<62 {
		return nil, nil
	}
	return items(s.ro.QueryContext(ctx, "SELECT id, bytes, hash FROM entry WHERE id > ? AND author <> ? AND "+liveEntry+" ORDER BY id LIMIT ?", r.From, s.me, r.Count))
}

// Summary is what is counted of a peer.
type Summary struct {
	// Entries is the number of entries that speak of it, Ratings that of the ratings.
	Entries, Ratings int
	// Last is the time of the newest; zero for none.
	Last time.Time
	// Raters is how many speak of it; of more than [MaxRaters], so many. Own says that this
	// node does.
	Raters int
	Own    bool
}

// MaxRaters bounds the raters that a summary counts.
const MaxRaters = 2_000

// Summary returns what is counted of a peer.
func (s *Store) Summary(ctx context.Context, id peer.ID) (sum Summary, err error) {
	var row, last int64
	err = s.ro.QueryRowContext(ctx, "SELECT id, entries, ratings, last FROM peer WHERE bytes = ?", []byte(id)).Scan(&row, &sum.Entries, &sum.Ratings, &last)
	if errors.Is(err, sql.ErrNoRows) {
		return sum, nil
	}
	if err != nil {
		return sum, err
	}
	if last > 0 {
		sum.Last = time.Unix(0, last).UTC()
	}
	const about = "FROM vote WHERE subject = ?1 AND entries > 0 AND " + liveVote
	err = s.ro.QueryRowContext(ctx, "SELECT (SELECT count(*) FROM (SELECT 1 "+about+" LIMIT ?2)), EXISTS (SELECT 1 "+about+" AND author = ?3)",
		row, MaxRaters, s.me).Scan(&sum.Raters, &sum.Own)
	return sum, err
}

// Line is an entry of the log about a peer.
type Line struct {
	*wire.Entry
	Received time.Time
}

// About returns the entries that speak of a peer, newest first.
func (s *Store) About(ctx context.Context, id peer.ID, limit, offset int) ([]Line, error) {
	rows, err := s.ro.QueryContext(ctx, "SELECT received, bytes, hash FROM entry WHERE subject = (SELECT id FROM peer WHERE bytes = ?) AND "+liveEntry+" ORDER BY id DESC LIMIT ? OFFSET ?", []byte(id), limit, offset)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []Line
	for rows.Next() {
		var received int64
		var b, hash []byte
		if err := rows.Scan(&received, &b, &hash); err != nil {
			return nil, err
		}
		e, err := parse(b, hash)
		if err != nil {
			return nil, err
		}
		out = append(out, Line{e, time.Unix(0, received).UTC()})
	}
	return out, rows.Err()
}

// Proof is that an entry is in a log, which has a head.
type Proof struct {
	Entry    *wire.Entry
	Position uint64
	Path     []wire.Hash
	Head     *wire.Head
	Private  bool // the head covers what may not be shown yet
}

// Prove returns the proof that an entry is in its author's log, when it speaks of a peer
// or is by it. For the log of another than this node, the head is the newest that is kept
// and covers the entry. The error is [ErrNotFound] when there is no such entry or head.
func (s *Store) Prove(ctx context.Context, of peer.ID, hash wire.Hash) (*Proof, error) {
	t, err := s.ro.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer func() { _ = t.Rollback() }()
	var author int64
	var by, about, sealed []byte
	p := new(Proof)
	err = t.QueryRow("SELECT author, position, a.bytes, s.bytes, entry.bytes FROM entry JOIN peer a ON a.id = author JOIN peer s ON s.id = subject WHERE hash = ? AND "+liveEntry, hash[:]).
		Scan(&author, &p.Position, &by, &about, &sealed)
	if errors.Is(err, sql.ErrNoRows) || err == nil && of != peer.ID(by) && of != peer.ID(about) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	if p.Entry, err = parse(sealed, hash[:]); err != nil {
		return nil, err
	}
	if p.Head, err = headOf(t, "head", peer.ID(by)); err != nil {
		return nil, err
	}
	if peer.ID(by) == s.self {
		signed, err := headOf(t, "cosigned", s.self)
		if err != nil {
			return nil, err
		}
		if signed != nil && signed.Size > p.Position {
			p.Head = signed
		}
		var shown uint64
		if err := t.QueryRow("SELECT coalesce(max(value), 0) FROM number WHERE name = ?", published).Scan(&shown); err != nil {
			return nil, err
		}
		p.Private = p.Head != nil && p.Head.Size > shown
	}
	if p.Head == nil || p.Head.Size <= p.Position {
		return nil, ErrNotFound
	}
	p.Path, err = nodes(t, author).Inclusion(p.Position, p.Head.Size)
	return p, err
}

// Vote is what one peer says of another: the mean of its ratings, and how much they weigh
// together; see [Weight]. Who has only commented has no weight.
type Vote struct {
	Rater, Subject peer.ID
	Mean, Weight   float64
}

// maxNamed is of how many peers [Store.Votes] has the ids in memory; those of others are
// looked up for each vote. A variable for tests.
var maxNamed = 100_000

// Votes calls each with every vote.
func (s *Store) Votes(ctx context.Context, each func(Vote)) error {
	t, err := s.ro.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return err
	}
	defer t.Rollback()
	peers, err := peersByRow(t.QueryContext(ctx, "SELECT id, bytes FROM peer LIMIT ?", maxNamed))
	if err != nil {
		return err
	}
	one, err := t.PrepareContext(ctx, "SELECT bytes FROM peer WHERE id = ?")
	if err != nil {
		return err
	}
	defer one.Close()
	named := func(row int64) (peer.ID, error) {
		id, ok := peers[row]
		if ok || len(peers) < maxNamed {
			return id, nil
		}
		var b []byte
		if err := one.QueryRowContext(ctx, row).Scan(&b); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return "", err
		}
		return peer.ID(b), nil
	}
	rows, err := t.QueryContext(ctx, "SELECT subject, author, entries, sum, weight, mark FROM vote WHERE "+liveVote)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var v Vote
		var subject, author, entries, have int64
		var sum float64
		if err := rows.Scan(&subject, &author, &entries, &sum, &v.Weight, &have); err != nil {
			return err
		}
		if v.Rater, err = named(author); err != nil {
			return err
		}
		if v.Subject, err = named(subject); err != nil {
			return err
		}
		if v.Rater == "" || v.Subject == "" || have != voteMark(subject, author, entries, sum, v.Weight) {
			return errVoteDamaged
		}
		if entries == 0 {
			continue
		}
		if v.Weight > 0 {
			v.Mean = min(max(sum/v.Weight, -1), 1)
		}
		each(v)
	}
	return rows.Err()
}

// peersByRow reads peers by the rows that have them.
func peersByRow(rows *sql.Rows, err error) (map[int64]peer.ID, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	peers := make(map[int64]peer.ID)
	for rows.Next() {
		var row int64
		var b []byte
		if err := rows.Scan(&row, &b); err != nil {
			return nil, err
		}
		peers[row] = peer.ID(b)
	}
	return peers, rows.Err()
}
