// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"bytes"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// hold has so much be held of a zip, and of all.
func hold(t *testing.T, one, all int64) {
	t.Helper()
	before, beforeAll := maxHeld, maxHeldAll
	maxHeld, maxHeldAll = one, all+heldBytes.Load()
	t.Cleanup(func() { maxHeld, maxHeldAll = before, beforeAll })
}

// notHeld has each zip be made when it is read.
func notHeld(t *testing.T) {
	t.Helper()
	hold(t, 0, 0)
}

// TestHolder writes pieces of all sizes, of which all is held or nothing.
func TestHolder(t *testing.T) {
	const most = 4*zipBuffer + 1
	for _, size := range []int{0, 1, zipBuffer, zipBuffer + 1, most, most + 1} {
		hold(t, most, 2*most)
		before := heldBytes.Load()
		want := make([]byte, size)
		rnd := rand.New(rand.NewPCG(1, uint64(size)))
		var h holder
		for i := range want {
			want[i] = byte(rnd.Uint32())
		}
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 1+rnd.IntN(2*zipBuffer))
			if k, err := h.Write(rest[:n]); k != n || err != nil {
				t.Fatal(k, err)
			}
			rest = rest[n:]
		}
		whole := h.whole()
		if size > most {
			if whole != nil || heldBytes.Load() != before {
				t.Errorf("of %d bytes, some are held", size)
			}
			continue
		}
		var got bytes.Buffer
		if err := whole.writeTo(&got); err != nil || !bytes.Equal(got.Bytes(), want) || heldBytes.Load() != before+int64(size) {
			t.Errorf("%d bytes of %d, %v; %d are counted", got.Len(), size, err, heldBytes.Load()-before)
		}
		whole.free()
		whole.free()
		if heldBytes.Load() != before {
			t.Errorf("%d bytes are counted in the end", heldBytes.Load()-before)
		}
	}
}

// TestHeldZip wants a small zip to be read from memory, from whatever byte, and to be the
// one that is made when there is no room for it.
func TestHeldZip(t *testing.T) {
	dir := t.TempDir()
	fill(t, filepath.Join(dir, "f"), "random", 3*zipBuffer)
	hold(t, 8<<20, 4*zipBuffer)
	before := heldBytes.Load()
	z, whole := packed(t, dir, generous)
	made, same := packed(t, dir, generous)
	if z.held == nil || made.held != nil || !bytes.Equal(whole, same) || made.sum != z.sum {
		t.Errorf("held: %v, then %v; %d and %d bytes", z.held != nil, made.held != nil, len(whole), len(same))
	}
	zr := &zipReader{ctx: t.Context(), of: z}
	for _, at := range []int64{0, 1, zipBuffer, zipBuffer + 7, z.size - 1, z.size} {
		if _, err := zr.Seek(at, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(zr); err != nil || !bytes.Equal(got, whole[at:]) {
			t.Errorf("from %d: %d bytes, %v", at, len(got), err)
		}
	}
	z.free()
	made.free()
	if got := heldBytes.Load(); got != before {
		t.Errorf("%d bytes are counted in the end", got-before)
	}
}

// TestHeldTask wants what a task left to be forgotten with its files.
func TestHeldTask(t *testing.T) {
	a := ready(t, start(t, behaviour{run: leaveFiles}, nil))
	g := newGateway(t, a)
	before := heldBytes.Load()
	_, files, err := g.run(t, "t1", "300000")
	if err != nil || files == nil || heldBytes.Load() != before+files.Size {
		t.Fatal(files, err, heldBytes.Load()-before)
	}
	if got := g.do(t, "GET", wire.ArtifactPath("t1"), "", "Range", "bytes=10-"); int64(len(got.body)) != files.Size-10 {
		t.Errorf("%d bytes, %v", len(got.body), got.err)
	}
	g.do(t, "DELETE", wire.PathTasks+"/t1", "")
	await.Until(t, "it is forgotten", func() bool { return heldBytes.Load() == before })
}

// TestHeldWhileRead wants the room of what is read still to be counted when it is dropped.
func TestHeldWhileRead(t *testing.T) {
	hold(t, zipBuffer, zipBuffer)
	before := heldBytes.Load()
	var h holder
	_, _ = h.Write(make([]byte, 100))
	held := h.whole()
	if !held.use() {
		t.Fatal("it cannot be read")
	}
	held.free()
	held.free()
	if n := heldBytes.Load() - before; n != 100 {
		t.Errorf("%d bytes are counted while it is read", n)
	}
	held.release()
	if n := heldBytes.Load() - before; n != 0 || held.use() {
		t.Errorf("%d bytes are counted afterwards, or it can be read still", n)
	}
}
