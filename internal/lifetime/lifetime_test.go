// SPDX-License-Identifier: Apache-2.0

package lifetime

import (
	"sync"
	"testing"
	"time"
)

func TestGenerations(t *testing.T) {
	l := New[string](func() {})
	newest := func(want string) {
		t.Helper()
		got, ok := l.Newest()
		if got != want || ok != (want != "") {
			t.Errorf("newest is %q, %v; want %q", got, ok, want)
		}
	}
	newest("")
	l.Join("g1")
	l.Join("g2")
	newest("g2")
	l.Leave("g2") // a failed reload
	newest("g1")
	l.Join("g3")
	l.Leave("g1")
	l.Leave("g1")
	newest("g3")
	l.Leave("g3")
	newest("")
}

func TestDrain(t *testing.T) {
	closed := 0
	l := New[string](func() { closed++ })
	for range 2 {
		if !l.Lease() {
			t.Fatal("no lease")
		}
	}
	l.Drain(time.Hour)
	if l.Lease() {
		t.Error("a lease while draining")
	}
	l.Release()
	if closed != 0 {
		t.Error("closed with a lease out")
	}
	if !l.Revive() || !l.Lease() {
		t.Error("not revived")
	}
	l.Release()
	l.Drain(time.Hour)
	l.Release()
	if closed != 1 || l.Revive() || l.Lease() {
		t.Errorf("closed %d times", closed)
	}
	l.Drain(time.Hour)
	l.Close()
	if closed != 1 {
		t.Errorf("closed %d times", closed)
	}
}

func TestDrainLimit(t *testing.T) {
	closed := make(chan struct{})
	l := New[string](func() { close(closed) })
	l.Lease()
	l.Drain(time.Millisecond)
	<-closed
	l.Release() // late, and harmless
}

func TestConcurrent(t *testing.T) {
	closed := make(chan struct{})
	l := New[string](func() { close(closed) })
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for l.Lease() {
				l.Release()
			}
		})
	}
	l.Drain(time.Hour)
	wg.Wait()
	<-closed
}
