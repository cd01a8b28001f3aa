// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"strings"
	"testing"
)

func (a *author) epoch(t testing.TB) *Epoch {
	t.Helper()
	e := &Epoch{Peer: a.id, Time: firstTime + 9}
	if err := e.Sign(a.key); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEpoch(t *testing.T) {
	a := newAuthor(t)
	e := a.epoch(t)
	got, err := ParseEpoch(e.Marshal())
	if err != nil || got.Verify() != nil || got.Time != e.Time || got.Peer != a.id {
		t.Errorf("%v, %v", got, err)
	}
	if len(e.Marshal()) > MaxEpoch {
		t.Errorf("%d bytes", len(e.Marshal()))
	}
	for name, change := range map[string]func(*Epoch){
		"another time":      func(e *Epoch) { e.Time++ },
		"another owner":     func(e *Epoch) { e.Peer = newAuthor(t).id },
		"without signature": func(e *Epoch) { e.Signature = nil },
		"of a head":         func(e *Epoch) { e.Signature = a.head(t, 3, 1).Signature },
	} {
		e := a.epoch(t)
		change(e)
		if err := e.Verify(); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := map[string][]byte{"a head": a.head(t, 3, 1).Marshal(), "nothing": nil, "long": []byte(strings.Repeat("x", MaxEpoch+1))}
	for name, e := range map[string]*Epoch{"too early": {Peer: a.id, Time: firstTime - 1}, "of nobody": {Time: firstTime}} {
		bad[name] = e.Marshal()
	}
	bad["another context"] = []byte(strings.Replace(string(a.epoch(t).Marshal()), "epoch-v1", "epoch-v2", 1))
	for name, b := range bad {
		if _, err := ParseEpoch(b); !errors.Is(err, ErrBad) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVoids(t *testing.T) {
	e := &Epoch{Time: 10}
	for time, want := range map[int64]bool{1: true, 10: true, 11: false} {
		if got := e.Voids(time); got != want {
			t.Errorf("time %d: %t", time, got)
		}
	}
}
