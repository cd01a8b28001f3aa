// SPDX-License-Identifier: Apache-2.0

package store

import (
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// TestEpochsAreBounded has strangers declare two epochs each: some are taken in, then those who
// have a log here, and who was sent tasks always. None takes the place of an equivocator.
func TestEpochsAreBounded(t *testing.T) {
	s, logged, worker := newStore(t), newAuthor(t), newAuthor(t)
	s.accept(t, Stored, nil, logged.rate(t, worker.id, 1))
	if err := s.Note(ctx, map[peer.ID]Tally{worker.id: {Good: 1}}); err != nil {
		t.Fatal(err)
	}
	for range maxUnknown {
		a := newAuthor(t)
		s.took(t, a.epoch(t, 0), true, nil)
		s.took(t, a.epoch(t, time.Minute), true, nil)
	}
	s.took(t, newAuthor(t).epoch(t, 0), false, ErrQuota)
	if n := len(s.Epochs()); n != maxUnknown {
		t.Errorf("%d have declared an epoch", n)
	}
	s.took(t, logged.epoch(t, 0), true, nil)
	s.took(t, worker.epoch(t, 0), true, nil)
	liar := newAuthor(t)
	if !s.accuse(t, liar.head(t, 3, wire.Hash{1}), liar.head(t, 3, wire.Hash{2})) {
		t.Error("there is no room for an equivocator")
	}
	s.took(t, liar.epoch(t, 0), true, nil)
}

// TestSeniorityOfEpochs has throw-away identities that have logs take all places: who was known before
// them is forgiven all the same, in place of the youngest, and is kept; so is who was sent tasks. Who
// comes later is not.
func TestSeniorityOfEpochs(t *testing.T) {
	defer func(most, unknown int) { maxEpochs, maxUnknown = most, unknown }(maxEpochs, maxUnknown)
	maxEpochs, maxUnknown = 30, 10
	dir, me, subject := t.TempDir(), newAuthor(t), newAuthor(t).id
	s := open(t, dir, me.key)
	now := time.Now()
	s.now = func() time.Time { now = now.Add(time.Second); return now }
	known := func(n int) (all []*author) {
		for range n {
			a := newAuthor(t)
			s.accept(t, Stored, nil, a.rate(t, subject, 1))
			all = append(all, a)
		}
		return all
	}
	forks := func(a *author) {
		t.Helper()
		if !s.accuse(t, a.headAt(t, 3, wire.Hash{1}, 1), a.headAt(t, 3, wire.Hash{2}, 1)) {
			t.Fatal("no evidence")
		}
	}
	elders, worker := known(4), newAuthor(t)
	for _, a := range append(elders, worker) {
		forks(a)
	}
	unknown := newAuthor(t)
	s.took(t, unknown.epoch(t, 0), true, nil)
	crowd := known(maxEpochs) // the last of which takes the place of who is not known at all
	for _, a := range crowd {
		s.took(t, a.epoch(t, 0), true, nil)
	}
	check := func(want map[*author]bool) {
		t.Helper()
		for a, forgiven := range want {
			if _, ok := s.Epochs()[a.id]; ok != forgiven || s.Equivocators()[a.id] == forgiven {
				t.Errorf("forgiven: %t, %t", ok, !s.Equivocators()[a.id])
			}
		}
	}
	if _, ok := s.Epochs()[unknown.id]; ok {
		t.Error("who is not known has kept its place")
	}
	last := known(1)[0]
	s.took(t, last.epoch(t, 0), false, ErrQuota)
	s.took(t, newAuthor(t).epoch(t, 0), false, ErrQuota)
	s.took(t, worker.epoch(t, 0), false, ErrQuota)
	if err := s.Note(ctx, map[peer.ID]Tally{worker.id: {Good: 1}, crowd[maxEpochs-1].id: {Good: 1}}); err != nil {
		t.Fatal(err)
	}
	s.took(t, worker.epoch(t, 0), true, nil)
	s.took(t, elders[0].epoch(t, 0), true, nil)
	want := map[*author]bool{worker: true, elders[0]: true, elders[1]: false}
	check(want)
	s = s.again(t, dir, me.key)
	check(want)
	for _, a := range elders[1:] {
		s.took(t, a.epoch(t, 0), true, nil)
		want[a] = true
	}
	s.took(t, last.epoch(t, 0), false, ErrQuota)
	check(want)
	if _, ok := s.Epochs()[crowd[maxEpochs-1].id]; !ok || len(s.Epochs()) != maxEpochs {
		t.Errorf("%d epochs are kept; that of who was sent tasks: %t", len(s.Epochs()), ok)
	}
	if _, ok := s.Epochs()[crowd[maxEpochs-2].id]; ok {
		t.Error("the youngest has kept its place")
	}
}

// TestEquivocatorsKeepTheirPlaces has those that are known longer take all places: who has declared two
// epochs is an equivocator all the same.
func TestEquivocatorsKeepTheirPlaces(t *testing.T) {
	defer func(most int) { maxEpochs = most }(maxEpochs)
	maxEpochs = 8
	dir, me, subject := t.TempDir(), newAuthor(t), newAuthor(t).id
	s := open(t, dir, me.key)
	now := time.Now()
	s.now = func() time.Time { now = now.Add(time.Second); return now }
	var elders []*author
	for range maxEpochs {
		a := newAuthor(t)
		s.accept(t, Stored, nil, a.rate(t, subject, 1))
		elders = append(elders, a)
	}
	liar := newAuthor(t)
	s.accept(t, Stored, nil, liar.rate(t, subject, 1))
	s.took(t, liar.epoch(t, 0), true, nil)
	s.took(t, liar.epoch(t, time.Minute), true, nil)
	for _, a := range slices.Backward(elders) {
		s.took(t, a.epoch(t, 0), true, nil)
	}
	for range 2 {
		if !s.Equivocators()[liar.id] || s.Equivocators()[elders[0].id] || len(s.Epochs()) != maxEpochs {
			t.Errorf("of %d, who has declared two is an equivocator: %t", len(s.Epochs()), s.Equivocators()[liar.id])
		}
		s = s.again(t, dir, me.key)
	}
}

// TestLiarsLeaveRoom has those who have declared two epochs take all places: who is known longer is
// forgiven all the same.
func TestLiarsLeaveRoom(t *testing.T) {
	defer func(most int) { maxEpochs = most }(maxEpochs)
	maxEpochs = 8
	s, subject, elder := newStore(t), newAuthor(t).id, newAuthor(t)
	now := time.Now()
	s.now = func() time.Time { now = now.Add(time.Second); return now }
	s.accept(t, Stored, nil, elder.rate(t, subject, 1))
	for range maxEpochs {
		a := newAuthor(t)
		s.accept(t, Stored, nil, a.rate(t, subject, 1))
		s.took(t, a.epoch(t, 0), true, nil)
		s.took(t, a.epoch(t, time.Minute), true, nil)
	}
	s.took(t, elder.epoch(t, 0), true, nil)
	if _, ok := s.Epochs()[elder.id]; !ok || len(s.Epochs()) != maxEpochs || len(s.Equivocators()) != maxEpochs-1 {
		t.Errorf("%d epochs, %d equivocators, it is forgiven: %t", len(s.Epochs()), len(s.Equivocators()), ok)
	}
}

// TestForgottenEpochBrandsNobody has a witness forget the epoch of an owner: the owner's new log is no
// conflict with the old one.
func TestForgottenEpochBrandsNobody(t *testing.T) {
	defer func(most int) { maxEpochs = most }(maxEpochs)
	maxEpochs = 4
	s, owner, subject := newStore(t), newAuthor(t), newAuthor(t).id
	signed := func(log *growing, size uint64) {
		t.Helper()
		if v, evidence, err := s.Cosign(ctx, log.submit(t, 0, size)); err != nil || v.Status != wire.Signed || evidence != nil {
			t.Fatalf("%d, evidence %v, %v", v.Status, evidence, err)
		}
	}
	signed(newGrowing(t, owner.key).grow(t, 5), 5)
	s.took(t, owner.epoch(t, 0), true, nil)
	for range maxEpochs {
		a := newAuthor(t)
		s.accept(t, Stored, nil, a.rate(t, subject, 1))
		s.took(t, a.epoch(t, 0), true, nil)
	}
	if _, ok := s.Epochs()[owner.id]; ok {
		t.Fatal("the epoch has kept its place")
	}
	log := newGrowing(t, owner.key)
	log.seed = 1
	signed(log.grow(t, 5), 5)
}
