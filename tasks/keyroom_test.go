// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestKeyRoom wants a client that takes keys without end to leave room for others, and
// what was begun to have an end.
func TestKeyRoom(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{}, Options{})
	p.service.Load().limits.keys = 2 << 20
	answer := strings.Repeat("x", 10<<10)
	early := takeKey(t, p, testKey("early"))
	fill := func(owner string) (n int, err error) {
		for ; n < 1000; n++ {
			k := testKey(fmt.Sprint("key ", n))
			k.Owner = owner
			c, err := p.begin(t.Context(), k, nil)
			if err != nil {
				return n, err
			}
			keep(t, c, answer)
		}
		return n, nil
	}
	n, err := fill("ann")
	if !errors.Is(err, ErrManyKeys) || n < 50 || n > 120 {
		t.Errorf("one client has %d keys, of about 200: %v", n, err)
	}
	for _, owner := range []string{"bob", "cyd"} {
		if n, err := fill(owner); !errors.Is(err, ErrManyKeys) || n < 20 {
			t.Errorf("then %s has %d keys: %v", owner, n, err)
		}
	}
	if _, err := p.begin(t.Context(), testKey("another"), nil); !errors.Is(err, ErrManyKeys) {
		t.Errorf("one more: %v", err)
	}
	keep(t, early, answer)
	for _, name := range []string{"early", "key 0"} {
		if _, body, err := replayed(t, p, testKey(name)); err != nil || body != answer {
			t.Errorf("%s: %d bytes, %v", name, len(body), err)
		}
	}
}
