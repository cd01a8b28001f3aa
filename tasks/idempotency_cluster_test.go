// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"
)

// TestKeyCluster wants gateways that share a store to share keys: what one has answered,
// another replays; what one serves, no other does; and what one has left when it died has
// an end.
func TestKeyCluster(t *testing.T) {
	n := startServer(t)
	var later atomic.Int64
	l := clusterLimits()
	l.now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	a := join(t, n.cluster(), &fakeRunner{run: hangs("half")}, l)
	b := join(t, n.cluster(), &fakeRunner{run: hangs("half")}, l)
	keep(t, takeKey(t, a, testKey("answered")), "answer")
	if _, body, err := replayed(t, b, testKey("answered")); err != nil || body != "answer" {
		t.Errorf("got %q %v", body, err)
	}
	other := testKey("answered")
	other.Print[0]++
	if _, _, err := replayed(t, b, other); !errors.Is(err, ErrKeyReused) {
		t.Error(err)
	}
	if err := takeKey(t, a, testKey("freed")).Free(); err != nil {
		t.Error(err)
	}
	keep(t, takeKey(t, b, testKey("freed")), "by the other")

	served := takeKey(t, a, testKey("served"))
	takeKey(t, a, testKey("died"))
	submitted, unsubmitted := testKey("submitted"), testKey("unsubmitted")
	submitted.Task, unsubmitted.Task = NewID("", Target{}), NewID("", Target{})
	takeKey(t, a, submitted)
	takeKey(t, a, unsubmitted)
	if r, err := a.Submit(t.Context(), Submission{ID: submitted.Task, Owner: "ann", Site: "site", Prompt: "x"}); err != nil || !r.Keyed {
		t.Fatal(r, err)
	}
	for _, k := range []Key{testKey("served"), testKey("died"), submitted, unsubmitted} {
		if _, err := b.begin(t.Context(), k, nil); !errors.Is(err, ErrKeyInUse) {
			t.Errorf("%s: %v", k.Name, err)
		}
	}
	later.Store(int64(2 * time.Minute)) // those who have them are late
	if _, _, err := replayed(t, b, testKey("died")); lost(err) != LostGateway {
		t.Error(err)
	}
	if _, _, err := replayed(t, b, testKey("served")); lost(err) != LostGateway {
		t.Error(err)
	}
	keep(t, served, "late")
	if _, body, err := replayed(t, b, testKey("served")); err != nil || body != "late" {
		t.Errorf("got %q %v", body, err)
	}
	again := submitted
	again.Task = NewID("", Target{})
	if c := takeKey(t, b, again); !c.Accepted || c.Task != submitted.Task {
		t.Errorf("got %+v", c)
	}
	again = unsubmitted
	again.Task = NewID("", Target{})
	if c := takeKey(t, b, again); c.Accepted || c.Task != again.Task {
		t.Errorf("got %+v", c)
	}
}
