// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// observed is a store with some entries of an author.
type observed struct {
	*Store
	a       *author
	subject peer.ID
}

func newObserved(t *testing.T, entries int) *observed {
	o := &observed{newStore(t), newAuthor(t), newAuthor(t).id}
	o.more(t, entries)
	return o
}

func (o *observed) more(t *testing.T, entries int) {
	t.Helper()
	for range entries {
		o.accept(t, Stored, nil, o.a.rate(t, o.subject, 1))
	}
}

// honest returns the head of the entries that are stored, of a size.
func (o *observed) honest(t *testing.T, size uint64) *wire.Head {
	t.Helper()
	var row int64
	if err := o.ro.QueryRow("SELECT id FROM peer WHERE bytes = ?", []byte(o.a.id)).Scan(&row); err != nil {
		t.Fatal(err)
	}
	root, err := nodes(o.ro, row).Root(size)
	if err != nil {
		t.Fatal(err)
	}
	return o.a.head(t, size, root)
}

// kept returns the sizes of the heads that are shown to others.
func (o *observed) kept(t *testing.T) (sizes []uint64) {
	t.Helper()
	items, err := o.Heads(ctx, wire.Range{Count: 10})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range items {
		h, err := wire.ParseHead(i.Entry)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, h.Size)
	}
	return sizes
}

// TestHeadBeforeEntries has heads come before their entries: when these come, the heads are of
// what is stored, though nobody shows them again.
func TestHeadBeforeEntries(t *testing.T) {
	from, o := newObserved(t, 5), newObserved(t, 0)
	o.a = from.a
	for _, size := range []uint64{3, 4, 5} {
		if _, ahead, err := o.Observe(ctx, from.honest(t, size)); err != nil || !ahead {
			t.Fatalf("a head of %d entries: ahead %v, %v", size, ahead, err)
		}
	}
	items, err := from.Inbox(ctx, wire.Range{Count: 10})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint64{0, 0, 3, 3, 5} {
		e, err := wire.ParseEntry(items[i].Entry)
		if err != nil {
			t.Fatal(err)
		}
		o.accept(t, Stored, nil, e)
		h, err := headOf(o.ro, "head", from.a.id)
		if err != nil {
			t.Fatal(err)
		}
		var size uint64
		if h != nil {
			size = h.Size
		}
		if size != want {
			t.Errorf("after %d entries: a head of %d, want %d", i+1, size, want)
		}
	}
}

// TestTwoSizes shows a store heads of two logs of one owner that have different sizes, in
// each order in which they may come. Once the store has a true head above the other, it has
// evidence that any other node believes.
func TestTwoSizes(t *testing.T) {
	for name, c := range map[string]struct {
		play func(*observed) []*wire.Head // the last gives the evidence
		fork int                          // which says that they are two; -1 for none
	}{
		"the smaller is false": {func(o *observed) []*wire.Head {
			return []*wire.Head{o.honest(t, 6), o.a.head(t, 4, wire.Hash{9})}
		}, -1},
		"the smaller is false, and came first": {func(o *observed) []*wire.Head {
			return []*wire.Head{o.a.head(t, 4, wire.Hash{9}), o.honest(t, 6)}
		}, 0},
		"the smaller is false, and came when less was stored": {func(o *observed) []*wire.Head {
			return []*wire.Head{o.honest(t, 6), o.a.head(t, 8, wire.Hash{9})}
		}, -1},
		"of one size": {func(o *observed) []*wire.Head {
			return []*wire.Head{o.honest(t, 6), o.a.head(t, 6, wire.Hash{9})}
		}, -1},
		"of one size, of which nothing is stored": {func(o *observed) []*wire.Head {
			return []*wire.Head{o.a.head(t, 8, wire.Hash{8}), o.honest(t, 6), o.a.head(t, 8, wire.Hash{9})}
		}, -1},
	} {
		t.Run(name, func(t *testing.T) {
			o := newObserved(t, 6)
			heads := c.play(o)
			last := heads[len(heads)-1]
			if last.Size == 8 && heads[0].Size == 6 {
				if evidence, ahead, err := o.Observe(ctx, heads[0]); evidence != nil || ahead || err != nil {
					t.Fatal(evidence, ahead, err)
				}
				if evidence, ahead, err := o.Observe(ctx, last); evidence != nil || !ahead || err != nil {
					t.Fatal(evidence, ahead, err)
				}
				o.more(t, 4)
				last = o.honest(t, 10)
			} else {
				for i, h := range heads[:len(heads)-1] {
					if evidence, _, err := o.Observe(ctx, h); evidence != nil || errors.Is(err, ErrFork) != (i == c.fork) {
						t.Fatal(i, evidence, err)
					}
				}
			}
			evidence, _, err := o.Observe(ctx, last)
			if evidence == nil || err != nil {
				t.Fatalf("no evidence, %v", err)
			}
			if news, err := newStore(t).signed(t, evidence); !news || err != nil {
				t.Errorf("another node: %t, %v", news, err)
			}
		})
	}
}

// TestUnproven wants a head that is ahead of the entries to be shown beside the one of the
// entries, and to give way to it.
func TestUnproven(t *testing.T) {
	o := newObserved(t, 2)
	see := func(h *wire.Head, ahead bool, sizes ...uint64) {
		t.Helper()
		evidence, got, err := o.Observe(ctx, h)
		kept := o.kept(t)
		if evidence != nil || got != ahead || err != nil || len(kept) != len(sizes) {
			t.Fatalf("%v, ahead %t, %v, kept %v", evidence, got, err, kept)
		}
		for i := range sizes {
			if kept[i] != sizes[i] {
				t.Fatalf("kept %v instead of %v", kept, sizes)
			}
		}
	}
	two := o.honest(t, 2)
	see(two, false, 2)
	o.more(t, 3)
	five := o.honest(t, 5)
	o = &observed{newStore(t), o.a, o.subject}
	was := maxUnproven
	maxUnproven = 1
	t.Cleanup(func() { maxUnproven = was })
	see(five, true, 5)
	see(newAuthor(t).head(t, 3, wire.Hash{3}), true, 5) // of a log of which there is nothing, when there are enough
	o.now = func() time.Time { return time.Now().Add(2 * unprovenLife) }
	if err := o.Sweep(ctx); err != nil || len(o.kept(t)) != 0 {
		t.Error("a head of a log of which there is nothing is kept for ever", err)
	}
	o.now = time.Now
	o.a = newAuthor(t)
	o.more(t, 2)
	see(o.a.head(t, 5, wire.Hash{5}), true, 5)
	see(o.a.head(t, 4, wire.Hash{4}), true, 5)
	see(o.honest(t, 2), false, 5, 2)
	see(o.a.head(t, 9, wire.Hash{9}), true, 5, 2, 9)
	see(o.a.head(t, 11, wire.Hash{9}), true, 5, 2, 11)
	if err := o.Sweep(ctx); err != nil || len(o.kept(t)) != 3 {
		t.Error(o.kept(t), err)
	}
	// Entries come, and what was ahead is theirs.
	o = newObserved(t, 2)
	see(o.honest(t, 2), false, 2)
	o.more(t, 4)
	four, six := o.honest(t, 4), o.honest(t, 6)
	entries := &observed{newStore(t), o.a, o.subject}
	lines, err := o.About(ctx, o.subject, 6, 0)
	if err != nil {
		t.Fatal(err)
	}
	o = entries
	for i := 5; i >= 4; i-- {
		o.accept(t, Stored, nil, lines[i].Entry)
	}
	see(four, true, 4)
	see(six, true, 4, 6)
	for i := 3; i >= 0; i-- {
		o.accept(t, Stored, nil, lines[i].Entry)
	}
	see(o.honest(t, 1), false, 6)
}

// TestMigration opens a store of version 1, in whose one table of heads were also those of
// more entries than are stored.
func TestMigration(t *testing.T) {
	dir, me, a, b := t.TempDir(), newAuthor(t), newAuthor(t), newAuthor(t)
	s := open(t, dir, me.key)
	mine := s.mustAppend(t, a.id, 1, true)
	o := &observed{s, a, me.id}
	o.more(t, 2)
	if _, _, err := s.Observe(ctx, o.honest(t, 2)); err != nil {
		t.Fatal(err)
	}
	s.accept(t, Stored, nil, b.rate(t, me.id, 1))
	if err := s.write(ctx, func(t1 *tx) error { return t1.setHead(b.head(t, 7, wire.Hash{7})) }); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{"DROP TABLE unproven", "DROP TABLE cosigned", "ALTER TABLE vote DROP COLUMN mark", "ALTER TABLE outcome DROP COLUMN mark", "PRAGMA user_version = 1"} {
		if _, err := s.conn.ExecContext(ctx, q); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, me.key)
	o.Store = s
	if kept := o.kept(t); len(kept) != 2 || kept[0] != 2 || kept[1] != 7 {
		t.Errorf("kept %v", kept)
	}
	if h, err := headOf(s.ro, "unproven", b.id); err != nil || sizeOf(h) != 7 {
		t.Errorf("%v, %v", h, err)
	}
	if _, err := s.Prove(ctx, a.id, mine.Hash()); err != nil {
		t.Error(err)
	}
}
