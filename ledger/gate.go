// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/metrics"
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
	// Heeded is how many of those who speak of it were found honest, beside this gateway.
	Heeded int
}

// gate holds the scores, and what follows from them.
type gate struct {
	now   atomic.Pointer[standings]
	read  *standings    // the last that were made of the ledger; of who makes them
	dirty chan struct{} // holds a token when there is news

	failures atomic.Int32 // to make scores, one after another

	mu    sync.Mutex
	fresh map[string]store.Tally // outcomes that are not stored yet
}

// standings are those of everybody at one time. They are made once, to be looked up by each
// request and for each line of a list.
type standings struct {
	known    map[peer.ID]Standing
	stranger Standing // who is not known
}

// unreadable are the standings when the ledger cannot be read, and that is no reason to trust.
var unreadable = &standings{stranger: Standing{Refused: ReasonUnreadable, Probation: true}}

// newStandings returns those that follow from verdicts.
func newStandings(v verdicts, s Settings, liars map[peer.ID]bool) *standings {
	of := func(id peer.ID) Standing {
		st := Standing{Score: v.scores[id], Equivocator: liars[id], Proven: v.proven[id], Probation: !s.TrustNewcomers && !v.proven[id], Heeded: v.heeded[id]}
		switch {
		case st.Equivocator:
			st.Refused = ReasonEquivocator
		case st.Score < s.Floor:
			st.Refused = ReasonFloor
		}
		return st
	}
	out := &standings{make(map[peer.ID]Standing, len(v.scores)), of("")}
	for id := range v.scores {
		out.known[id] = of(id)
	}
	for id := range v.heeded { // who was commented on only has no score
		out.known[id] = of(id)
	}
	return out
}

// of returns the standing of a peer.
func (s *standings) of(id peer.ID) Standing {
	if st, ok := s.known[id]; ok {
		return st
	}
	return s.stranger
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
			if l.gate.failures.Add(1) >= maxFailures {
				metrics.LedgerUnreadable(true)
				l.standUnread()
			}
			l.news() // to try again soon
		} else if l.gate.failures.Swap(0) >= maxFailures {
			metrics.LedgerUnreadable(false)
			l.node.Log().Info("the ledger can be read again")
		}
		l.rate()
		pause := scoreSoonest
		if n := l.gate.failures.Load(); n == 0 || n >= maxFailures { // whether it is to close is soon decided
			pause += scorePause * time.Since(begun)
		}
		l.rest(pause)
		select {
		case <-l.gate.dirty:
		case <-tick.C:
		case <-l.ctx.Done():
			return
		}
	}
}

// rest waits, which for a large ledger is long. What is counted meanwhile is stored all the
// same, every second: else it would be lost with the process.
func (l *Ledger) rest(d time.Duration) {
	over := time.NewTimer(d)
	defer over.Stop()
	tick := time.NewTicker(scoreSoonest)
	defer tick.Stop()
	for {
		select {
		case <-over.C:
			return
		case <-tick.C:
			l.keepOutcomes(l.ctx)
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
	l.gate.read = newStandings(e.judge(), s, e.liars)
	l.stand(l.gate.read)
	return nil
}

// standUnread has count what does while the ledger cannot be read: nobody gets tasks, or with
// fail_open, who got some by what was read last.
func (l *Ledger) standUnread() {
	want := unreadable
	if l.settings().FailOpen {
		want = l.gate.read
	}
	switch {
	case l.gate.now.Load() == want:
		return
	case want == unreadable:
		l.node.Log().Error("no worker gets tasks: the ledger cannot be read, and fail_open is not set")
	default:
		l.node.Log().Warn("workers get tasks by what was read of the ledger last: fail_open is set")
	}
	l.stand(want)
}

// stand makes the standings those that count.
func (l *Ledger) stand(s *standings) {
	l.gate.now.Store(s)
	stranger := s.stranger.trust()
	others := make(map[string]mesh.Trust) // by text: each worker is looked up
	for id, st := range s.known {
		if t := st.trust(); t != stranger {
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
