// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/tree"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// maxStrangers bounds the logs that this node is a witness of and has no entries of: what it
// has signed, it can never forget. A variable for tests.
var maxStrangers int64 = 100_000

// strangers names their number.
const strangers = "strangers"

// Cosign signs a head as a witness, if it continues the one of that log that was signed
// before; that is checked, and the head put in the place of the other, in one transaction,
// which is on disk before the signature is given out. Of one log the size never falls; with an
// epoch another begins, and never a third. It also returns the evidence, which
// nobody has signed, when the owner has equivocated.
func (s *Store) Cosign(ctx context.Context, sub *wire.Submission) (v wire.Verdict, evidence *wire.Alert, err error) {
	h := sub.Head.Bare()
	signed := h.Verify() == nil // outside of the transaction: it takes its time
	err = s.write(ctx, func(t *tx) error {
		last, err := headOf(t, "cosigned", h.Peer)
		if err != nil {
			return err
		}
		known, stranger := last != nil, false
		if !known {
			if known, stranger, err = t.mayCosign(h.Peer); err != nil {
				return err
			}
		}
		if last != nil && t.owners.voids(h.Peer, last.Time) {
			last = nil // it is of the log before; of this one none was signed
		}
		switch {
		case !known || h.Peer == s.self:
			v.Status = wire.UnknownLog
		case !signed || t.owners.liars[h.Peer] || t.owners.voids(h.Peer, h.Time):
			v.Status = wire.Forbidden
		default:
			v.Status, evidence = judge(sub, last)
		}
		switch v.Status {
		case wire.Conflict:
			v.Held = last
		case wire.Signed:
			return t.cosign(h, last, stranger)
		}
		return nil
	})
	if err == nil && v.Status == wire.Signed {
		v.Witness, err = h.Cosign(s.key)
	}
	return v, evidence, err
}

// judge says what a witness does with a head that its owner has signed, where last is the one
// that the witness has signed last; nil for none.
func judge(sub *wire.Submission, last *wire.Head) (status int, evidence *wire.Alert) {
	h, size, root := sub.Head, uint64(0), wire.Hash{}
	if last != nil {
		size, root = last.Size, last.Root
	}
	if last != nil && size == h.Size && root != h.Root {
		evidence = &wire.Alert{Peer: h.Peer, A: last.Bare(), B: h.Bare()}
	}
	switch {
	case sub.Old > h.Size:
		return wire.Malformed, evidence
	case sub.Old != size, evidence != nil:
		return wire.Conflict, evidence
	case size == 0 && len(sub.Proof) == 0:
		return wire.Signed, nil
	case size == 0:
		return wire.BadProof, nil
	}
	earlier, err := tree.VerifyContinues(size, h.Size, sub.Proof, root, h.Root)
	switch {
	case err == nil:
		return wire.Signed, nil
	case errors.Is(err, tree.ErrOtherLog):
		evidence = &wire.Alert{Peer: h.Peer, A: last.Bare(), B: h.Bare(), Path: append([]wire.Hash{earlier}, sub.Proof...)}
	}
	return wire.BadProof, evidence
}

// mayCosign reports whether the first head of a log may be signed, and whether nothing is
// stored of that log.
func (t *tx) mayCosign(id peer.ID) (may, stranger bool, err error) {
	err = t.QueryRow("SELECT NOT EXISTS (SELECT 1 FROM peer WHERE bytes = ? AND size > 0)", []byte(id)).Scan(&stranger)
	if err != nil || !stranger {
		return true, false, err
	}
	n, err := t.number(strangers)
	return n < maxStrangers, true, err
}

// cosign remembers a head as the one of its log that was signed last.
func (t *tx) cosign(h, last *wire.Head, stranger bool) error {
	if last != nil && last.Size == h.Size && h.Time <= last.Time {
		return nil // it is the same; of a later one the time counts, which an epoch may not reach
	}
	if stranger {
		n, err := t.number(strangers)
		if err != nil {
			return err
		}
		if err := t.setNumber(strangers, n+1); err != nil {
			return err
		}
	}
	_, err := t.Exec("INSERT OR REPLACE INTO cosigned VALUES (?, ?)", []byte(h.Peer), h.Marshal())
	return err
}

// Cosigned returns the head of a log that was signed last as its witness; nil for none. Of this
// node's own log it is the newest that its witnesses have signed.
func (s *Store) Cosigned(id peer.ID) (*wire.Head, error) {
	h, err := headOf(s.ro, "cosigned", id)
	if h != nil && s.Voided(h) {
		return nil, err
	}
	return h, err
}

// SetCosigned keeps a head of this node's own log with the signatures of its witnesses, unless
// a larger one is kept, or it is void.
func (s *Store) SetCosigned(ctx context.Context, h *wire.Head) error {
	if _, err := wire.ParseHead(h.Marshal()); err != nil {
		return err
	}
	return s.write(ctx, func(t *tx) error {
		last, err := headOf(t, "cosigned", s.self)
		if err != nil || last != nil && last.Size > h.Size || t.owners.voids(s.self, h.Time) {
			return err
		}
		_, err = t.Exec("INSERT OR REPLACE INTO cosigned VALUES (?, ?)", []byte(s.self), h.Marshal())
		return err
	})
}

// Consistency returns the proof that the own log of the smaller size is the beginning of that
// of the larger; nothing when the smaller is 0.
func (s *Store) Consistency(smaller, larger uint64) ([]wire.Hash, error) {
	if smaller == 0 || smaller == larger {
		return nil, nil
	}
	return nodes(s.ro, s.me).Consistency(smaller, larger)
}
