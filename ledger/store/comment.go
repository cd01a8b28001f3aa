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

// Comment returns the text of a comment and its language; [ErrNotFound] when it is not
// there.
func (s *Store) Comment(ctx context.Context, cid []byte) (text []byte, err error) {
	err = s.ro.QueryRowContext(ctx, "SELECT body FROM comment WHERE cid = ?", cid).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrNotFound
	}
	if err == nil && wire.CheckComment(text, cid) != nil {
		return nil, fmt.Errorf("%w: the text of a comment has not the hash that it had", ErrDamaged)
	}
	return text, err
}

// Language returns the language of a comment about a peer; [ErrNotFound] when there is no
// such comment about it.
func (s *Store) Language(ctx context.Context, about peer.ID, cid []byte) (string, error) {
	var b, hash []byte
	err := s.ro.QueryRowContext(ctx, "SELECT bytes, hash FROM entry WHERE cid = ? AND subject = (SELECT id FROM peer WHERE bytes = ?) AND "+liveEntry+" LIMIT 1", cid, []byte(about)).Scan(&b, &hash)
	if errors.Is(err, sql.ErrNoRows) {
		return "", ErrNotFound
	}
	if err != nil {
		return "", err
	}
	e, err := parse(b, hash)
	if err != nil {
		return "", err
	}
	return e.Language, nil
}

// putComment stores a text.
func (t *tx) putComment(cid, text []byte) error {
	if err := wire.CheckComment(text, cid); err != nil {
		return err
	}
	if _, err := t.Exec("INSERT INTO comment VALUES (?, ?) ON CONFLICT DO NOTHING", cid, string(text)); err != nil {
		return err
	}
	_, err := t.Exec("DELETE FROM wanted WHERE cid = ?", cid)
	return err
}

// PutComment stores the text of a comment that is in a log. Others are not kept.
func (s *Store) PutComment(ctx context.Context, cid, text []byte) error {
	return s.write(ctx, func(t *tx) error {
		var known bool
		if err := t.QueryRow("SELECT EXISTS (SELECT 1 FROM entry WHERE cid = ?)", cid).Scan(&known); err != nil {
			return err
		}
		if !known {
			return ErrNotFound
		}
		return t.putComment(cid, text)
	})
}

// Wanted is a comment whose text is not there.
type Wanted struct {
	CID    []byte
	Author peer.ID
}

// Wanted returns comments whose text is not there, those first that were tried the least,
// and counts a try of each.
func (s *Store) Wanted(ctx context.Context, limit int) (out []Wanted, err error) {
	err = s.write(ctx, func(t *tx) error {
		rows, err := t.Query("SELECT cid, bytes FROM wanted JOIN peer ON peer.id = author ORDER BY tries, received LIMIT ?", limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var w Wanted
			var author []byte
			if err := rows.Scan(&w.CID, &author); err != nil {
				return err
			}
			w.Author = peer.ID(author)
			out = append(out, w)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		for _, w := range out {
			if _, err := t.Exec("UPDATE wanted SET tries = tries + 1 WHERE cid = ?", w.CID); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// Cursor is how far the inbox of a peer was read: its last row, and the entry in it, by
// which one tells that the inbox is still the same.
type Cursor struct {
	Row  uint64
	Hash wire.Hash
}

// Cursor returns that of a peer.
func (s *Store) Cursor(ctx context.Context, id peer.ID) (c Cursor, err error) {
	var hash []byte
	err = s.ro.QueryRowContext(ctx, "SELECT row, hash FROM cursor WHERE peer = ?", []byte(id)).Scan(&c.Row, &hash)
	if errors.Is(err, sql.ErrNoRows) {
		return c, nil
	}
	copy(c.Hash[:], hash)
	return c, err
}

// ErrCursor says that the cursor that was to be moved is there no more: the inbox is to be read
// from its beginning.
var ErrCursor = errors.New("the inbox is to be read anew")

// SetCursor moves that of a peer, from one that [Store.Cursor] returned or that was set; the zero
// value is the beginning.
func (s *Store) SetCursor(ctx context.Context, id peer.ID, from, to Cursor) error {
	return s.write(ctx, func(t *tx) error {
		var there bool
		if err := t.QueryRow("SELECT EXISTS (SELECT 1 FROM cursor WHERE peer = ?)", []byte(id)).Scan(&there); err != nil {
			return err
		}
		if from.Row > 0 && !there {
			return ErrCursor
		}
		_, err := t.Exec("INSERT OR REPLACE INTO cursor VALUES (?, ?, ?, ?)", []byte(id), int64(to.Row), to.Hash[:], s.now().UnixNano())
		return err
	})
}
