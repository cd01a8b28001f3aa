// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// checkOwn reads the head of the own log and wants it to be that of what is stored.
func (s *Store) checkOwn(t *tx) error {
	var size, most int64
	if err := t.QueryRow("SELECT size FROM peer WHERE id = ?", s.me).Scan(&size); err != nil {
		return err
	}
	if err := t.QueryRow("SELECT coalesce(max(position) + 1, 0) FROM entry WHERE author = ?", s.me).Scan(&most); err != nil {
		return err
	}
	shown, err := t.number(published)
	if err != nil {
		return err
	}
	if size != most || shown > size {
		return fmt.Errorf("%w: of the own log, %d entries are stored, %d counted and %d published", ErrDamaged, most, size, shown)
	}
	twice, err := t.number(forked)
	s.forked = twice > 0 || t.owners.liars[s.self]
	if err != nil || size == 0 {
		return err
	}
	h, err := t.head(s.self)
	if err != nil {
		return err
	}
	root, err := nodes(t, s.me).Root(uint64(size))
	if err != nil {
		return err
	}
	if h == nil || h.Size != uint64(size) || h.Root != root || h.Verify() != nil {
		return fmt.Errorf("%w: the head of the own log is not that of its entries", ErrDamaged)
	}
	s.head = h
	return nil
}

// Unsigned reports whether an error says why this node does not sign, for now or for good.
func Unsigned(err error) bool {
	for _, why := range []error{ErrBehind, ErrForked, ErrOther, ErrRecovering} {
		if errors.Is(err, why) {
			return true
		}
	}
	return false
}

// MaySign returns why the own log cannot be continued; nil when it can.
func (s *Store) MaySign() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.maySign()
}

func (s *Store) maySign() error {
	switch {
	case s.forked:
		return ErrForked
	case s.other:
		return ErrOther
	case s.owners.Load().epochs[s.self].voiding:
		return ErrRecovering
	case s.lost != nil:
		return ErrBehind
	}
	return nil
}

func (s *Store) size() uint64 {
	if s.head == nil {
		return 0
	}
	return s.head.Size
}

// Append continues the own log with an entry, of which the rater, the time, the hash of the
// one before and the signature are filled in. The text is that of a comment. With public,
// the entry may be shown to others from now on.
func (s *Store) Append(ctx context.Context, e *wire.Entry, text []byte, public bool) error {
	return s.write(ctx, func(t *tx) error {
		if err := s.maySign(); err != nil {
			return err
		}
		if err := t.append(e); err != nil {
			return err
		}
		if e.Kind == wire.Comment {
			if err := t.putComment(e.TextCID, text); err != nil {
				return err
			}
		}
		if err := t.signHead(); err != nil {
			return err
		}
		if !public {
			return nil
		}
		return t.setNumber(published, int64(s.head.Size))
	})
}

// append signs an entry and inserts it into the own log.
func (t *tx) append(e *wire.Entry) error {
	s := t.s
	size, last, err := t.end(s.me)
	if err != nil {
		return err
	}
	e.Rater, e.Prev, e.Time = s.self, last, t.stamp()
	if err := e.Sign(s.key); err != nil {
		return err
	}
	if _, err := wire.ParseEntry(e.Marshal()); err != nil {
		return err
	}
	_, err = t.insert(e, s.me, size)
	return err
}

// end returns the size of a log and the hash of its last entry.
func (t *tx) end(author int64) (size uint64, last wire.Hash, err error) {
	if err := t.QueryRow("SELECT size FROM peer WHERE id = ?", author).Scan(&size); err != nil || size == 0 {
		return 0, last, err
	}
	var b []byte
	if err := t.QueryRow("SELECT hash FROM entry WHERE author = ? AND position = ?", author, size-1).Scan(&b); err != nil {
		return 0, last, err
	}
	copy(last[:], b)
	return size, last, nil
}

// signHead signs the head of the own log as it is stored by now.
func (t *tx) signHead() error {
	s := t.s
	size, _, err := t.end(s.me)
	if err != nil {
		return err
	}
	root, err := nodes(t, s.me).Root(size)
	if err != nil {
		return err
	}
	h := &wire.Head{Peer: s.self, Size: size, Root: root, Time: t.stamp()}
	if err := h.Sign(s.key); err != nil {
		return err
	}
	if err := t.setHead(h); err != nil {
		return err
	}
	s.head = h
	return nil
}

// Head returns the head of the own log; nil while it is empty.
func (s *Store) Head() *wire.Head {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.head
}

// Publish says that all of the own log may be shown to others from now on, and returns
// what of it was not before.
func (s *Store) Publish(ctx context.Context) (fresh []*wire.Entry, err error) {
	err = s.write(ctx, func(t *tx) error {
		if err := s.maySign(); err != nil {
			return err
		}
		shown, err := t.number(published)
		if err != nil || uint64(shown) == s.size() {
			return err
		}
		fresh, err = t.log(s.me, uint64(shown), s.size())
		if err != nil {
			return err
		}
		return t.setNumber(published, int64(s.size()))
	})
	return fresh, err
}

// logPage asks for the entries of an author at the positions from one to before another.
const logPage = "SELECT bytes, hash FROM entry WHERE author = ? AND position >= ? AND position < ? ORDER BY position"

// log returns the entries of an author at the positions from begin to before end.
func (t *tx) log(author int64, begin, end uint64) ([]*wire.Entry, error) {
	return scanEntries(t.Query(logPage, author, begin, end))
}

// scanEntries returns those of whose bytes and hashes the rows are.
func scanEntries(rows *sql.Rows, err error) ([]*wire.Entry, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []*wire.Entry
	for rows.Next() {
		var b, hash []byte
		if err := rows.Scan(&b, &hash); err != nil {
			return nil, err
		}
		e, err := parse(b, hash)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, rows.Err()
}

// Claim takes in a head of this node's own log that a peer has shown: when it is of more
// entries than the store has, or of others, the store is older than what was published,
// and this node must not sign before it has those entries back.
func (s *Store) Claim(ctx context.Context, h *wire.Head) error {
	if h.Peer != s.self {
		return fmt.Errorf("%w: the head is not this node's", wire.ErrBad)
	}
	if err := h.Verify(); err != nil {
		return err
	}
	return s.write(ctx, func(t *tx) error { return t.claim(h) })
}

// claim holds a head of the own log against what is stored. What nobody has seen of that may
// give way; what was published may not.
func (t *tx) claim(h *wire.Head) error {
	s := t.s
	if t.owners.voids(h.Peer, h.Time) {
		return nil
	}
	if h.Size <= s.size() {
		root, err := nodes(t, s.me).Root(h.Size)
		if err != nil {
			return err
		}
		shown, err := t.number(published)
		switch {
		case err != nil:
			return err
		case root == h.Root:
			if s.lost != nil && s.lost.Size == h.Size && s.lost.Root == h.Root {
				s.lost = nil // it is there again
			}
			return nil
		case h.Size <= uint64(shown):
			return t.fork(h.Time)
		}
	}
	switch {
	case s.lost == nil || s.lost.Size < h.Size:
		s.lost = h.Bare()
	case s.lost.Size == h.Size && s.lost.Root != h.Root:
		return t.fork(max(h.Time, s.lost.Time))
	}
	return nil
}

// takeBack takes back an entry of this node's own log that a peer has kept, after a store
// was restored that is older. What was appended since, and nobody has seen, gives way and
// is appended anew.
func (t *tx) takeBack(e *wire.Entry) (Outcome, error) {
	s := t.s
	size, _, err := t.end(s.me)
	if err != nil {
		return Refused, err
	}
	at, err := t.position(e, s.me)
	if err != nil {
		return Refused, err
	}
	if at < 0 {
		return t.park(e)
	}
	shown, err := t.number(published)
	if err != nil {
		return Refused, err
	}
	if uint64(at) < uint64(shown) {
		return Refused, t.fork(e.Time)
	}
	late, err := t.log(s.me, uint64(at), size)
	if err != nil {
		return Refused, err
	}
	if err := t.truncate(late, uint64(at)); err != nil {
		return Refused, err
	}
	if _, err := t.insert(e, s.me, uint64(at)); err != nil {
		return Refused, err
	}
	if err := t.again(late); err != nil {
		return Refused, err
	}
	if _, err := t.Exec("DELETE FROM anew"); err != nil {
		return Refused, err
	}
	if err := t.signHead(); err != nil {
		return Refused, err
	}
	if err := t.setNumber(published, at+1); err != nil || s.lost == nil {
		return Stored, err
	}
	return Stored, t.claim(s.lost)
}

// again appends entries anew that were taken away. A comment goes with the rating that it went with.
func (t *tx) again(late []*wire.Entry) error {
	for _, e := range late {
		before := e.Hash()
		if len(e.AttachedRating) > 0 {
			err := t.QueryRow("SELECT after FROM anew WHERE before = ?", e.AttachedRating).Scan(&e.AttachedRating)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		if err := t.append(e); err != nil {
			return err
		}
		if e.Kind == wire.Comment {
			continue
		}
		after := e.Hash()
		if _, err := t.Exec("INSERT INTO anew VALUES (?, ?)", before[:], after[:]); err != nil {
			return err
		}
	}
	return nil
}

// truncate takes the entries of the own log away that stand from a position on.
func (t *tx) truncate(late []*wire.Entry, size uint64) error {
	if err := t.remove(t.s.me, late, size); err != nil {
		return err
	}
	_, err := t.Exec("UPDATE peer SET size = ? WHERE id = ?", size, t.s.me)
	return err
}
