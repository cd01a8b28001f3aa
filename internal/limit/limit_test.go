// SPDX-License-Identifier: Apache-2.0

package limit

import (
	"sync"
	"testing"
	"time"
)

// TestTake wants each key to get its burst, and then its rate, whatever the others take.
func TestTake(t *testing.T) {
	now := time.Unix(1000, 0)
	table := New[string](4, 20, 10)
	for _, c := range []struct {
		key       string
		later     time.Duration
		n, admits int
	}{
		{"a", 0, 1000, 20},
		{"b", 0, 10, 10},
		{"a", time.Second, 1000, 4},
		{"a", 250 * time.Millisecond, 10, 1},
		{"a", time.Hour, 1000, 20},
		{"a", -time.Minute, 10, 0}, // a clock that was set back
		{"b", 0, 1000, 20},
	} {
		now = now.Add(c.later)
		got := 0
		for range c.n {
			if table.Take(c.key, now) {
				got++
			}
		}
		if got != c.admits {
			t.Errorf("%s, %v later: %d of %d, want %d", c.key, c.later, got, c.n, c.admits)
		}
	}
}

// TestTakeSteadily wants one who never pauses to get the rate, and no more.
func TestTakeSteadily(t *testing.T) {
	now := time.Unix(1000, 0)
	table := New[int](4, 20, 10)
	got := 0
	for range 10_000 {
		now = now.Add(time.Millisecond)
		if table.Take(0, now) {
			got++
		}
	}
	if got < 59 || got > 61 {
		t.Errorf("%d in ten seconds, want 60", got)
	}
}

// TestBounded wants keys that are made up not to fill the memory, nor to keep others out for
// good.
func TestBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	table := New[int](1, 5, 100)
	for i := range 1000 {
		if table.Take(i, now) != (i < 100) {
			t.Fatalf("key %d", i)
		}
	}
	if !table.Take(1, now) || table.Len() != 100 {
		t.Errorf("%d keys, or one of them gets nothing", table.Len())
	}
	now = now.Add(1500 * time.Millisecond) // all but key 1 are full
	if !table.Take(1000, now) || table.Len() != 2 {
		t.Errorf("%d keys, or a new one gets nothing", table.Len())
	}
}

// TestNewcomers wants new keys to come at their pace, and those that are there to be as before.
func TestNewcomers(t *testing.T) {
	now := time.Unix(1000, 0)
	table := New[int](1, 100, 1000).Newcomers(2, 10)
	for i := range 50 {
		table.Take(i, now)
	}
	if table.Len() != 10 || !table.Take(9, now) || table.Take(10, now) {
		t.Errorf("%d keys", table.Len())
	}
	now = now.Add(time.Second)
	for i := range 50 {
		table.Take(i, now)
	}
	if table.Len() != 12 {
		t.Errorf("%d keys a second later", table.Len())
	}
}

// TestTogether takes from several goroutines.
func TestTogether(t *testing.T) {
	now := time.Unix(1000, 0)
	table := New[int](1, 100, 8)
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range 1000 {
				table.Take(i%(g+8), now)
			}
		})
	}
	all.Wait()
	if table.Len() != 8 {
		t.Errorf("%d keys", table.Len())
	}
}
