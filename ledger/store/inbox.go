// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"runtime"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// Limits on what is kept of others. Identities are free: what one of them can fill is
// bounded, and what all can.
const (
	// authorBytes is what an author may have stored when it is new, authorBytesADay by how
	// much more with each day since.
	authorBytes     = 16 << 20
	authorBytesADay = 2 << 20
	// rowBytes is what an entry takes beside its bytes: its place in the tree, in the indexes
	// and in what is counted.
	rowBytes = 512
	// maxBytes is what all authors together may have stored. When it is full, those whose
	// first entry came before settledDays are still heard, up to hardBytes.
	maxBytes    = 1 << 30
	hardBytes   = 2 << 30
	settledDays = 7
	// maxOrphans bounds the entries whose parent is not known, maxAuthorOrphans those of
	// one author. When there are too many, the oldest of the author with the most go.
	maxOrphans       = 10_000
	maxAuthorOrphans = 1_000
	// orphanLife is how long one is kept: by then its parent was fetched, or is nowhere.
	orphanLife = time.Hour
	// maxAhead is how far the clock of an author may be ahead.
	maxAhead = 10 * time.Minute
)

// Outcome is what became of an entry.
type Outcome int

// Outcomes.
const (
	// Refused says that the entry was not taken, for a reason that the error has.
	Refused Outcome = iota
	// Stored says that it is in its author's log now.
	Stored
	// Known says that it was before.
	Known
	// Parked says that it waits for the one before it.
	Parked
)

// Reasons to refuse an entry.
var (
	// ErrFork says that the author's log goes on with another entry.
	ErrFork = errors.New("its author's log has another entry in that place")
	// ErrQuota says that too much is stored of the author, or of all.
	ErrQuota = errors.New("no more is stored of its author now")
	// ErrFuture says that the entry's time has not come.
	ErrFuture = errors.New("its time has not come")
	// ErrEquivocator says that the author has equivocated.
	ErrEquivocator = errors.New("its author has equivocated")
)

// Accept takes in entries of others, in this order, in one transaction. The signatures are
// verified here. The error is of the store alone; why an entry was refused is in reasons.
func (s *Store) Accept(ctx context.Context, entries []*wire.Entry) (outcomes []Outcome, reasons []error, err error) {
	outcomes, reasons, err = s.check(entries) // outside of the transaction: it takes its time
	if err != nil {
		return nil, nil, err
	}
	err = s.write(ctx, func(t *tx) error {
		grown := make(map[peer.ID]bool)
		for i, e := range entries {
			if outcomes[i] == Known || reasons[i] != nil {
				continue
			}
			if outcomes[i], err = t.accept(e); err == nil && outcomes[i] == Stored {
				grown[e.Rater] = true
				err = t.promote(e)
			}
			switch {
			case errors.Is(err, ErrFork), errors.Is(err, ErrQuota), errors.Is(err, ErrFuture), errors.Is(err, ErrEquivocator), errors.Is(err, wire.ErrBad):
				outcomes[i], reasons[i] = Refused, err
			case err != nil:
				return err
			}
		}
		for id := range grown {
			if err := t.settled(id); err != nil {
				return err
			}
		}
		return nil
	})
	return outcomes, reasons, err
}

// check finds out which entries are stored, and verifies the signatures of the others: to find an
// entry takes a tenth of that, and most of what peers show is there already.
func (s *Store) check(entries []*wire.Entry) (outcomes []Outcome, reasons []error, err error) {
	outcomes, reasons = make([]Outcome, len(entries)), make([]error, len(entries))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, e := range entries {
		g.Go(func() error {
			known, err := s.Knows(e)
			switch {
			case err != nil:
				return err
			case known:
				outcomes[i] = Known
			default:
				reasons[i] = e.Verify()
			}
			return nil
		})
	}
	return outcomes, reasons, g.Wait()
}

// accept takes in one entry whose signature is verified.
func (t *tx) accept(e *wire.Entry) (Outcome, error) {
	if known, err := t.knows(e); err != nil || known {
		return Known, err
	}
	if t.owners.voids(e.Rater, e.Time) {
		return Refused, errVoid
	}
	switch known := t.owners.epochs[e.Rater]; {
	case known.voiding && t.s.now().Sub(known.Received) < voidWithin:
		return Refused, ErrVoiding
	case known.voiding:
		return Refused, ErrFork
	}
	if e.Rater == t.s.self {
		return t.takeBack(e)
	}
	if e.Time > t.s.now().Add(maxAhead).UnixNano() {
		return Refused, ErrFuture
	}
	if t.owners.liars[e.Rater] {
		return Refused, ErrEquivocator
	}
	var author int64 // its row; 0 for none, which only an entry that is stored makes
	var size uint64
	err := t.QueryRow("SELECT id, size FROM peer WHERE bytes = ?", []byte(e.Rater)).Scan(&author, &size)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Refused, err
	}
	at, err := t.position(e, author)
	if err != nil {
		return Refused, err
	}
	switch {
	case at < 0:
		return t.park(e)
	case uint64(at) < size:
		return Refused, ErrFork
	}
	if err := t.quota(author, cost(e)); err != nil {
		return Refused, err
	}
	if author, err = t.peer(e.Rater); err != nil {
		return Refused, err
	}
	_, err = t.insert(e, author, size)
	return Stored, err
}

// Refuses reports whether an entry is not taken in for what is known of its author: it is void, or the
// author an equivocator.
func (s *Store) Refuses(e *wire.Entry) bool {
	o := s.owners.Load()
	return o.voids(e.Rater, e.Time) || o.liars[e.Rater] && e.Rater != s.self
}

// knownEntry asks whether an entry is stored.
const knownEntry = "SELECT EXISTS (SELECT 1 FROM entry WHERE hash = ?)"

// Knows reports whether an entry is stored.
func (s *Store) Knows(e *wire.Entry) (known bool, err error) {
	h := e.Hash()
	err = s.known.QueryRow(h[:]).Scan(&known)
	return known, err
}

// knows is [Store.Knows] in a transaction.
func (t *tx) knows(e *wire.Entry) (known bool, err error) {
	h := e.Hash()
	err = t.QueryRow(knownEntry, h[:]).Scan(&known)
	return known, err
}

// position returns the place that an entry takes in its author's log, -1 when the one
// before it is not there.
func (t *tx) position(e *wire.Entry, author int64) (at int64, err error) {
	if e.Prev == (wire.Hash{}) {
		return 0, nil
	}
	err = t.QueryRow("SELECT position + 1 FROM entry WHERE hash = ? AND author = ?", e.Prev[:], author).Scan(&at)
	if errors.Is(err, sql.ErrNoRows) {
		return -1, nil
	}
	return at, err
}

// cost is what an entry counts for in the quotas: its bytes and what is kept beside them,
// and with a comment the longest text that there may be.
func cost(e *wire.Entry) int64 {
	n := int64(len(e.Marshal())) + rowBytes
	if e.Kind == wire.Comment {
		n += wire.MaxComment
	}
	return n
}

// quota refuses what would be too much. All that is stored of peers is counted, by a
// number that is kept beside. An author is known from its first entry on: that others
// speak of it says nothing.
func (t *tx) quota(author, more int64) error {
	var stored, since int64
	err := t.QueryRow("SELECT stored, since FROM peer WHERE id = ?", author).Scan(&stored, &since)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	days := 0.0
	if since > 0 {
		days = t.s.now().Sub(time.Unix(0, since)).Hours() / 24
	}
	if float64(stored+more) > authorBytes+authorBytesADay*max(0, days) {
		return ErrQuota
	}
	all, err := t.number("stored")
	if err != nil {
		return err
	}
	if all+more > maxBytes && days < settledDays || all+more > hardBytes {
		return ErrQuota
	}
	return t.setNumber("stored", all+more)
}

// park keeps an entry until the one before it comes. Of too many, those of an author give way of whom
// the most wait, the oldest first.
func (t *tx) park(e *wire.Entry) (Outcome, error) {
	h, author := e.Hash(), []byte(e.Rater)
	var known bool
	if err := t.QueryRow("SELECT EXISTS (SELECT 1 FROM orphan WHERE hash = ?)", h[:]).Scan(&known); err != nil || known {
		return Parked, err
	}
	if _, err := t.Exec("INSERT INTO orphan VALUES (?, ?, ?, ?, ?)", h[:], e.Prev[:], author, t.s.now().UnixNano(), seal(e)); err != nil {
		return Refused, err
	}
	var mine, all int
	if err := t.QueryRow("SELECT (SELECT count(*) FROM orphan WHERE author = ?), (SELECT value FROM number WHERE name = 'orphans')", author).Scan(&mine, &all); err != nil {
		return Refused, err
	}
	var err error
	switch {
	case mine > maxAuthorOrphans:
		_, err = t.Exec("DELETE FROM orphan WHERE rowid = (SELECT rowid FROM orphan WHERE author = ? ORDER BY received LIMIT 1)", author)
	case all > maxOrphans: // some at once: it is a look at all
		_, err = t.Exec(`DELETE FROM orphan WHERE rowid IN (SELECT id FROM
			(SELECT rowid AS id, received, row_number() OVER (PARTITION BY author ORDER BY received DESC) AS place FROM orphan)
			ORDER BY place DESC, received LIMIT ?)`, 1+maxOrphans/100)
	}
	return Parked, err
}

// promote takes in the orphans that waited for an entry, and those that waited for them.
func (t *tx) promote(e *wire.Entry) error {
	for parents := []*wire.Entry{e}; len(parents) > 0; parents = parents[1:] {
		h := parents[0].Hash()
		waiting, err := t.waiting(h)
		if err != nil {
			return err
		}
		if len(waiting) == 0 {
			continue
		}
		if _, err := t.Exec("DELETE FROM orphan WHERE prev = ?", h[:]); err != nil {
			return err
		}
		for _, child := range waiting {
			switch outcome, err := t.accept(child); {
			case outcome == Stored && err == nil:
				parents = append(parents, child)
			case errors.Is(err, ErrFork), errors.Is(err, ErrQuota), errors.Is(err, ErrFuture), errors.Is(err, ErrEquivocator), err == nil:
			default:
				return err
			}
		}
	}
	return nil
}

// waiting returns the orphans that wait for an entry.
func (t *tx) waiting(prev wire.Hash) ([]*wire.Entry, error) {
	return scanEntries(t.Query("SELECT bytes, hash FROM orphan WHERE prev = ?", prev[:]))
}

// Sweep forgets orphans that have waited for too long, the texts of comments that nobody
// has, and where it was with peers that were not there for a week; or with all peers, when they
// have what was refused. And it takes away what is void.
func (s *Store) Sweep(ctx context.Context) error {
	return errors.Join(s.clean(ctx), s.finishAll(ctx))
}

// clean does the first of that.
func (s *Store) clean(ctx context.Context) error {
	return s.write(ctx, func(t *tx) error {
		now := s.now()
		for _, q := range []struct {
			text   string
			before time.Time
		}{
			{"DELETE FROM orphan WHERE received < ?", now.Add(-orphanLife)},
			{"DELETE FROM unproven WHERE received < ? AND NOT EXISTS (SELECT 1 FROM peer WHERE bytes = unproven.peer AND size > 0) AND NOT EXISTS (SELECT 1 FROM cosigned c WHERE c.peer = unproven.peer)", now.Add(-unprovenLife)},
			{"DELETE FROM cursor WHERE used < ?", now.Add(-7 * 24 * time.Hour)},
			{"DELETE FROM wanted WHERE tries > 20 AND received < ?", now.Add(-7 * 24 * time.Hour)},
		} {
			if _, err := t.Exec(q.text, q.before.UnixNano()); err != nil {
				return err
			}
		}
		return t.readAnew(anewEvery)
	})
}

// Size returns how many entries are stored of the log of a peer.
func (s *Store) Size(ctx context.Context, id peer.ID) (size uint64, err error) {
	err = s.ro.QueryRowContext(ctx, "SELECT size FROM peer WHERE bytes = ?", []byte(id)).Scan(&size)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return size, err
}
