// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"strings"
	"testing"
)

func (a *author) epoch(t testing.TB, size uint64) *Epoch {
	t.Helper()
	e := &Epoch{Peer: a.id, Size: size, Time: firstTime + 9}
	if err := e.Sign(a.key); err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEpoch(t *testing.T) {
	a := newAuthor(t)
	for _, size := range []uint64{0, 1, 1 << 62} {
		e := a.epoch(t, size)
		got, err := ParseEpoch(e.Marshal())
		if err != nil || got.Verify() != nil || got.Size != size || got.Time != e.Time || got.Peer != a.id {
			t.Errorf("%v, %v", got, err)
		}
		if len(e.Marshal()) > MaxEpoch {
			t.Errorf("%d bytes", len(e.Marshal()))
		}
	}
	for name, change := range map[string]func(*Epoch){
		"another size":      func(e *Epoch) { e.Size++ },
		"another time":      func(e *Epoch) { e.Time++ },
		"another owner":     func(e *Epoch) { e.Peer = newAuthor(t).id },
		"without signature": func(e *Epoch) { e.Signature = nil },
		"of a head":         func(e *Epoch) { e.Signature = a.head(t, 3, 1).Signature },
	} {
		e := a.epoch(t, 3)
		change(e)
		if err := e.Verify(); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := map[string][]byte{"a head": a.head(t, 3, 1).Marshal(), "nothing": nil, "long": []byte(strings.Repeat("x", MaxEpoch+1))}
	for name, e := range map[string]*Epoch{"too large": {Peer: a.id, Size: 1<<62 + 1, Time: firstTime}, "too early": {Peer: a.id, Time: firstTime - 1}, "of nobody": {Time: firstTime}} {
		bad[name] = e.Marshal()
	}
	bad["another context"] = []byte(strings.Replace(string(a.epoch(t, 1).Marshal()), "epoch-v1", "epoch-v2", 1))
	for name, b := range bad {
		if _, err := ParseEpoch(b); !errors.Is(err, ErrBad) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVoids(t *testing.T) {
	e := &Epoch{Size: 3, Time: 10}
	for _, c := range []struct {
		place uint64
		time  int64
		want  bool
	}{{2, 10, false}, {3, 10, true}, {3, 11, false}, {9, 1, true}, {0, 1, false}} {
		if got := e.Voids(c.place, c.time); got != c.want {
			t.Errorf("place %d, time %d: %t", c.place, c.time, got)
		}
	}
}
