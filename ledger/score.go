// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"math"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/store"
)

// How scores are made. A score is a mean of what is known of a peer, in which nothing
// counts as 0: with little evidence it stays near 0, and it goes back there as evidence
// ages. What this gateway has seen itself counts most. Those who are named as seeds count
// as they are trusted. A peer that was found honest has a small voice; all of these
// together cannot have anybody refused, whatever the floor is. Of everybody else, whatever their number, all
// together move a score by less than 0.05: identities are free.
//
// A worker is proven when what this gateway and its seeds have seen of it is good, by several
// tasks of this gateway or by the word of a seed, and hardly any of its tasks ended badly
// lately. Who has begun an epoch of its log is not, for a while. What others say proves nobody and
// takes that from nobody, nor does what this gateway has signed for its clients. All who are not
// proven are on probation, and their word is a stranger's.
const (
	neutral     = 4.0 // tasks' worth of not knowing
	seedVoice   = 4.0 // tasks' worth of a seed's opinion, times its trust
	honestVoice = 1.0 // of one peer that was found honest, times its score
	honestAll   = 2.0 // of all of them
	strangerAll = 0.2 // of all strangers
	ownVotes    = 1.0 // of the ratings that clients had this gateway sign

	// maxVotes is how many votes are taken in of peers that were sent tasks, and again of all
	// others but this node and its seeds: they are held in memory.
	maxVotes = 250_000

	provenScore = 0.1 // of a worker that is proven, and the trust in a seed that is
	provenGood  = 2.2 // good tasks that prove: three, of which the last ended not half a day ago

	badShare, badSlack = 0.03, 0.5 // of the tasks of a proven worker that may end badly, and how many more
)

// opinion is what some say of a peer: how much it weighs, and its sum.
type opinion struct{ weight, sum float64 }

// add adds a vote.
func (o *opinion) add(weight, score float64) { o.weight, o.sum = o.weight+weight, o.sum+weight*score }

// and is both opinions in one.
func (o opinion) and(more opinion) opinion { return opinion{o.weight + more.weight, o.sum + more.sum} }

// experience is what the ends of tasks say.
func experience(n store.Tally) opinion { return opinion{n.Good + n.Bad, n.Good - n.Bad} }

// score is the mean of it, in which not knowing counts.
func (o opinion) score() float64 { return o.sum / (neutral + o.weight) }

// within is the opinion with at most that weight.
func (o opinion) within(limit float64) opinion {
	if o.weight <= limit {
		return o
	}
	return opinion{limit, o.sum * limit / o.weight}
}

// evidence is what scores are made of.
type evidence struct {
	self    peer.ID
	floor   float64             // below it, a peer is refused
	seeds   map[peer.ID]float64 // how far we trust whom, to 1
	tallies map[peer.ID]store.Tally
	votes   []store.Vote // weights are those of now
	liars   map[peer.ID]bool
	// penitents have begun an epoch not long ago.
	penitents map[peer.ID]bool

	met, unmet int // how many votes are of whom
}

// add takes in a vote, unless there are too many.
func (e *evidence) add(v store.Vote) {
	if v.Rater != e.self && e.seeds[v.Rater] <= 0 {
		n := &e.unmet
		if _, ok := e.tallies[v.Rater]; ok {
			n = &e.met
		}
		if *n >= maxVotes {
			return
		}
		*n++
	}
	e.votes = append(e.votes, v)
}

// verdicts are what follows from evidence.
type verdicts struct {
	scores map[peer.ID]float64 // of everybody of whom something is known
	proven map[peer.ID]bool
	// heeded is how many of those who speak of a peer are proven.
	heeded map[peer.ID]int
}

// judge makes the verdicts. First everybody has the score that our own experience and the
// seeds give, by which it is decided who is proven and has a voice.
func (e evidence) judge() verdicts {
	seeds, clients, others := e.heard()
	proven := e.provenBy(seeds)
	trusted := make(map[peer.ID]opinion)
	for id, n := range e.tallies {
		trusted[id] = experience(n)
	}
	for _, opinions := range []map[peer.ID]opinion{seeds, clients} {
		for id, o := range opinions {
			trusted[id] = trusted[id].and(o)
		}
	}

	type voices struct{ honest, strangers opinion }
	heard := make(map[peer.ID]voices)
	for _, v := range others {
		h := heard[v.Subject]
		switch own := trusted[v.Rater].score(); {
		case proven[v.Rater]:
			h.honest.add(honestVoice*own*min(1, v.Weight), v.Mean)
		case own >= 0: // who was found bad has no voice
			h.strangers.add(strangerAll*min(1, v.Weight), v.Mean)
		}
		heard[v.Subject] = h
	}
	out := make(map[peer.ID]float64, len(trusted)+len(heard))
	for id, o := range trusted {
		out[id] = o.score()
	}
	for id, h := range heard {
		o := trusted[id]
		before := o.score()
		for _, more := range []opinion{h.honest.within(honestAll), h.strangers.within(strangerAll)} {
			o = o.and(more)
		}
		if out[id] = o.score(); before >= e.floor {
			out[id] = max(out[id], e.floor)
		}
	}
	for id, trust := range e.seeds {
		out[id] = max(out[id], trust)
	}
	for id, s := range out {
		if math.IsNaN(s) {
			out[id] = 0
		}
	}
	for id := range e.penitents {
		out[id] = min(out[id], 0)
	}
	out[e.self] = 1
	for id := range e.liars {
		out[id] = -1
	}
	heeded := make(map[peer.ID]int)
	for _, v := range e.votes {
		if v.Rater != e.self && proven[v.Rater] {
			heeded[v.Subject]++
		}
	}
	return verdicts{out, proven, heeded}
}

// heard returns what the seeds think of whom, what clients had this gateway sign, and the
// votes of all others.
func (e evidence) heard() (seeds, clients map[peer.ID]opinion, others []store.Vote) {
	seeds, clients = make(map[peer.ID]opinion), make(map[peer.ID]opinion)
	others = make([]store.Vote, 0, len(e.votes))
	for _, v := range e.votes {
		trust := e.seeds[v.Rater]
		of, voice := seeds, seedVoice*trust
		switch {
		case v.Rater == v.Subject || e.liars[v.Rater] || v.Weight <= 0:
			continue
		case v.Rater == e.self:
			of, voice = clients, ownVotes
		case trust <= 0:
			others = append(others, v)
			continue
		}
		o := of[v.Subject]
		o.add(voice*min(1, v.Weight), v.Mean)
		of[v.Subject] = o
	}
	return seeds, clients, others
}

// provenBy returns who is proven by our own experience and what the seeds say, and the seeds.
func (e evidence) provenBy(seeds map[peer.ID]opinion) map[peer.ID]bool {
	proven := make(map[peer.ID]bool)
	look := func(id peer.ID) {
		n, said := e.tallies[id], seeds[id]
		good := n.Good >= provenGood || said.score() >= provenScore
		if good && n.Bad <= badSlack+badShare*(n.Good+n.Bad) && experience(n).and(said).score() >= provenScore {
			proven[id] = true
		}
	}
	for id := range e.tallies {
		look(id)
	}
	for id := range seeds {
		look(id)
	}
	for id, trust := range e.seeds {
		if trust >= provenScore {
			proven[id] = true
		}
	}
	for _, bad := range []map[peer.ID]bool{e.liars, e.penitents} {
		for id := range bad {
			delete(proven, id)
		}
	}
	return proven
}
