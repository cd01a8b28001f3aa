// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// Tally counts how tasks ended that this node has sent to a worker.
type Tally struct{ Good, Bad float64 }

// OutcomeHalfLife is after what time an outcome counts half. It is short: a worker whose
// model server was broken for an hour is not refused for months.
const OutcomeHalfLife = 24 * time.Hour

// aged is what a tally of a time counts now.
func (n Tally) aged(since time.Duration) Tally {
	w := math.Exp2(-max(0, since.Hours()) / OutcomeHalfLife.Hours())
	return Tally{n.Good * w, n.Bad * w}
}

// Note adds to what is counted of workers.
func (s *Store) Note(ctx context.Context, news map[peer.ID]Tally) error {
	return s.write(ctx, func(t *tx) error {
		now := s.now()
		for id, n := range news {
			var before Tally
			updated := now.UnixNano()
			err := t.QueryRow("SELECT good, bad, updated FROM outcome WHERE peer = ?", []byte(id)).Scan(&before.Good, &before.Bad, &updated)
			if err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
			before = before.aged(now.Sub(time.Unix(0, updated)))
			_, err = t.Exec(`INSERT INTO outcome VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (peer) DO UPDATE SET good = excluded.good, bad = excluded.bad,
				updated = excluded.updated, recent_good = recent_good + excluded.recent_good, recent_bad = recent_bad + excluded.recent_bad`,
				[]byte(id), before.Good+n.Good, before.Bad+n.Bad, now.UnixNano(), n.Good, n.Bad)
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// Tallies returns what is counted of all workers, by what it counts now.
func (s *Store) Tallies(ctx context.Context) (map[peer.ID]Tally, error) {
	now := s.now()
	rows, err := s.ro.QueryContext(ctx, "SELECT peer, good, bad, updated FROM outcome")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := make(map[peer.ID]Tally)
	for rows.Next() {
		var id []byte
		var n Tally
		var updated int64
		if err := rows.Scan(&id, &n.Good, &n.Bad, &updated); err != nil {
			return nil, err
		}
		if !(n.Good >= 0 && n.Bad >= 0) {
			return nil, fmt.Errorf("%w: a count of outcomes below 0", ErrDamaged)
		}
		out[peer.ID(id)] = n.aged(now.Sub(time.Unix(0, updated)))
	}
	return out, rows.Err()
}

// Limits of the ratings that are made of outcomes.
const (
	ratingStep = 0.1
	maxRating  = 0.5
)

// Rate appends one rating a worker to the own log, of the outcomes since the last time, when
// the window has passed since then. Good and bad ones that are even make none.
func (s *Store) Rate(ctx context.Context, window time.Duration, public bool) (ratings []*wire.Entry, err error) {
	err = s.write(ctx, func(t *tx) error {
		ratings = nil
		now := s.now()
		last, err := t.number("rated")
		if err != nil {
			return err
		}
		since := now.Sub(time.Unix(0, last))
		if last != 0 && since < window && since >= 0 {
			return nil
		}
		if err := t.setNumber("rated", now.UnixNano()); err != nil || last == 0 {
			return err
		}
		if err := s.maySign(); err != nil {
			return err
		}
		recent, err := t.recent()
		if err != nil {
			return err
		}
		for id, n := range recent {
			score := min(max(ratingStep*(n.Good-n.Bad), -maxRating), maxRating)
			if score == 0 || id == s.self {
				continue
			}
			e := &wire.Entry{Kind: wire.Rating, Subject: id, Dimension: wire.Honesty, Score: score,
				Context: fmt.Sprintf("task:successes=%.0f,failures=%.0f,window=%.0fs", n.Good, n.Bad, window.Seconds())}
			if err := t.append(e); err != nil {
				return err
			}
			ratings = append(ratings, e)
		}
		if _, err := t.Exec("UPDATE outcome SET recent_good = 0, recent_bad = 0"); err != nil || len(ratings) == 0 {
			return err
		}
		if err := t.signHead(); err != nil || !public {
			return err
		}
		return t.setNumber(published, int64(s.head.Size))
	})
	if err != nil {
		return nil, err
	}
	return ratings, nil
}

// recent returns what was counted since the last ratings.
func (t *tx) recent() (map[peer.ID]Tally, error) {
	rows, err := t.Query("SELECT peer, recent_good, recent_bad FROM outcome WHERE recent_good + recent_bad > 0")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := make(map[peer.ID]Tally)
	for rows.Next() {
		var id []byte
		var n Tally
		if err := rows.Scan(&id, &n.Good, &n.Bad); err != nil {
			return nil, err
		}
		out[peer.ID(id)] = n
	}
	return out, rows.Err()
}
