// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/store"
)

// id returns a name that is as good as a peer id here.
func id(kind string, n int) peer.ID { return peer.ID(fmt.Sprint(kind, n)) }

func TestScores(t *testing.T) {
	me, seed, x := id("me", 0), id("seed", 0), id("x", 0)
	vote := func(rater peer.ID, mean, weight float64) store.Vote {
		return store.Vote{Rater: rater, Subject: x, Mean: mean, Weight: weight}
	}
	good := map[peer.ID]store.Tally{}
	for i := range 50 {
		good[id("good", i)] = store.Tally{Good: 40}
	}
	ring := func(kind string, mean float64) (votes []store.Vote) {
		for i := range 50 {
			votes = append(votes, vote(id(kind, i), mean, 100))
		}
		return votes
	}
	for _, c := range []struct {
		name        string
		e           evidence
		least, most float64
	}{
		{"nothing is known", evidence{votes: []store.Vote{}}, 0, 0},
		{"one task that failed", evidence{tallies: map[peer.ID]store.Tally{x: {Bad: 1}}}, -0.21, -0.19},
		{"ten that failed", evidence{tallies: map[peer.ID]store.Tally{x: {Bad: 10}}}, -0.8, -0.7},
		{"one in twenty fails", evidence{tallies: map[peer.ID]store.Tally{x: {Good: 95, Bad: 5}}}, 0.8, 0.9},
		{"it was bad long ago", evidence{tallies: map[peer.ID]store.Tally{x: {Bad: 0.1}}}, -0.03, 0},
		{"a stranger slanders", evidence{votes: []store.Vote{vote(id("s", 0), -1, 100)}}, -0.05, -0.01},
		{"fifty strangers slander", evidence{votes: ring("s", -1)}, -0.05, -0.01},
		{"fifty strangers praise", evidence{votes: ring("s", 1)}, 0.01, 0.05},
		{"fifty that were good slander", evidence{tallies: good, votes: ring("good", -1)}, -0.4, -0.2},
		{"they slander, and the floor is high", evidence{floor: -0.1, tallies: good, votes: ring("good", -1)}, -0.1, -0.1},
		{"it was below the floor before", evidence{floor: -0.1, tallies: map[peer.ID]store.Tally{x: {Bad: 10}}, votes: ring("s", -1)}, -0.8, -0.7},
		{"a client slanders", evidence{votes: []store.Vote{vote(me, -1, 100)}}, -0.21, -0.1},
		{"a seed warns", evidence{votes: []store.Vote{vote(seed, -1, 10)}}, -0.5, -0.3},
		{"a seed said little", evidence{votes: []store.Vote{vote(seed, -1, 0.1)}}, -0.1, -0.01},
		{"a cheat takes revenge", evidence{tallies: map[peer.ID]store.Tally{id("bad", 0): {Bad: 10}}, votes: []store.Vote{vote(id("bad", 0), -1, 100)}}, 0, 0},
		{"a liar praises", evidence{liars: map[peer.ID]bool{id("liar", 0): true}, votes: []store.Vote{vote(id("liar", 0), 1, 100)}}, 0, 0},
		{"it praises itself", evidence{votes: []store.Vote{vote(x, 1, 100)}}, 0, 0},
		{"it has equivocated", evidence{tallies: map[peer.ID]store.Tally{x: {Good: 50}}, liars: map[peer.ID]bool{x: true}}, -1, -1},
	} {
		c.e.self, c.e.seeds = me, map[peer.ID]float64{seed: 0.8}
		if c.e.floor == 0 {
			c.e.floor = -0.5
		}
		if got := c.e.judge().scores[x]; got < c.least || got > c.most {
			t.Errorf("%s: %.3f, want %.3f to %.3f", c.name, got, c.least, c.most)
		}
	}
}

// TestProven has several good tasks, or the word of a seed, prove a worker: not one task, not
// what clients have this gateway sign, and not those who were proven by less.
func TestProven(t *testing.T) {
	me, seed, x := id("me", 0), id("seed", 0), id("x", 0)
	vote := func(rater peer.ID, mean float64) store.Vote {
		return store.Vote{Rater: rater, Subject: x, Mean: mean, Weight: 1}
	}
	sybils := evidence{tallies: map[peer.ID]store.Tally{}}
	for i := range 10 {
		sybils.tallies[id("s", i)] = store.Tally{Good: 1}
		sybils.add(vote(id("s", i), 1))
	}
	tally := func(good, bad float64) map[peer.ID]store.Tally {
		return map[peer.ID]store.Tally{x: {Good: good, Bad: bad}}
	}
	for _, c := range []struct {
		name string
		e    evidence
		want bool
	}{
		{"nothing is known", evidence{}, false},
		{"one good task", evidence{tallies: tally(1, 0)}, false},
		{"three good tasks", evidence{tallies: tally(3, 0)}, true},
		{"three, hours ago", evidence{tallies: tally(2.5, 0)}, true},
		{"three, yesterday", evidence{tallies: tally(1.5, 0)}, false},
		{"one of four is bad", evidence{tallies: tally(3, 1)}, false},
		{"two of fifty are bad", evidence{tallies: tally(48, 2)}, true},
		{"clients praise", evidence{votes: []store.Vote{vote(me, 1)}}, false},
		{"clients praise one with a task", evidence{tallies: tally(1, 0), votes: []store.Vote{vote(me, 1)}}, false},
		{"clients slander", evidence{tallies: tally(3, 0), votes: []store.Vote{vote(me, -1)}}, true},
		{"a seed praises", evidence{votes: []store.Vote{vote(seed, 0.5)}}, true},
		{"a seed praises one that cheats", evidence{tallies: tally(0, 1), votes: []store.Vote{vote(seed, 1)}}, false},
		{"a seed warns", evidence{tallies: tally(3, 0), votes: []store.Vote{vote(seed, -1)}}, false},
		{"ten with a task each praise", sybils, false},
	} {
		c.e.self, c.e.seeds, c.e.floor = me, map[peer.ID]float64{seed: 0.8}, -0.5
		if got := c.e.judge().proven[x]; got != c.want {
			t.Errorf("%s: proven: %v", c.name, got)
		}
	}
}

// TestVotesAreBounded floods the votes: those of this node and of seeds are there all the same.
func TestVotesAreBounded(t *testing.T) {
	me, seed, worker := id("me", 0), id("seed", 0), id("w", 0)
	e := evidence{self: me, seeds: map[peer.ID]float64{seed: 1}, tallies: map[peer.ID]store.Tally{worker: {Good: 1}}}
	for range maxVotes + 10 {
		e.add(store.Vote{Rater: "stranger", Subject: "x"})
		e.add(store.Vote{Rater: worker, Subject: "x"})
	}
	e.add(store.Vote{Rater: me, Subject: "x"})
	e.add(store.Vote{Rater: seed, Subject: "x"})
	if got := len(e.votes); got != 2*maxVotes+2 {
		t.Errorf("%d votes", got)
	}
}

// TestHeeded counts those of the raters who were found honest.
func TestHeeded(t *testing.T) {
	me, x := id("me", 0), id("x", 0)
	e := evidence{self: me, tallies: map[peer.ID]store.Tally{id("good", 0): {Good: 40}, id("bad", 0): {Bad: 40}}}
	for _, rater := range []peer.ID{me, id("good", 0), id("bad", 0), id("stranger", 0)} {
		e.add(store.Vote{Rater: rater, Subject: x}) // a comment
	}
	s := newStandings(e.judge(), Settings{}, nil)
	if got := s.of(x); got.Heeded != 1 || got.Score != 0 {
		t.Errorf("got %+v", got)
	}
}
