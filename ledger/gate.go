// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/ledger/store"
	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// Times of the gate.
const (
	// scoreEvery is how often scores are made anew when there is no news, scoreSoonest how
	// soon after the last time when there is, and scorePause by how much longer than it took.
	scoreEvery   = time.Minute
	scoreSoonest = time.Second
	scorePause   = 20
	// ratingWindow is how often outcomes become ratings.
	ratingWindow = time.Hour
	// maxFailures is how often scores may fail to be made before nobody gets tasks.
	maxFailures = 3
)

// Reasons for which a worker gets no tasks.
const (
	ReasonEquivocator = "peer_is_equivocator"
	ReasonFloor       = "reputation_below_floor"
	ReasonUnreadable  = "ledger_unreadable"
)

// Standing is what this gateway thinks of a peer.
type Standing struct {
	// Score is from -1 to 1.
	Score float64
	// Equivocator says that the peer has signed two logs.
	Equivocator bool
	// Refused is the reason for which it gets no tasks; empty when it may.
	Refused string
	// Proven says that the peer was found honest: this gateway, or a seed, has seen it do well.
	Proven bool
	// Probation says that it gets only a share of the tasks, and those for which nobody else
	// has room.
	Probation bool
}

// gate holds the scores, and what follows from them.
type gate struct {
	now   atomic.Pointer[standings]
	dirty chan struct{} // holds a token when there is news

	failures atomic.Int32 // to make scores, one after another

	mu    sync.Mutex
	fresh map[string]store.Tally // outcomes that are not stored yet
}

// standings are those of everybody at one time.
type standings struct {
	verdicts
	liars  map[peer.ID]bool
	floor  float64
	trusts bool // newcomers as those who are proven
	broken bool // the ledger cannot be read, and that is no reason to trust
}

// of returns the standing of a peer.
func (s *standings) of(id peer.ID) Standing {
	st := Standing{Score: s.scores[id], Equivocator: s.liars[id], Proven: s.proven[id], Probation: !s.trusts && !s.proven[id]}
	switch {
	case s.broken:
		st.Refused = ReasonUnreadable
	case st.Equivocator:
		st.Refused = ReasonEquivocator
	case st.Score < s.floor:
		st.Refused = ReasonFloor
	}
	return st
}

// trust is how far the node is to trust a worker of that standing.
func (s Standing) trust() mesh.Trust {
	switch {
	case s.Refused != "":
		return mesh.Barred
	case s.Probation:
		return mesh.OnProbation
	}
	return mesh.Trusted
}

// Standing returns what this gateway thinks of a peer.
func (l *Ledger) Standing(id peer.ID) Standing { return l.gate.now.Load().of(id) }

// news says that scores may be others now.
func (l *Ledger) news() {
	select {
	case l.gate.dirty <- struct{}{}:
	default:
	}
}

// judge counts how a task of a worker ended.
func (l *Ledger) judge(worker string, well bool) {
	n := store.Tally{Bad: 1}
	if well {
		n = store.Tally{Good: 1}
	}
	l.gate.mu.Lock()
	defer l.gate.mu.Unlock()
	l.gate.fresh[worker] = l.gate.fresh[worker].Plus(n)
	l.news()
}

// watch makes scores when there is news, and every minute; and ratings every hour.
func (l *Ledger) watch() {
	defer l.keepOutcomes(context.WithoutCancel(l.ctx))
	tick := time.NewTicker(scoreEvery)
	defer tick.Stop()
	for {
		begun := time.Now()
		l.keepOutcomes(l.ctx)
		if err := l.score(); err != nil && l.ctx.Err() == nil {
			l.alarm(err)
			if l.gate.failures.Add(1) == maxFailures && !l.settings().FailOpen {
				l.node.Log().Error("no worker gets tasks: the ledger cannot be read, and fail_open is not set")
				l.stand(&standings{broken: true})
			}
		} else {
			l.gate.failures.Store(0)
		}
		l.rate()
		pause := time.NewTimer(scoreSoonest + scorePause*time.Since(begun))
		select {
		case <-pause.C:
		case <-l.ctx.Done():
			pause.Stop()
			return
		}
		select {
		case <-l.gate.dirty:
		case <-tick.C:
		case <-l.ctx.Done():
			return
		}
	}
}

// keepOutcomes stores the outcomes that are not stored yet.
func (l *Ledger) keepOutcomes(ctx context.Context) {
	l.gate.mu.Lock()
	fresh := l.gate.fresh
	l.gate.fresh = make(map[string]store.Tally)
	l.gate.mu.Unlock()
	if len(fresh) == 0 {
		return
	}
	byID := make(map[peer.ID]store.Tally, len(fresh))
	for worker, n := range fresh {
		if id, err := peer.Decode(worker); err == nil {
			byID[id] = n
		}
	}
	if err := l.store.Note(ctx, byID); err != nil {
		l.alarm(err)
		l.gate.mu.Lock() // to try again
		defer l.gate.mu.Unlock()
		for worker, n := range fresh {
			l.gate.fresh[worker] = l.gate.fresh[worker].Plus(n)
		}
	}
}

// score makes the scores anew.
func (l *Ledger) score() error {
	s := l.settings()
	e := evidence{self: l.store.Self(), floor: s.Floor, seeds: s.Seeds, liars: l.store.Equivocators(), penitents: l.penitents(time.Now())}
	var err error
	if e.tallies, err = l.store.Tallies(l.ctx); err != nil {
		return err
	}
	now := store.Weight(time.Now())
	err = l.store.Votes(l.ctx, func(v store.Vote) {
		v.Weight /= now
		e.add(v)
	})
	if err != nil {
		return err
	}
	l.stand(&standings{verdicts: e.judge(), liars: e.liars, floor: s.Floor, trusts: s.TrustNewcomers})
	return nil
}

// stand makes the standings those that count.
func (l *Ledger) stand(s *standings) {
	l.gate.now.Store(s)
	stranger := s.of("").trust()
	others := make(map[string]mesh.Trust) // by text: each worker is looked up
	for id := range s.scores {
		if t := s.of(id).trust(); t != stranger {
			others[id.String()] = t
		}
	}
	l.node.Trust(func(worker string) mesh.Trust {
		if t, ok := others[worker]; ok {
			return t
		}
		return stranger
	})
}

// rate makes ratings of the outcomes, when an hour has passed.
func (l *Ledger) rate() {
	public := l.confirmed.Load()
	ratings, err := l.store.Rate(l.ctx, ratingWindow, public)
	if err != nil {
		l.alarm(err)
		return
	}
	for _, e := range ratings {
		l.node.Log().Debug("rated a worker", zap.Stringer("peer", e.Subject), zap.Float64("score", e.Score))
		l.node.Entry(e.Subject, e.Kind.String())
		if public {
			l.gossip.publish(e)
		}
	}
}
