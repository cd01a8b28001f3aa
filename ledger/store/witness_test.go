// SPDX-License-Identifier: Apache-2.0

package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/Agent-FM/caddy-agentfm/ledger/tree"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// growing is a log of which there are only the tree and the heads.
type growing struct {
	key   crypto.PrivKey
	id    peer.ID
	nodes map[[2]uint64]wire.Hash
	roots []wire.Hash // by size
	seed  uint64      // two logs of one key are the same with the same
	fork  uint64      // from this size on; 0 for none
}

func newGrowing(t testing.TB, key crypto.PrivKey) *growing {
	t.Helper()
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &growing{key: key, id: id, nodes: make(map[[2]uint64]wire.Hash), roots: make([]wire.Hash, 1)}
}

// tree is that of the log.
func (g *growing) tree() tree.Nodes {
	return func(level uint, index uint64) (wire.Hash, error) {
		h, ok := g.nodes[[2]uint64{uint64(level), index}]
		if !ok {
			return h, errors.New("no such node")
		}
		return h, nil
	}
}

// grow adds leaves; behind fork others than without.
func (g *growing) grow(t testing.TB, n uint64) *growing {
	t.Helper()
	for range n {
		size := uint64(len(g.roots)) - 1
		leaf := binary.BigEndian.AppendUint64(nil, size)
		if g.seed != 0 && size >= g.fork {
			leaf = binary.BigEndian.AppendUint64(leaf, g.seed)
		}
		added, root, err := g.tree().Append(size, wire.Hash(rfc6962.DefaultHasher.HashLeaf(leaf)))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range added {
			g.nodes[[2]uint64{uint64(n.Level), n.Index}] = n.Hash
		}
		g.roots = append(g.roots, root)
	}
	return g
}

func (g *growing) head(t testing.TB, size uint64) *wire.Head {
	t.Helper()
	h := &wire.Head{Peer: g.id, Size: size, Root: g.roots[size], Time: time.Now().UnixNano()}
	if err := h.Sign(g.key); err != nil {
		t.Fatal(err)
	}
	return h
}

// submit asks for a signature of the head of a size, where the witness has signed that of old.
func (g *growing) submit(t testing.TB, old, size uint64) *wire.Submission {
	t.Helper()
	s := &wire.Submission{Old: old, Head: g.head(t, size)}
	if old > 0 && old < size {
		var err error
		if s.Proof, err = g.tree().Consistency(old, size); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// TestCosign is the table of C2SP's tlog-witness, in this order with one witness.
func TestCosign(t *testing.T) {
	s, log := newStore(t), newGrowing(t, newAuthor(t).key).grow(t, 20)
	other := newGrowing(t, log.key)
	other.seed, other.fork = 1, 6
	other.grow(t, 20)
	bad := func(change func(*wire.Submission)) *wire.Submission {
		sub := log.submit(t, 7, 12)
		change(sub)
		return sub
	}
	mine := newGrowing(t, s.key).grow(t, 1)
	for _, c := range []struct {
		name   string
		sub    *wire.Submission
		status int
		last   uint64 // what is signed afterwards
	}{
		{"an old size, and none was signed", log.submit(t, 3, 5), wire.Conflict, 0},
		{"forged", &wire.Submission{Head: &wire.Head{Peer: log.id, Size: 1, Time: 5, Signature: make([]byte, 64)}}, wire.Forbidden, 0},
		{"the witness's own log", mine.submit(t, 0, 1), wire.UnknownLog, 0},
		{"a proof from nothing", &wire.Submission{Head: log.head(t, 5), Proof: []wire.Hash{{1}}}, wire.BadProof, 0},
		{"the first", log.submit(t, 0, 5), wire.Signed, 5},
		{"the same again", log.submit(t, 5, 5), wire.Signed, 5},
		{"the same with a proof", &wire.Submission{Old: 5, Head: log.head(t, 5), Proof: []wire.Hash{{1}}}, wire.BadProof, 5},
		{"as if none was signed", log.submit(t, 0, 6), wire.Conflict, 5},
		{"larger", log.submit(t, 5, 7), wire.Signed, 7},
		{"back", log.submit(t, 5, 6), wire.Conflict, 7},
		{"old above the head", log.submit(t, 7, 6), wire.Malformed, 7},
		{"old too small", log.submit(t, 5, 12), wire.Conflict, 7},
		{"old too large", log.submit(t, 8, 12), wire.Conflict, 7},
		{"no proof", bad(func(s *wire.Submission) { s.Proof = nil }), wire.BadProof, 7},
		{"a wrong hash", bad(func(s *wire.Submission) { s.Proof[1][0]++ }), wire.BadProof, 7},
		{"a hash too many", bad(func(s *wire.Submission) { s.Proof = append(s.Proof, wire.Hash{}) }), wire.BadProof, 7},
		{"the proof of another size", bad(func(s *wire.Submission) { s.Proof = log.submit(t, 6, 12).Proof }), wire.BadProof, 7},
		{"and on", log.submit(t, 7, 20), wire.Signed, 20},
	} {
		v, evidence, err := s.Cosign(ctx, c.sub)
		if err != nil || v.Status != c.status || evidence != nil {
			t.Errorf("%s: %d, evidence %v, %v; want %d", c.name, v.Status, evidence, err, c.status)
		}
		if v.Status == wire.Signed && (v.Witness.Peer != s.self || c.sub.Head.VerifyWitness(v.Witness) != nil) {
			t.Errorf("%s: signed by %s", c.name, v.Witness.Peer)
		}
		h, err := s.Cosigned(log.id)
		if got := sizeOf(h); err != nil || got != c.last {
			t.Errorf("%s: size %d is the last, %v", c.name, got, err)
		}
		if v.Status == wire.Conflict && sizeOf(v.Held) != c.last {
			t.Errorf("%s: told that it is %d", c.name, sizeOf(v.Held))
		}
	}
}

func sizeOf(h *wire.Head) uint64 {
	if h == nil {
		return 0
	}
	return h.Size
}

// TestCosignNoOtherLog shows a witness heads of another log of the same owner.
func TestCosignNoOtherLog(t *testing.T) {
	for _, c := range []struct {
		name              string
		signed, old, size uint64
		status            int
		proven            bool
	}{
		{"of the same size", 7, 7, 7, wire.Conflict, true},
		{"of the same size, as if it were the first", 7, 0, 7, wire.Conflict, true},
		{"larger, with its proof", 7, 7, 12, wire.BadProof, true},
		{"larger, and the proof does not say enough", 8, 8, 12, wire.BadProof, false},
		{"smaller", 12, 7, 8, wire.Conflict, false},
	} {
		s, log := newStore(t), newGrowing(t, newAuthor(t).key).grow(t, 20)
		other := newGrowing(t, log.key)
		other.seed, other.fork = 1, 6
		other.grow(t, 20)
		if v, _, err := s.Cosign(ctx, log.submit(t, 0, c.signed)); err != nil || v.Status != wire.Signed {
			t.Fatal(v.Status, err)
		}
		v, evidence, err := s.Cosign(ctx, other.submit(t, c.old, c.size))
		if err != nil || v.Status != c.status || (evidence != nil) != c.proven {
			t.Errorf("%s: %d, evidence %v, %v", c.name, v.Status, evidence, err)
		}
		if evidence == nil {
			continue
		}
		if news, err := s.signed(t, evidence); !news || err != nil {
			t.Errorf("%s: the evidence: %t, %v", c.name, news, err)
		}
		if v, _, err := s.Cosign(ctx, log.submit(t, c.signed, 20)); err != nil || v.Status != wire.Forbidden {
			t.Errorf("%s: an equivocator's head: %d, %v", c.name, v.Status, err)
		}
	}
}

// signed takes in evidence that this node has found.
func (s *Store) signed(t testing.TB, evidence *wire.Alert) (news bool, err error) {
	t.Helper()
	alert := *evidence
	alert.Witness, alert.Time = s.self, 5
	if err := alert.Sign(s.key); err != nil {
		t.Fatal(err)
	}
	return s.Equivocation(ctx, &alert)
}

// TestCosignRace has many submit heads of one log at the same time: what was signed is one
// chain, in which no size comes after a larger one.
func TestCosignRace(t *testing.T) {
	count, size := 500, 200
	if os.Getenv("AGENTFM_TEST_NIGHTLY") == "1" {
		count, size = 10_000, 2_000
	}
	s, log := newStore(t), newGrowing(t, newAuthor(t).key).grow(t, uint64(size))
	type step struct{ from, to uint64 }
	var (
		mu      sync.Mutex
		steps   []step
		told    uint64 // the largest that anybody was told
		clients sync.WaitGroup
	)
	for range count {
		clients.Go(func() {
			for range 5 {
				mu.Lock()
				from := told
				mu.Unlock()
				to := min(from+1+rand.N(uint64(3)), uint64(size))
				v, evidence, err := s.Cosign(ctx, log.submit(t, from, to))
				if err != nil || evidence != nil {
					t.Errorf("%v, %v", evidence, err)
					return
				}
				mu.Lock()
				switch v.Status {
				case wire.Signed:
					if from != to {
						steps = append(steps, step{from, to})
					}
					told = max(told, to)
				case wire.Conflict:
					told = max(told, sizeOf(v.Held))
				default:
					t.Errorf("from %d to %d: %d", from, to, v.Status)
				}
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	slices.SortFunc(steps, func(a, b step) int { return cmp.Compare(a.to, b.to) })
	last := uint64(0)
	for _, st := range steps {
		if st.from != last {
			t.Fatalf("from %d to %d was signed after %d", st.from, st.to, last)
		}
		last = st.to
	}
	if h, err := s.Cosigned(log.id); err != nil || sizeOf(h) != last || last == 0 {
		t.Errorf("the last is %d, and %d was signed, %v", sizeOf(h), last, err)
	}
	t.Logf("%d clients, %d signed, up to size %d", count, len(steps), last)
}

// TestStrangersAreBounded wants a witness to take only so many logs of which it has no entries,
// and those of which it has some.
func TestStrangersAreBounded(t *testing.T) {
	was := maxStrangers
	maxStrangers = 2
	t.Cleanup(func() { maxStrangers = was })
	s := newStore(t)
	first := newGrowing(t, newAuthor(t).key).grow(t, 2)
	submit := func(g *growing, old, size uint64) int {
		v, _, err := s.Cosign(ctx, g.submit(t, old, size))
		if err != nil {
			t.Fatal(err)
		}
		return v.Status
	}
	a := newAuthor(t)
	logged := newGrowing(t, a.key).grow(t, 1)
	for name, c := range map[string]struct{ got, want int }{
		"first":  {submit(first, 0, 1), wire.Signed},
		"second": {submit(newGrowing(t, newAuthor(t).key).grow(t, 1), 0, 1), wire.Signed},
		"third":  {submit(newGrowing(t, newAuthor(t).key).grow(t, 1), 0, 1), wire.UnknownLog},
		"no log": {submit(logged, 0, 1), wire.UnknownLog},
		"go on":  {submit(first, 1, 2), wire.Signed},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d", name, c.got)
		}
	}
	s.accept(t, Stored, nil, a.rate(t, first.id, 1))
	if got := submit(logged, 0, 1); got != wire.Signed {
		t.Errorf("of a log that is stored: %d", got)
	}
}
