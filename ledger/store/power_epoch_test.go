// SPDX-License-Identifier: Apache-2.0

//go:build linux

package store

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// otherEntries is how many entries there are of the log of another, whose epoch comes.
const otherEntries = 100

// TestPowerCutEpoch cuts the power of the disk while another process begins the epoch of its log, shows
// the new one, and takes in the epoch of another, in many steps. Each is there as a whole, or not at all; what was
// said is there; and no head that was shown is another afterwards.
func TestPowerCutEpoch(t *testing.T) {
	d := newDisk(t)
	at := make(map[string]int)
	for cut := range powerCuts(t, 8) {
		dir, me, subject, other := filepath.Join(d.mount, strconv.Itoa(cut)), newAuthor(t), newAuthor(t).id, powerAuthor(t)
		s, _, _ := forkedStore(t, dir, me, subject)
		var entries []*wire.Entry
		for range otherEntries {
			entries = append(entries, other.rate(t, subject, 1))
		}
		s.accept(t, Stored, nil, entries...)
		old := s.Head()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		w := startWriter(t, "TestPowerRecoverer", dir, me.key)
		await.Until(t, "the process has begun", func() bool { return len(w.seen()) >= 1 })
		time.Sleep(rand.N(150 * time.Millisecond))
		seen := w.seen()
		if err := cutPower(d.mount); err != nil {
			t.Fatal(err)
		}
		w.stop()
		d.comeBack(t)
		at[strings.Fields(seen[len(seen)-1])[0]]++
		s = open(t, dir, me.key)
		checkRecovered(t, s, old, seen)
		size, err := s.Size(ctx, other.id)
		_, gone := s.Epochs()[other.id]
		if n, _ := s.vote(t, subject); err != nil || gone && (size != 0 || n != 1) || !gone && (size != otherEntries || n != 2) || !gone && slices.Contains(seen, "void") {
			t.Errorf("after cut %d, %q: the epoch of another is there: %t, %d entries, %d votes, %v", cut, seen, gone, size, n, err)
		}
		if s.Epochs()[other.id].voiding {
			at["some steps"]++
		}
		if err := s.Sweep(ctx); err != nil {
			t.Error(err)
		}
		if gone {
			s.accept(t, Stored, nil, other.anew().rate(t, subject, 1))
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("the power was cut after: %v", at)
}

// checkRecovered wants the store to have what was said of its recovery, and to go on from there.
func checkRecovered(t *testing.T, s *Store, old *wire.Head, seen []string) {
	t.Helper()
	_, begun := s.Epochs()[s.self]
	if !begun {
		if slices.Contains(seen, "recovered") {
			t.Errorf("%q: there is no epoch", seen)
		}
		if s.Head().Root != old.Root || s.MaySign() == nil {
			t.Errorf("%q: half an epoch is there", seen)
		}
		if _, err := s.Recover(ctx); err != nil {
			t.Error(err)
		}
	}
	if h := s.Head(); h.Size != old.Size || s.Voided(h) || !s.Voided(old) || s.MaySign() != nil {
		t.Errorf("%q: the head is %v, %v", seen, h, s.MaySign())
	}
	if _, err := s.Publish(ctx); err != nil {
		t.Error(err)
	}
	for _, line := range seen {
		if root, ok := strings.CutPrefix(line, "shown "); ok && root != s.Head().Root.String() {
			t.Errorf("%q: the root is %s", seen, s.Head().Root)
		}
	}
}

// powerAuthor is another author, the same in each process.
func powerAuthor(t testing.TB) *author {
	t.Helper()
	log := powerLog(t)
	return &author{key: log.key, id: log.id}
}

// TestPowerRecoverer is that process.
func TestPowerRecoverer(t *testing.T) {
	s := openWritten(t)
	if s == nil {
		return
	}
	voidStep = 2
	fmt.Println("saw opened")
	if _, err := s.Recover(ctx); err != nil {
		return
	}
	fmt.Println("saw recovered")
	if _, err := s.Publish(ctx); err != nil {
		return
	}
	fmt.Println("saw shown", s.Head().Root)
	if _, err := s.TakeEpoch(ctx, powerAuthor(t).epoch(t, 0)); err != nil {
		return
	}
	fmt.Println("saw void")
	time.Sleep(time.Minute) // to be stopped
}
