// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// Limits on how many equivocators are kept. Identities are free, and so is to sign two heads
// with each: who was sent tasks is always taken in, who has a log here up to the first limit,
// and anybody else up to the second. Variables for tests.
var (
	maxEquivocators = 10_000
	maxUnknown      = 1_000
)

// owners is what is known of the owners of logs: who has signed two or declared two epochs, and who
// has declared an epoch. It does not change.
type owners struct {
	liars  map[peer.ID]bool
	epochs map[peer.ID]Epoch
	// youngest is the epoch that goes first; zero while there is room.
	youngest Epoch
}

// brand has a peer be an equivocator.
func (t *tx) brand(id peer.ID) {
	o := owners{maps.Clone(t.owners.liars), t.owners.epochs, t.owners.youngest}
	o.liars[id] = true
	t.owners = &o
}

// absolve has a peer be none any more.
func (t *tx) absolve(id peer.ID) {
	o := owners{maps.Clone(t.owners.liars), t.owners.epochs, t.owners.youngest}
	delete(o.liars, id)
	t.owners = &o
}

// Equivocation takes in an alert, which is verified. From then on its accused is an
// equivocator, and nothing more of it is taken in. The error is [ErrQuota] when there are too
// many already. What is kept is the evidence alone, with this node as its witness: what else
// an alert may carry is long.
func (s *Store) Equivocation(ctx context.Context, a *wire.Alert) (news bool, err error) {
	if s.Equivocators()[a.Peer] {
		return false, nil
	}
	if err := a.Verify(); err != nil {
		return false, err
	}
	one, two := a.A.Bare(), a.B.Bare()
	kept := &wire.Alert{Peer: a.Peer, A: one, B: two, Path: a.Path, Witness: s.self, Time: s.now().UnixNano()}
	if err := kept.Sign(s.key); err != nil {
		return false, err
	}
	err = s.write(ctx, func(t *tx) error {
		if t.owners.clears(a) || t.owners.liars[a.Peer] {
			return nil
		}
		if err := s.mayAccuse(t.QueryRow, a.Peer); err != nil {
			return err
		}
		if _, err := t.Exec("INSERT INTO equivocator (peer, evidence) VALUES (?, ?)", []byte(a.Peer), kept.Marshal()); err != nil {
			return err
		}
		news = true
		t.brand(a.Peer)
		if a.Peer != s.self {
			return nil
		}
		return t.fork(max(a.A.Time, a.B.Time))
	})
	return news && err == nil, err
}

// MayAccuse returns [ErrQuota] when an alert against a peer would not be taken in.
func (s *Store) MayAccuse(ctx context.Context, id peer.ID) error {
	return s.mayAccuse(s.reader(ctx), id)
}

// mayAccuse does that. Who has declared two epochs takes nobody's place: there is no evidence of it
// here.
func (s *Store) mayAccuse(query query, id peer.ID) error {
	var n int
	if err := query("SELECT count(*) FROM equivocator").Scan(&n); err != nil {
		return err
	}
	return s.room(query, id, n)
}

// query reads a row.
type query func(string, ...any) *sql.Row

// reader returns what reads a row beside the writer.
func (s *Store) reader(ctx context.Context) query {
	return func(q string, args ...any) *sql.Row { return s.ro.QueryRowContext(ctx, q, args...) }
}

// room returns [ErrQuota] when a peer is one too many beside n that are known for the same.
func (s *Store) room(query query, id peer.ID, n int) error {
	var tasks, log bool
	err := query("SELECT EXISTS (SELECT 1 FROM outcome WHERE peer = ?), EXISTS (SELECT 1 FROM peer WHERE bytes = ? AND size > 0)", []byte(id), []byte(id)).Scan(&tasks, &log)
	if err == nil && !tasks && id != s.self && (n >= maxEquivocators || !log && n >= maxUnknown) {
		err = fmt.Errorf("%w: %d such peers are known", ErrQuota, n)
	}
	return err
}

// Equivocators returns who has equivocated. The map is not to be changed.
func (s *Store) Equivocators() map[peer.ID]bool { return s.owners.Load().liars }

// Alerts returns a page of the evidence against equivocators, after a row.
func (s *Store) Alerts(ctx context.Context, r wire.Range) ([]wire.Item, error) {
	return s.rows(ctx, "SELECT id, evidence FROM equivocator WHERE id > ? ORDER BY id LIMIT ?", r)
}

// rows reads a page of rows that are as they travel.
func (s *Store) rows(ctx context.Context, q string, r wire.Range) ([]wire.Item, error) {
	if r.From > 1<<62 {
		return nil, nil
	}
	rows, err := s.ro.QueryContext(ctx, q, r.From, r.Count)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []wire.Item
	for rows.Next() {
		var i wire.Item
		if err := rows.Scan(&i.Index, &i.Entry); err != nil {
			return nil, err
		}
		out = append(out, i)
	}
	return out, rows.Err()
}

// readEquivocators reads who has equivocated. The evidence is verified again.
func (t *tx) readEquivocators() error {
	rows, err := t.Query("SELECT peer, evidence FROM equivocator")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id, b []byte
		if err := rows.Scan(&id, &b); err != nil {
			return err
		}
		a, err := wire.ParseAlert(b)
		if err == nil {
			err = a.Verify()
		}
		if err == nil && a.Peer != peer.ID(id) {
			err = errors.New("it is against another peer")
		}
		if err != nil {
			return fmt.Errorf("%w: the evidence against %s: %w", ErrDamaged, peer.ID(id), err)
		}
		t.owners.liars[a.Peer] = true
	}
	return rows.Err()
}
