// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"maps"

	"github.com/libp2p/go-libp2p/core/peer"
)

// maxEpochs is how many epochs are kept of owners that were sent no tasks. When there are as many, that
// of the owner goes that is known here the shortest, for one that is known longer: identities are
// free, but none can be made to have been here before. A variable for tests.
var maxEpochs = 10_000

// standing returns when the first entry of a peer was stored, 0 for never, and whether it was sent tasks.
func standing(query query, id peer.ID) (since int64, tasks bool, err error) {
	err = query("SELECT coalesce((SELECT since FROM peer WHERE bytes = ?), 0), EXISTS (SELECT 1 FROM outcome WHERE peer = ?)", []byte(id), []byte(id)).Scan(&since, &tasks)
	return since, tasks, err
}

// rank finds the epoch that goes first, when there are too many. Who has two is to stay an equivocator,
// unless those are the half of all: else they would leave no room for who is to be forgiven.
func (o *owners) rank() {
	o.youngest = Epoch{}
	if len(o.epochs) < maxEpochs {
		return
	}
	twice := 0
	for _, e := range o.epochs {
		if e.Twice {
			twice++
		}
	}
	for _, e := range o.epochs {
		stays := e.kept || e.voiding || e.Twice && twice <= maxEpochs/2
		if !stays && (o.youngest.Epoch == nil || o.youngest.olderThan(e)) {
			o.youngest = e
		}
	}
}

// olderThan reports whether the owner of an epoch is known longer than that of another.
func (e Epoch) olderThan(other Epoch) bool {
	switch {
	case e.since == other.since:
		return e.Received.Before(other.Received)
	case e.since == 0 || other.since == 0:
		return other.since == 0
	}
	return e.since < other.since
}

// makeRoom forgets the youngest epoch when there are too many with that of a peer, unless it is that. An
// owner that was sent tasks meanwhile keeps its own.
func (t *tx) makeRoom(of peer.ID) error {
	for len(t.owners.epochs) > maxEpochs && t.owners.youngest.Epoch != nil {
		e := t.owners.youngest
		_, kept, err := standing(t.QueryRow, e.Peer)
		if err != nil {
			return err
		}
		if kept {
			e.kept = true
			t.know(e)
			continue
		}
		if e.Peer == of {
			return fmt.Errorf("%w: %d epochs are known", ErrQuota, len(t.owners.epochs)-1)
		}
		return t.forget(e.Peer)
	}
	return nil
}

// forget forgets an epoch, and that there were two. So that the new log is not taken for a conflict, the head
// of the old one is forgotten, too, that was signed as its witness.
func (t *tx) forget(id peer.ID) error {
	last, err := headOf(t, "cosigned", id)
	if err != nil {
		return err
	}
	if last != nil && t.owners.epochs[id].Voids(last.Time) {
		if _, err := t.Exec("DELETE FROM cosigned WHERE peer = ?", []byte(id)); err != nil {
			return err
		}
	}
	if _, err := t.Exec("DELETE FROM epochs WHERE peer = ?", []byte(id)); err != nil {
		return err
	}
	var evidence bool
	if err := t.QueryRow("SELECT EXISTS (SELECT 1 FROM equivocator WHERE peer = ?)", []byte(id)).Scan(&evidence); err != nil {
		return err
	}
	if !evidence {
		t.absolve(id)
	}
	o := owners{liars: t.owners.liars, epochs: maps.Clone(t.owners.epochs)}
	delete(o.epochs, id)
	o.rank()
	t.owners = &o
	return nil
}
