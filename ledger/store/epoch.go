// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// Reasons not to declare an epoch.
var (
	// ErrNotForked says that the own log was not continued twice, as far as is known.
	ErrNotForked = errors.New("this node's log was not continued twice, as far as it knows; there is nothing to recover from")
	// ErrSecondEpoch says that the own log has had its epoch.
	ErrSecondEpoch = errors.New("this node's log was recovered once, which no peer forgives again; the node needs another identity")
)

// errVoid says that what was signed is void by an epoch.
var errVoid = fmt.Errorf("%w: its author has declared it void", ErrFork)

// Numbers of what is known of how the own log was continued twice.
const (
	// parted is the first place that has another entry in the other log, and 1; 0 for not known.
	parted = "parted"
	// conflict is the smallest size of a head that is of the other log; 0 for none.
	conflict = "conflict"
	// latest is the latest time at which something of the other log was signed.
	latest = "latest"
)

// Epochs returns who has declared an epoch, and not a second. The map is not to be changed.
func (s *Store) Epochs() map[peer.ID]*wire.Epoch { return *s.epochs.Load() }

// Voided reports whether a head is void by an epoch of its owner.
func (s *Store) Voided(h *wire.Head) bool {
	e := s.Epochs()[h.Peer]
	return e != nil && e.Voids(h.Size-1, h.Time)
}

// Declared takes in an epoch, whose signature is verified here. What its owner has signed and is
// void now is taken away, and the evidence that it has signed two logs forgotten, if that is of
// what is void. Who declares a second is an equivocator for good. The error is [ErrFuture] when
// its time has not come, and [ErrQuota] when there are too many.
func (s *Store) Declared(ctx context.Context, e *wire.Epoch) (news bool, err error) {
	if err := e.Verify(); err != nil {
		return false, err
	}
	if e.Time > s.now().Add(maxAhead).UnixNano() {
		return false, ErrFuture
	}
	err = s.write(ctx, func(t *tx) error {
		if e.Peer != s.self {
			news, _, err = t.declare(e)
			return err
		}
		shown, err := t.number(published)
		if err != nil {
			return err
		}
		news, err = t.begin(e, uint64(shown))
		return err
	})
	return news, err
}

// declare takes in an epoch whose signature is verified. It returns the entries that it has taken
// away.
func (t *tx) declare(e *wire.Epoch) (news bool, late []*wire.Entry, err error) {
	known, second, err := known(t.QueryRow, e)
	if err != nil || known {
		return false, nil, err
	}
	if err := t.s.roomForEpoch(t.QueryRow, e.Peer); err != nil {
		return false, nil, err
	}
	if _, err := t.Exec("INSERT INTO epoch (peer, bytes) VALUES (?, ?)", []byte(e.Peer), e.Marshal()); err != nil {
		return false, nil, err
	}
	all := maps.Clone(t.s.Epochs())
	defer t.s.epochs.Store(&all)
	if second {
		delete(all, e.Peer)
		t.brand(e.Peer, true)
		return true, nil, nil
	}
	all[e.Peer] = e
	late, err = t.void(e)
	return true, late, err
}

// known reports whether an epoch is no news: it is stored, or two others are, which is as much as
// anybody needs. second says that another is stored.
func known(query func(string, ...any) *sql.Row, e *wire.Epoch) (known, second bool, err error) {
	err = query("SELECT count(*) > 1 OR coalesce(max(bytes = ?), 0), count(*) > 0 FROM epoch WHERE peer = ?", e.Marshal(), []byte(e.Peer)).Scan(&known, &second)
	return known, second, err
}

// Knows reports whether an epoch is no news.
func (s *Store) Knows(ctx context.Context, e *wire.Epoch) (bool, error) {
	is, _, err := known(s.reader(ctx), e)
	return is, err
}

// brand has a peer be an equivocator, or not any more.
func (t *tx) brand(id peer.ID, bad bool) {
	all := maps.Clone(t.s.Equivocators())
	if delete(all, id); bad {
		all[id] = true
	}
	t.s.equivocators.Store(&all)
}

// void takes away what an epoch makes void: entries, which it returns, with those behind them, and
// what they count, heads, and evidence. A head that this node has signed as a witness stays until it signs one of the
// epoch.
func (t *tx) void(e *wire.Epoch) (late []*wire.Entry, err error) {
	id := []byte(e.Peer)
	var evidence []byte
	if err := t.QueryRow("SELECT (SELECT evidence FROM equivocator WHERE peer = ?)", id).Scan(&evidence); err != nil {
		return nil, err
	}
	if len(evidence) > 0 {
		a, err := wire.ParseAlert(evidence)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if clears(e, a) {
			if _, err := t.Exec("DELETE FROM equivocator WHERE peer = ?", id); err != nil {
				return nil, err
			}
			t.brand(e.Peer, false)
		}
	}
	if _, err := t.Exec("DELETE FROM head WHERE peer = ? AND size > ?", id, e.Size); err != nil {
		return nil, err
	}
	if _, err := t.Exec("DELETE FROM unproven WHERE peer = ?", id); err != nil { // what is not void comes again
		return nil, err
	}
	author, err := t.peer(e.Peer)
	if err != nil {
		return nil, err
	}
	if late, err = t.log(author, e.Size, 1<<62); err != nil {
		return nil, err
	}
	at := e.Size
	for len(late) > 0 && late[0].Time > e.Time { // it is of the epoch
		late, at = late[1:], at+1
	}
	if len(late) == 0 {
		return nil, nil
	}
	return late, t.truncate(author, late, at)
}

// begin takes in the epoch of the own log. Of the entries that it takes away, those from a place
// on are appended anew.
func (t *tx) begin(e *wire.Epoch, from uint64) (news bool, err error) {
	s := t.s
	before := s.size()
	news, late, err := t.declare(e)
	switch {
	case err != nil || !news:
		return news, err
	case s.Epochs()[s.self] == nil: // it is the second
		s.forked = true
		return true, nil
	}
	shown, err := t.number(published)
	if err != nil {
		return false, err
	}
	for name, n := range map[string]int64{published: min(shown, int64(before)-int64(len(late))), parted: 0, conflict: 0} {
		if err := t.setNumber(name, n); err != nil {
			return false, err
		}
	}
	s.forked, s.lost = s.Equivocators()[s.self], nil
	first := before - uint64(len(late)) // the place of the first that is gone
	if err := t.again(late[min(uint64(len(late)), max(from, first)-first):]); err != nil {
		return false, err
	}
	if size, _, err := t.end(s.me); err != nil || size == 0 {
		s.head = nil
		return true, err
	}
	return true, t.signHead()
}

// Recover declares the epoch of the own log, which was continued twice: what was signed for the
// places from the one on where the two part, or when that is not known, from the first on, is
// void, and of that what is stored here is appended anew. Nobody may be shown that before
// [Store.Publish].
func (s *Store) Recover(ctx context.Context) (e *wire.Epoch, err error) {
	err = s.write(ctx, func(t *tx) error {
		var had bool
		switch err := t.QueryRow("SELECT EXISTS (SELECT 1 FROM epoch WHERE peer = ?)", []byte(s.self)).Scan(&had); {
		case err != nil:
			return err
		case !s.forked:
			return ErrNotForked
		case had:
			return ErrSecondEpoch
		}
		if e, err = t.epoch(); err != nil {
			return err
		}
		_, err = t.begin(e, e.Size)
		return err
	})
	return e, err
}

// epoch makes and signs the epoch of the own log.
func (t *tx) epoch() (*wire.Epoch, error) {
	s := t.s
	at, err := t.number(parted)
	if err != nil {
		return nil, err
	}
	below, err := t.number(conflict)
	if err != nil {
		return nil, err
	}
	last, err := t.number(latest)
	if err != nil {
		return nil, err
	}
	now := s.now()
	e := &wire.Epoch{Peer: s.self, Time: max(last, now.UnixNano())}
	if at > 0 && (below == 0 || at-1 < below) {
		e.Size = uint64(at - 1)
	}
	if s.head != nil {
		e.Time = max(e.Time, s.head.Time)
	}
	if e.Time > now.Add(maxAhead).UnixNano() {
		return nil, fmt.Errorf("%w: this node has signed its log at %s, and its clock is behind that", ErrFuture, time.Unix(0, e.Time).UTC().Format(time.RFC3339))
	}
	return e, e.Sign(s.key)
}

// parts remembers that the own log was continued twice, as what was signed at a time tells, and a
// number of how, of which the smallest counts.
func (t *tx) parts(name string, n uint64, at int64) error {
	t.s.forked = true
	last, err := t.number(latest)
	if err == nil && at > last {
		err = t.setNumber(latest, at)
	}
	if err != nil {
		return err
	}
	have, err := t.number(name)
	if err != nil || have > 0 && uint64(have) <= n {
		return err
	}
	return t.setNumber(name, int64(n))
}

// voided returns [errVoid] when an entry that would take a place in its author's log is void.
func (t *tx) voided(e *wire.Entry, at int64) error {
	if ep := t.s.Epochs()[e.Rater]; ep != nil && at >= 0 && ep.Voids(uint64(at), e.Time) {
		return errVoid
	}
	return nil
}

// stamp is the time of what this node signs now for its log: no epoch of it makes that void.
func (t *tx) stamp() int64 {
	now := t.s.now().UnixNano()
	if e := t.s.Epochs()[t.s.self]; e != nil {
		now = max(now, e.Time+1)
	}
	return now
}

// clears reports whether evidence proves nothing by an epoch: one of the heads is void.
func clears(e *wire.Epoch, a *wire.Alert) bool {
	return e != nil && (e.Voids(a.A.Size-1, a.A.Time) || e.Voids(a.B.Size-1, a.B.Time))
}

// Cleared reports whether an alert proves nothing, by an epoch of the accused.
func (s *Store) Cleared(a *wire.Alert) bool { return clears(s.Epochs()[a.Peer], a) }

// MayDeclare returns [ErrQuota] when an epoch of a peer would not be taken in.
func (s *Store) MayDeclare(ctx context.Context, id peer.ID) error {
	return s.roomForEpoch(s.reader(ctx), id)
}

// roomForEpoch returns [ErrQuota] when an epoch of a peer is too much. Who has declared two is an
// equivocator, and counts as one.
func (s *Store) roomForEpoch(query func(string, ...any) *sql.Row, id peer.ID) error {
	if s.Epochs()[id] != nil || s.Equivocators()[id] {
		return nil
	}
	return s.room(query, id, len(s.Epochs())+len(s.Equivocators()))
}

// EpochPage returns a page of the epochs that are known, after a row.
func (s *Store) EpochPage(ctx context.Context, r wire.Range) ([]wire.Item, error) {
	return s.rows(ctx, "SELECT id, bytes FROM epoch WHERE id > ? ORDER BY id LIMIT ?", r)
}

// readEpochs reads the epochs, and verifies them again. It wants the equivocators to have been read.
func (s *Store) readEpochs(t *tx) error {
	rows, err := t.Query("SELECT peer, bytes FROM epoch ORDER BY id")
	if err != nil {
		return err
	}
	defer rows.Close()
	all, liars := make(map[peer.ID]*wire.Epoch), maps.Clone(s.Equivocators())
	for rows.Next() {
		var id, b []byte
		if err := rows.Scan(&id, &b); err != nil {
			return err
		}
		e, err := wire.ParseEpoch(b)
		if err == nil {
			err = e.Verify()
		}
		if err == nil && e.Peer != peer.ID(id) {
			err = errors.New("it is of another peer")
		}
		if err != nil {
			return fmt.Errorf("%w: an epoch of %s: %w", ErrDamaged, peer.ID(id), err)
		}
		if _, ok := all[e.Peer]; ok {
			e, liars[e.Peer] = nil, true
		}
		all[peer.ID(id)] = e
	}
	maps.DeleteFunc(all, func(_ peer.ID, e *wire.Epoch) bool { return e == nil })
	s.epochs.Store(&all)
	s.equivocators.Store(&liars)
	return rows.Err()
}
