// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
)

// budgetScope is a scope with so much memory.
type budgetScope struct {
	network.ResourceScope
	free, calls int
}

func (s *budgetScope) ReserveMemory(size int, _ uint8) error {
	s.calls++
	if size > s.free {
		return network.ErrResourceLimitExceeded
	}
	s.free -= size
	return nil
}

func (s *budgetScope) ReleaseMemory(size int) { s.free += size }

// TestBudget wants small requests to take little of the memory of their peer, so that
// thousands fit, large ones to take what they have and not much more, and all to give
// it back.
func TestBudget(t *testing.T) {
	for size, most := range map[int]int{0: 2 << 10, 500: 2 << 10, 1 << 20: 1<<20 + 32<<10} {
		scope := &budgetScope{free: 16 << 20}
		b := &budgetReader{r: bytes.NewReader(make([]byte, size)), scope: scope}
		if got, err := io.ReadAll(b); len(got) != size || err != nil {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if taken := 16<<20 - scope.free; taken < size || taken > most || scope.calls > 40 {
			t.Errorf("%d bytes take %d, in %d steps", size, taken, scope.calls)
		}
		if b.release(); scope.free != 16<<20 {
			t.Errorf("%d bytes are not given back", 16<<20-scope.free)
		}
	}
	b := &budgetReader{r: bytes.NewReader(make([]byte, 1<<20)), scope: &budgetScope{free: 100 << 10}}
	if _, err := io.ReadAll(b); !errors.Is(err, network.ErrResourceLimitExceeded) {
		t.Errorf("over the budget: %v", err)
	}
}
