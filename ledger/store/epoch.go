// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// errVoid says that what was signed is void by an epoch.
var errVoid = fmt.Errorf("%w: its author has declared it void", ErrFork)

// Numbers of the entries that were refused before this node heard of an epoch: peers have them.
const (
	// refused is not 0 when there may be some.
	refused = "refused"
	// lastAnew is when all inboxes were last read anew for that.
	lastAnew = "last anew"
)

// anewEvery is how often that is done: anybody can cause it.
const anewEvery = 6 * time.Hour

// Epoch is an epoch that an owner has declared.
type Epoch struct {
	*wire.Epoch
	// Received is when this node heard of it.
	Received time.Time
	// Twice says that there is a second: the owner is an equivocator for good.
	Twice bool

	voiding bool  // not all that is void is taken away yet
	since   int64 // when the first entry of its owner was stored here; 0 for never
	kept    bool  // its owner was sent tasks
}

// voids reports whether what a peer has signed for its log at a time is void by its epoch.
func (o *owners) voids(id peer.ID, time int64) bool {
	e, ok := o.epochs[id]
	return ok && !e.Twice && e.Voids(time)
}

// clears reports whether evidence proves nothing by an epoch: one of the heads is void.
func (o *owners) clears(a *wire.Alert) bool {
	return o.voids(a.Peer, a.A.Time) || o.voids(a.Peer, a.B.Time)
}

// Epochs returns who has declared an epoch. The map is not to be changed.
func (s *Store) Epochs() map[peer.ID]Epoch { return s.owners.Load().epochs }

// Voided reports whether a head is void by the epoch of its owner.
func (s *Store) Voided(h *wire.Head) bool { return s.owners.Load().voids(h.Peer, h.Time) }

// Cleared reports whether an alert proves nothing, by the epoch of the accused.
func (s *Store) Cleared(a *wire.Alert) bool { return s.owners.Load().clears(a) }

// MayDeclare returns [ErrFuture] when the time of an epoch has not come, and [ErrQuota] when it
// would be one too many.
func (s *Store) MayDeclare(ctx context.Context, e *wire.Epoch) error {
	return s.mayDeclare(s.reader(ctx), s.owners.Load(), e)
}

func (s *Store) mayDeclare(query query, o *owners, e *wire.Epoch) error {
	if e.Time > s.now().Add(maxAhead).UnixNano() {
		return ErrFuture
	}
	if _, ok := o.epochs[e.Peer]; ok || e.Peer == s.self {
		return nil
	}
	since, kept, err := standing(query, e.Peer)
	if err != nil || kept {
		return err
	}
	n := len(o.epochs)
	free := n < maxUnknown || n < maxEpochs && (since > 0 || o.liars[e.Peer]) // whose entries are refused has none
	if !free && (o.youngest.Epoch == nil || !Epoch{since: since, Received: s.now()}.olderThan(o.youngest)) {
		return fmt.Errorf("%w: %d epochs are known", ErrQuota, n)
	}
	return nil
}

// TakeEpoch takes in an epoch, whose signature is verified here. What its owner has signed and is
// void now is taken away, and the evidence that it has signed two logs forgotten, if that is of
// what is void. Who declares a second is an equivocator for good. The errors are those of
// [Store.MayDeclare]; with news, the epoch is known, and what is left to be taken away will be later. One
// of this node's own log keeps this process from signing: see [ErrOther].
func (s *Store) TakeEpoch(ctx context.Context, e *wire.Epoch) (news bool, err error) {
	if err := e.Verify(); err != nil {
		return false, err
	}
	sound, err := s.sound(ctx, e) // outside of the transaction: it takes its time
	if err != nil {
		return false, err
	}
	err = s.write(ctx, func(t *tx) error {
		if err := s.mayDeclare(t.QueryRow, t.owners, e); err != nil {
			return err
		}
		if e.Peer != s.self {
			news, _, err = t.declare(e, sound, 0)
			return err
		}
		shown, err := t.number(published)
		if err != nil {
			return err
		}
		news, err = t.begin(e, uint64(shown))
		s.other = s.other || news && !t.owners.epochs[s.self].Twice
		return err
	})
	if err != nil || !news {
		return false, err
	}
	return true, s.finish(ctx, e.Peer)
}

// declare takes in an epoch whose signature is verified. It returns how many entries stay; see void.
func (t *tx) declare(e *wire.Epoch, sound, again uint64) (news bool, left uint64, err error) {
	have, second := t.owners.epochs[e.Peer]
	if second && (have.Twice || have.Time == e.Time) {
		return false, 0, nil
	}
	received := t.s.now()
	if _, err := t.Exec("INSERT INTO epochs (peer, bytes, received) VALUES (?, ?, ?)", []byte(e.Peer), e.Marshal(), received.UnixNano()); err != nil {
		return false, 0, err
	}
	if second {
		have.Twice = true
		t.know(have)
		t.brand(e.Peer)
		return true, 0, nil
	}
	since, kept, err := standing(t.QueryRow, e.Peer)
	if err != nil {
		return false, 0, err
	}
	t.know(Epoch{Epoch: e, Received: received, since: since, kept: kept || e.Peer == t.s.self})
	if err := t.makeRoom(e.Peer); err != nil {
		return false, 0, err
	}
	left, err = t.void(e, sound, again)
	return err == nil, left, err
}

// know has an epoch be known.
func (t *tx) know(e Epoch) {
	o := owners{liars: t.owners.liars, epochs: maps.Clone(t.owners.epochs)}
	o.epochs[e.Peer] = e
	o.rank()
	t.owners = &o
}

// clear forgets the evidence against the owner of an epoch, if that is of what is void.
func (t *tx) clear(e *wire.Epoch) (cleared bool, err error) {
	if !t.owners.liars[e.Peer] {
		return false, nil
	}
	var evidence []byte
	if err := t.QueryRow("SELECT evidence FROM equivocator WHERE peer = ?", []byte(e.Peer)).Scan(&evidence); err != nil {
		return false, err
	}
	a, err := wire.ParseAlert(evidence)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if !t.owners.clears(a) {
		return false, nil
	}
	t.absolve(e.Peer)
	_, err = t.Exec("DELETE FROM equivocator WHERE peer = ?", []byte(e.Peer))
	return true, err
}

// voidHeads takes away the heads that are void, and one of more entries than are left: if it is
// not void it comes again.
func (t *tx) voidHeads(e *wire.Epoch, left uint64) error {
	h, err := t.head(e.Peer)
	if err != nil {
		return err
	}
	if h != nil && (e.Voids(h.Time) || h.Size > left) {
		if _, err := t.Exec("DELETE FROM head WHERE peer = ?", []byte(e.Peer)); err != nil {
			return err
		}
	}
	first, newest, err := t.unproven(e.Peer)
	if err != nil || first == nil && newest == nil {
		return err
	}
	if _, err := t.Exec("DELETE FROM unproven WHERE peer = ?", []byte(e.Peer)); err != nil {
		return err
	}
	place := 0
	for _, h := range []*wire.Head{first, newest} {
		if h == nil || e.Voids(h.Time) {
			continue
		}
		if err := t.setUnproven(h, place); err != nil {
			return err
		}
		place++
	}
	return nil
}

// readAnew has the inboxes of peers be read from the first entry on, when entries may have been
// refused that would not be now, and that was not done for so long.
func (t *tx) readAnew(every time.Duration) error {
	some, err := t.number(refused)
	if err != nil || some == 0 {
		return err
	}
	last, err := t.number(lastAnew)
	now := t.s.now()
	if since := now.Sub(time.Unix(0, last)); err != nil || since >= 0 && since < every {
		return err
	}
	if _, err := t.Exec("DELETE FROM cursor"); err != nil {
		return err
	}
	if err := t.setNumber(refused, 0); err != nil {
		return err
	}
	return t.setNumber(lastAnew, now.UnixNano())
}

// EpochPage returns a page of the epochs that are known, after a row.
func (s *Store) EpochPage(ctx context.Context, r wire.Range) ([]wire.Item, error) {
	return s.rows(ctx, "SELECT id, bytes FROM epochs WHERE id > ? ORDER BY id LIMIT ?", r)
}

// readEpochs reads the epochs, and verifies them again. It wants the equivocators to have been read.
func (t *tx) readEpochs() error {
	rows, err := t.Query("SELECT e.peer, e.bytes, received, coalesce(since, 0), EXISTS (SELECT 1 FROM outcome o WHERE o.peer = e.peer) FROM epochs e LEFT JOIN peer p ON p.bytes = e.peer ORDER BY e.id")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id, b []byte
		var received, since int64
		var kept bool
		if err := rows.Scan(&id, &b, &received, &since, &kept); err != nil {
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
		if have, second := t.owners.epochs[e.Peer]; second {
			have.Twice = true
			t.owners.epochs[e.Peer] = have
			t.owners.liars[e.Peer] = true
			continue
		}
		t.owners.epochs[e.Peer] = Epoch{Epoch: e, Received: time.Unix(0, received), since: since, kept: kept || e.Peer == t.s.self}
	}
	t.owners.rank()
	if err := rows.Err(); err != nil {
		return err
	}
	return t.readVoiding()
}
