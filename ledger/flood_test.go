// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// flooder is a peer that sends entries of many keys as fast as it can.
type flooder struct {
	topic *pubsub.Topic
	r     *rand.Rand
	keys  []*flooderKey
	about peer.ID
}

type flooderKey struct {
	key  crypto.PrivKey
	id   peer.ID
	prev wire.Hash
}

// newFlooder returns one with so many keys, which is connected to a node.
func newFlooder(t *testing.T, keys int, to *testNode) *flooder {
	t.Helper()
	c, cancel := context.WithCancel(ctx)
	h, err := mesh.NewHost(c, mesh.RoleGateway, newKey(t), []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/0")}, mesh.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = h.Close()
	})
	ps, err := mesh.NewPubSub(c, h, func(peer.ID) bool { return false })
	if err != nil {
		t.Fatal(err)
	}
	f := &flooder{r: rand.New(rand.NewPCG(uint64(keys), 17)), about: newID(t)}
	if f.topic, err = ps.Join(wire.FeedbackTopic); err != nil {
		t.Fatal(err)
	}
	if _, err := f.topic.Subscribe(); err != nil { // or it is sent nothing, and is in nobody's mesh
		t.Fatal(err)
	}
	for range keys {
		k := &flooderKey{key: newKey(t)}
		k.id, _ = peer.IDFromPrivateKey(k.key)
		f.keys = append(f.keys, k)
	}
	if err := h.Connect(ctx, peer.AddrInfo{ID: to.id(), Addrs: to.node.Host.Addrs()}); err != nil {
		t.Fatal(err)
	}
	return f
}

// next returns an entry of one of the keys.
func (f *flooder) next(t *testing.T, orphan bool) *wire.Entry {
	k := f.keys[f.r.IntN(len(f.keys))]
	e := &wire.Entry{Kind: wire.Rating, Rater: k.id, Subject: f.about, Dimension: wire.Honesty, Score: -1, Context: strings.Repeat("x", 500), Time: time.Now().UnixNano(), Prev: k.prev}
	if orphan {
		e.Prev = wire.Hash{byte(f.r.Uint32()), byte(f.r.Uint32()), byte(f.r.Uint32()), 1}
	}
	if err := e.Sign(k.key); err != nil {
		t.Error(err)
	}
	if !orphan {
		k.prev = e.Hash()
	}
	return e
}

// TestFlood floods a node with what 100 keys sign, as fast as five peers can send it: entries,
// entries whose predecessor nobody has, entries with fields that nobody signed, and those of
// an honest node with more fields. What the honest node says is there soon all the same, byte
// for byte, and what is on disk is no more than what is counted.
func TestFlood(t *testing.T) {
	lasts, soon := 3*time.Second, 2*time.Minute // a busy machine is no flood
	if os.Getenv("AGENTFM_TEST_NIGHTLY") == "1" {
		lasts, soon = 10*time.Minute, 5*time.Second
	}
	key, dir := newKey(t), t.TempDir()
	n, honest := newNode(t, key, dir), fresh(t)
	honest.connect(t, n)
	await.Until(t, "both are confirmed", func() bool { return n.confirmed.Load() && honest.confirmed.Load() })

	c, stop := context.WithCancel(ctx)
	defer stop()
	var latest sync.Map // what the honest node has said
	var running sync.WaitGroup
	kinds := []func(f *flooder) []byte{
		func(f *flooder) []byte { return f.next(t, false).Marshal() },
		func(f *flooder) []byte { return f.next(t, false).Marshal() },
		func(f *flooder) []byte { return f.next(t, true).Marshal() },
		func(f *flooder) []byte { return append(f.next(t, false).Marshal(), 0x7a, 1, 'x') },
		func(f *flooder) []byte {
			if e, ok := latest.Load("entry"); ok {
				return append(e.(*wire.Entry).Marshal(), 0x7a, 1, byte(f.r.Uint32()))
			}
			return f.next(t, true).Marshal()
		},
	}
	var flooders []*flooder
	for _, message := range kinds {
		f := newFlooder(t, 20, n)
		flooders = append(flooders, f)
		running.Go(func() {
			for c.Err() == nil {
				_ = f.topic.Publish(c, message(f))
			}
		})
	}
	slowest := time.Duration(0)
	for end := time.Now().Add(lasts); time.Now().Before(end); {
		e := honest.rate(t, newID(t), 0.5)
		latest.Store("entry", e)
		said := time.Now()
		for n.has(honest) != honest.Size() {
			if time.Since(said) > soon {
				t.Fatalf("an entry of the honest node has not come after %s", soon)
			}
			time.Sleep(5 * time.Millisecond)
		}
		slowest = max(slowest, time.Since(said))
		time.Sleep(time.Second / authorRate) // what an author says faster does not come by gossip
	}
	stop()
	running.Wait()
	n.close()
	n = newNode(t, key, dir)

	stored, counted := uint64(0), uint64(0)
	for _, f := range flooders {
		for _, k := range f.keys {
			size, err := n.store.Size(ctx, k.id)
			if err != nil {
				t.Fatal(err)
			}
			stored, counted = stored+size, counted+size*(512+1024)
		}
	}
	disk := onDisk(t, dir)
	if most := counted + 10_000*1536 + 1<<20; disk > most { // with all that may wait for a predecessor
		t.Errorf("%d bytes are on disk, where %d are counted", disk, most)
	}
	sameLog(t, honest, n)
	t.Logf("%d entries of 100 keys are stored, on %d bytes of disk; an entry of the honest node took up to %s, of %d", stored, disk, slowest, honest.Size())
}

// onDisk returns how many bytes are in a folder.
func onDisk(t *testing.T, dir string) (n uint64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += uint64(info.Size())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// sameLog wants a node to serve the log of another byte for byte.
func sameLog(t *testing.T, of, by *testNode) {
	t.Helper()
	own, err := of.store.Log(ctx, wire.Range{From: 1, Count: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for since, i := uint64(0), 0; ; {
		page, err := by.store.Inbox(ctx, wire.Range{From: since, Count: 1000})
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			if i != len(own) {
				t.Errorf("%d of %d entries are served", i, len(own))
			}
			return
		}
		for _, item := range page {
			since = item.Index
			e, err := wire.ParseEntry(item.Entry)
			if err != nil || !bytes.Equal(e.Marshal(), item.Entry) || e.Verify() != nil {
				t.Fatalf("it serves %x: %v", item.Entry, err)
			}
			if e.Rater != of.id() {
				continue
			}
			if i >= len(own) || !bytes.Equal(item.Entry, own[i].Entry) {
				t.Fatal(fmt.Errorf("entry %d is served with other bytes", i))
			}
			i++
		}
	}
}
