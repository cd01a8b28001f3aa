// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// What is void is taken away in steps, each a transaction, so that others can write in between: a log
// may be of a year. The first says, in the table voiding, from which position on a log is void and
// still stored: nobody is shown that, it counts for nothing, and the log is not continued before all
// of it is gone. It goes from the front, and what of the own log is signed anew takes its place.

// voidStep is how many entries are taken away at once. A variable for tests.
var voidStep uint64 = 500

// liveEntry holds for an entry that is not void, liveVote for a vote in which nothing is.
const (
	liveEntry = "NOT EXISTS (SELECT 1 FROM voiding WHERE voiding.author = entry.author AND entry.position >= next)"
	liveVote  = "vote.author NOT IN (SELECT author FROM voiding)"
)

// ErrVoiding says that what is void of a log is not gone yet: the entry is to be offered again soon. It is
// not said for longer than voidWithin, so that what is damaged keeps nothing else.
var ErrVoiding = fmt.Errorf("%w: what is void of its author's log is not gone yet", ErrFork)

const voidWithin = 10 * time.Minute

// void takes away what an epoch makes void: evidence, heads, and entries, of which it returns how many
// are left. Those go later: see finish. Of sound ones is known that they are not void. Of the own log,
// those from a position on are signed anew. A head that this node has signed as a witness stays until
// it signs one of the new log.
func (t *tx) void(e *wire.Epoch, sound, again uint64) (left uint64, err error) {
	cleared, err := t.clear(e)
	if err != nil {
		return 0, err
	}
	author, err := t.peer(e.Peer)
	if err != nil {
		return 0, err
	}
	left, some, err := firstVoid(t.Query, author, sound, e)
	if err != nil {
		return 0, err
	}
	if some {
		if _, err := t.Exec("INSERT INTO voiding VALUES (?, ?, ?)", author, left, again); err != nil {
			return 0, err
		}
		if _, err := t.Exec("UPDATE peer SET size = ? WHERE id = ?", left, author); err != nil {
			return 0, err
		}
		t.setVoiding(e.Peer, true)
	}
	if cleared || some || e.Peer == t.s.self {
		if err := t.setNumber(refused, 1); err != nil {
			return 0, err
		}
	}
	return left, t.voidHeads(e, left)
}

// sound returns how many entries of another's log an epoch does not make void, from the first on.
func (s *Store) sound(ctx context.Context, e *wire.Epoch) (n uint64, err error) {
	var author int64
	err = s.ro.QueryRowContext(ctx, "SELECT id FROM peer WHERE bytes = ?", []byte(e.Peer)).Scan(&author)
	if errors.Is(err, sql.ErrNoRows) || err == nil && e.Peer == s.self {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, _, err = firstVoid(func(q string, args ...any) (*sql.Rows, error) { return s.ro.QueryContext(ctx, q, args...) }, author, 0, e)
	return n, err
}

// firstVoid returns the position of the first entry of a log that is void, from a position on, and whether
// there is one: else it is the size of the log. What stands behind it has no place, whenever it was
// signed.
func firstVoid(query func(string, ...any) (*sql.Rows, error), author int64, at uint64, e *wire.Epoch) (first uint64, some bool, err error) {
	for {
		page, err := scanEntries(query(logPage, author, at, at+voidStep))
		if err != nil || len(page) == 0 {
			return at, false, err
		}
		for _, x := range page {
			if e.Voids(x.Time) {
				return at, true, nil
			}
			at++
		}
	}
}

// setVoiding remembers whether something is to be taken away of the log of a peer.
func (t *tx) setVoiding(id peer.ID, voiding bool) {
	if e, ok := t.owners.epochs[id]; ok {
		e.voiding = voiding
		t.know(e)
	}
}

// readVoiding reads of whose logs that is so.
func (t *tx) readVoiding() error {
	rows, err := t.Query("SELECT bytes FROM voiding JOIN peer ON peer.id = author")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id []byte
		if err := rows.Scan(&id); err != nil {
			return err
		}
		if _, ok := t.owners.epochs[peer.ID(id)]; !ok {
			return fmt.Errorf("%w: the log of %s is void without an epoch", ErrDamaged, peer.ID(id))
		}
		t.setVoiding(peer.ID(id), true)
	}
	return rows.Err()
}

// finish takes away all that is void of one log, unless ctx ends or the store fails: then what is left
// goes when [Store.Sweep] is called, or, of the own log, when the store is opened again.
func (s *Store) finish(ctx context.Context, id peer.ID) error {
	for s.owners.Load().epochs[id].voiding {
		if err := s.write(ctx, func(t *tx) error { return t.step(id) }); err != nil {
			return err
		}
	}
	return nil
}

// finishAll does that with all logs. One of which it fails keeps no other.
func (s *Store) finishAll(ctx context.Context) error {
	var errs []error
	for id, e := range s.owners.Load().epochs {
		if !e.voiding {
			continue
		}
		if err := s.finish(ctx, id); err != nil {
			errs = append(errs, fmt.Errorf("taking away what is void of the log of %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// step takes away some entries of a log that are void.
func (t *tx) step(id peer.ID) error {
	var author int64
	var next, again uint64
	err := t.QueryRow("SELECT author, next, again FROM voiding JOIN peer ON peer.id = author WHERE bytes = ?", []byte(id)).Scan(&author, &next, &again)
	if errors.Is(err, sql.ErrNoRows) {
		t.setVoiding(id, false) // another has taken the last
		return nil
	}
	if err != nil {
		return err
	}
	late, err := t.log(author, next, next+voidStep)
	if err != nil {
		return err
	}
	if len(late) == 0 {
		return t.voided(author, id)
	}
	if err := t.remove(author, late, next); err != nil {
		return err
	}
	end := next + uint64(len(late))
	if author != t.s.me {
		err = t.free(author, late)
	} else if again < end {
		err = t.again(late[max(again, next)-next:])
	}
	if err == nil {
		_, err = t.Exec("UPDATE voiding SET next = ? WHERE author = ?", end, author)
	}
	return err
}

// voided says that all is gone. Entries that came meanwhile were refused.
func (t *tx) voided(author int64, id peer.ID) error {
	if _, err := t.Exec("DELETE FROM voiding WHERE author = ?", author); err != nil {
		return err
	}
	t.setVoiding(id, false)
	if err := t.setNumber(refused, 1); err != nil || author != t.s.me {
		return err
	}
	if _, err := t.Exec("DELETE FROM anew"); err != nil {
		return err
	}
	return t.signAll()
}

// remove takes entries of a log away that stand at and behind a position. To the quotas they count as
// before, and their texts stay: see free.
func (t *tx) remove(author int64, gone []*wire.Entry, at uint64) error {
	if len(gone) == 0 {
		return nil
	}
	for _, e := range gone {
		subject, err := t.peer(e.Subject)
		if err != nil {
			return err
		}
		if err := t.count(e, author, subject, -1); err != nil {
			return err
		}
	}
	last := at + uint64(len(gone)) - 1
	if _, err := t.Exec("DELETE FROM entry WHERE author = ? AND position BETWEEN ? AND ?", author, at, last); err != nil {
		return err
	}
	// A node of the tree goes when it covers a leaf that is gone.
	for level := range bits.Len64(last + 1) {
		if _, err := t.Exec("DELETE FROM tree WHERE author = ? AND level = ? AND place BETWEEN ? AND ?", author, level, at>>level, last>>level); err != nil {
			return err
		}
	}
	return nil
}

// free gives back to the quotas what entries of another have taken that are gone, with their
// texts, if no other comment has the same, and what is known of subjects of which nobody else
// speaks, unless that is this node: what is not counted must not stay.
func (t *tx) free(author int64, gone []*wire.Entry) error {
	sum := int64(0)
	for _, e := range gone {
		sum += cost(e)
		if _, err := t.Exec("DELETE FROM peer WHERE bytes = ? AND since = 0 AND size = 0 AND entries = 0 AND id <> ?", []byte(e.Subject), t.s.me); err != nil {
			return err
		}
		if e.Kind != wire.Comment {
			continue
		}
		for _, table := range []string{"comment", "wanted"} {
			if _, err := t.Exec("DELETE FROM "+table+" WHERE cid = ? AND NOT EXISTS (SELECT 1 FROM entry WHERE cid = ?)", e.TextCID, e.TextCID); err != nil {
				return err
			}
		}
	}
	if _, err := t.Exec("UPDATE peer SET stored = max(0, stored - ?) WHERE id = ?", sum, author); err != nil {
		return err
	}
	all, err := t.number("stored")
	if err != nil {
		return err
	}
	return t.setNumber("stored", max(0, all-sum))
}
