// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// memory is a store of nodes, beside what the Go checksum database makes of the leaves.
type memory struct {
	nodes map[string]wire.Hash
	size  uint64
	roots []wire.Hash

	stored []tlog.Hash // by tlog's index
}

func newMemory() *memory {
	return &memory{nodes: make(map[string]wire.Hash), roots: []wire.Hash{wire.Hash(rfc6962.DefaultHasher.EmptyRoot())}}
}

func (m *memory) get(level uint, index uint64) (wire.Hash, error) {
	h, ok := m.nodes[fmt.Sprint(level, "/", index)]
	if !ok {
		return h, errors.New("no such node")
	}
	return h, nil
}

// ReadHashes implements tlog.HashReader.
func (m *memory) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = m.stored[x]
	}
	return out, nil
}

func (m *memory) append(t testing.TB, data []byte) {
	t.Helper()
	leaf := wire.Hash(rfc6962.DefaultHasher.HashLeaf(data))
	added, root, err := Nodes(m.get).Append(m.size, leaf)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range added {
		m.nodes[fmt.Sprint(n.Level, "/", n.Index)] = n.Hash
	}
	hashes, err := tlog.StoredHashes(int64(m.size), data, m)
	if err != nil {
		t.Fatal(err)
	}
	m.stored = append(m.stored, hashes...)
	m.size++
	m.roots = append(m.roots, root)
}

func theirs(path []wire.Hash) []tlog.Hash {
	out := make([]tlog.Hash, len(path))
	for i, h := range path {
		out[i] = tlog.Hash(h)
	}
	return out
}

// compare wants our roots and proofs to be those of the other implementation, each to
// accept the other's, and both to refuse them once one bit is another or a hash is
// missing, added or at another place.
func (m *memory) compare(t testing.TB, index, smaller, larger uint64, mutate *rand.Rand) {
	t.Helper()
	get := Nodes(m.get)
	root, err := get.Root(larger)
	if err != nil || root != m.roots[larger] {
		t.Fatalf("root of %d: %s, %v instead of %s", larger, root, err, m.roots[larger])
	}
	if want, err := tlog.TreeHash(int64(larger), m); err != nil || wire.Hash(want) != root {
		t.Fatalf("root of %d: %s instead of %s, %v", larger, root, want, err)
	}
	leaf, _ := m.get(0, index)
	path, err := get.Inclusion(index, larger)
	if err != nil {
		t.Fatal(err)
	}
	want, err := tlog.ProveRecord(int64(larger), int64(index), m)
	if err != nil || fmt.Sprint(theirs(path)) != fmt.Sprint([]tlog.Hash(want)) {
		t.Fatalf("inclusion of %d in %d: %v instead of %v, %v", index, larger, path, want, err)
	}
	included := func(path []wire.Hash, index, size uint64, leaf, root wire.Hash) {
		t.Helper()
		ours := VerifyInclusion(index, size, leaf, path, root) == nil
		other := tlog.CheckRecord(theirs(path), int64(size), tlog.Hash(root), int64(index), tlog.Hash(leaf)) == nil
		if ours != other {
			t.Fatalf("inclusion of %d in %d: we say %t, tlog %t", index, size, ours, other)
		}
	}
	if err := VerifyInclusion(index, larger, leaf, path, root); err != nil {
		t.Fatal(err)
	}
	included(path, index, larger, leaf, root)

	path, err = get.Consistency(smaller, larger)
	if err != nil {
		t.Fatal(err)
	}
	from := m.roots[smaller]
	if err := wire.VerifyConsistency(smaller, larger, path, from, root); err != nil {
		t.Fatal(err)
	}
	consistent := func(path []wire.Hash, smaller, larger uint64, from, to wire.Hash) {
		t.Helper()
		ours := wire.VerifyConsistency(smaller, larger, path, from, to) == nil
		other := tlog.CheckTree(theirs(path), int64(larger), tlog.Hash(to), int64(smaller), tlog.Hash(from)) == nil
		if ours != other {
			t.Fatalf("consistency of %d and %d: we say %t, tlog %t", smaller, larger, ours, other)
		}
	}
	consistent(path, smaller, larger, from, root)
	for range 8 {
		included(mangle(path, mutate), index, larger, leaf, root)
		included(path, mutate.Uint64N(larger), larger, leaf, root)
		consistent(mangle(path, mutate), smaller, larger, from, root)
		consistent(path, 1+mutate.Uint64N(larger), larger, from, root)
		consistent(path, smaller, larger, flip(from, mutate), root)
	}
}

func flip(h wire.Hash, r *rand.Rand) wire.Hash {
	h[r.IntN(len(h))] ^= 1 << r.IntN(8)
	return h
}

func mangle(path []wire.Hash, r *rand.Rand) []wire.Hash {
	out := append([]wire.Hash(nil), path...)
	i := 0
	if len(out) > 0 {
		i = r.IntN(len(out))
	}
	switch k := r.IntN(4); {
	case k == 0 && len(out) > 0:
		out[i] = flip(out[i], r)
	case k == 1 && len(out) > 0:
		return append(out[:i], out[i+1:]...)
	case k == 2 && len(out) > 0:
		j := r.IntN(len(out))
		out[i], out[j] = out[j], out[i]
	default:
		return append(out, wire.Hash{1})
	}
	return out
}

func TestTreeIsTheOneOfTlog(t *testing.T) {
	m := newMemory()
	if root, err := Nodes(m.get).Root(0); err != nil || root != m.roots[0] {
		t.Errorf("no leaves: %s, %v", root, err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for larger := uint64(1); larger <= 40; larger++ {
		m.append(t, []byte{byte(larger)})
		for smaller := uint64(1); smaller <= larger; smaller++ {
			m.compare(t, smaller-1, smaller, larger, r)
		}
	}
	if _, err := Nodes(m.get).Inclusion(40, 40); err == nil {
		t.Error("a leaf that is not there")
	}
	if _, err := Nodes(m.get).Root(41); err == nil {
		t.Error("a root of more leaves than there are")
	}
}

// FuzzTree is the same, of the leaves, sizes and mistakes that the fuzzer likes.
func FuzzTree(f *testing.F) {
	f.Add([]byte("abc"), uint64(0), uint64(1), uint64(2), uint64(3))
	f.Fuzz(func(t *testing.T, leaves []byte, index, smaller, larger, seed uint64) {
		if len(leaves) == 0 || len(leaves) > 300 {
			return
		}
		m := newMemory()
		for i := range leaves {
			m.append(t, leaves[:i])
		}
		larger = 1 + larger%m.size
		m.compare(t, index%larger, 1+smaller%larger, larger, rand.New(rand.NewPCG(seed, 0)))
	})
}
