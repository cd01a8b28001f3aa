// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// Tally counts how tasks ended that this node has sent to a worker.
type Tally struct{ Good, Bad float64 }

// maxTally bounds a tally: of more tasks, the older ones are forgotten, so that a worker
// that did well for long and cheats from now on is soon known for that.
const maxTally = 50.0

// bounded is the tally of so many tasks at most.
func (n Tally) bounded() Tally {
	if all := n.Good + n.Bad; all > maxTally {
		return Tally{n.Good * maxTally / all, n.Bad * maxTally / all}
	}
	return n
}

// Plus is the sum of two tallies.
func (n Tally) Plus(more Tally) Tally { return Tally{n.Good + more.Good, n.Bad + more.Bad} }

// OutcomeHalfLife is after what time an outcome counts half. It is short: a worker whose
// model server was broken for an hour is not refused for months.
const OutcomeHalfLife = 24 * time.Hour

// aged is what a tally of a time counts now.
func (n Tally) aged(since time.Duration) Tally {
	w := math.Exp2(-max(0, since.Hours()) / OutcomeHalfLife.Hours())
	return Tally{n.Good * w, n.Bad * w}
}

// outcome is what is counted of a worker.
type outcome struct {
	sum     Tally // as of updated
	recent  Tally // since the last rating
	updated int64
}

// outcomes reads what is counted of all workers, or of one.
func outcomes(rows *sql.Rows, err error) (map[peer.ID]outcome, error) {
	all, err := readOutcomes(rows, err)
	out := make(map[peer.ID]outcome, len(all))
	for id, n := range all {
		if n.marked != n.mark([]byte(id)) {
			return nil, errOutcomeDamaged
		}
		out[id] = n.outcome
	}
	return out, err
}

// markedOutcome is an outcome with the mark that is stored.
type markedOutcome struct {
	outcome
	marked int64
}

func readOutcomes(rows *sql.Rows, err error) (map[peer.ID]markedOutcome, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := make(map[peer.ID]markedOutcome)
	for rows.Next() {
		var id []byte
		var n markedOutcome
		if err := rows.Scan(&id, &n.sum.Good, &n.sum.Bad, &n.updated, &n.recent.Good, &n.recent.Bad, &n.marked); err != nil {
			return nil, err
		}
		out[peer.ID(id)] = n
	}
	return out, rows.Err()
}

// setOutcome stores what is counted of a worker.
func (t *tx) setOutcome(id peer.ID, n outcome) error {
	_, err := t.Exec("INSERT OR REPLACE INTO outcome VALUES (?, ?, ?, ?, ?, ?, ?)",
		[]byte(id), n.sum.Good, n.sum.Bad, n.updated, n.recent.Good, n.recent.Bad, n.mark([]byte(id)))
	return err
}

// Note adds to what is counted of workers.
func (s *Store) Note(ctx context.Context, news map[peer.ID]Tally) error {
	return s.write(ctx, func(t *tx) error {
		now := s.now()
		for id, more := range news {
			all, err := outcomes(t.Query("SELECT * FROM outcome WHERE peer = ?", []byte(id)))
			if err != nil {
				return err
			}
			n, ok := all[id]
			if ok {
				n.sum = n.sum.aged(now.Sub(time.Unix(0, n.updated)))
			}
			n.sum, n.recent, n.updated = n.sum.Plus(more).bounded(), n.recent.Plus(more), now.UnixNano()
			if err := t.setOutcome(id, n); err != nil {
				return err
			}
		}
		return nil
	})
}

// Tallies returns what is counted of all workers, by what it counts now.
func (s *Store) Tallies(ctx context.Context) (map[peer.ID]Tally, error) {
	now := s.now()
	all, err := outcomes(s.ro.QueryContext(ctx, "SELECT * FROM outcome"))
	if err != nil {
		return nil, err
	}
	out := make(map[peer.ID]Tally, len(all))
	for id, n := range all {
		out[id] = n.sum.aged(now.Sub(time.Unix(0, n.updated)))
	}
	return out, nil
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
		recent, err := outcomes(t.Query("SELECT * FROM outcome WHERE recent_good + recent_bad > 0"))
		if err != nil {
			return err
		}
		for id, counted := range recent {
			n := counted.recent
			counted.recent = Tally{}
			if err := t.setOutcome(id, counted); err != nil {
				return err
			}
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
		if len(ratings) == 0 {
			return nil
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
