// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// TestCompactionPowerCut wants what was on disk to be there still when the server has
// written it anew, to use less of the disk, and the power is cut then: see safeRename.
func TestCompactionPowerCut(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) { compactAndCut(t, kind) })
	}
}

func compactAndCut(t *testing.T, kind string) {
	mount, remount := newDisk(t, kind)
	at := place{dir: filepath.Join(mount, "store")}
	s, err := openStore(t.Context(), at, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	subject := func(n int) string { return fmt.Sprintf("%s0.o.%d", queueSubject, n) }
	put := func(n int) {
		t.Helper()
		if err := s.enqueue(t.Context(), s.queue, queueName, &nats.Msg{Subject: subject(n), Data: make([]byte, 100_000)}); err != nil {
			t.Fatal(err)
		}
	}
	const all = 200 // more than two of the server's files
	for n := range all {
		put(n)
	}
	for n := range all {
		if n%4 != 0 {
			if err := s.queue.DeleteMsg(t.Context(), uint64(n+1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	put(all) // with a sync, which also writes the journal of the file system
	if err := cutPower(mount); err != nil {
		t.Fatal(err)
	}
	s.close()
	remount()
	if s, err = openStore(t.Context(), at, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	defer s.close()
	lost := 0
	for n := 0; n <= all; n += 4 {
		if there, err := s.waiting(t.Context(), s.queue, subject(n)); !there || err != nil {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("of %d messages, %d are lost", all/4+1, lost)
	}
}

// newDisk mounts a disk that can lose its power, with a file system of a kind, and returns
// where it is and what mounts it again.
func newDisk(t *testing.T, kind string) (mount string, again func()) {
	t.Helper()
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "mount")
	shell := func(command string) error {
		if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w %s", command, err, out)
		}
		return nil
	}
	mountDisk := fmt.Sprintf("mount -o loop %s %s", image, mount)
	if err := shell(fmt.Sprintf("truncate -s 512M %[1]s && mkfs.%[2]s -q %[1]s && mkdir %[3]s && %[4]s", image, kind, mount, mountDisk)); err != nil {
		t.Skipf("a disk that can lose its power takes root, and programs: %v", err)
	}
	t.Cleanup(func() { _ = shell("umount -l " + mount) })
	return mount, func() {
		t.Helper()
		await.Until(t, "the disk is free", func() bool { return shell("umount "+mount) == nil })
		// Another mount namespace may have the dead file system for a moment more.
		await.Until(t, "the disk comes back", func() bool {
			if err := shell(mountDisk); err != nil {
				t.Fatal(err)
			}
			if shell("touch "+filepath.Join(mount, "alive")) == nil {
				return true
			}
			_ = shell("umount " + mount)
			return false
		})
	}
}

// TestKeyPowerCut wants a key that was taken before the power was cut not to be taken
// again, and an answer that was kept to be there.
func TestKeyPowerCut(t *testing.T) {
	mount, remount := newDisk(t, "ext4")
	taken, kept := 0, 0
	for cut := range powerCuts(t, 5) {
		if cut%50 == 0 { // else each one takes longer than the one before
			if err := os.RemoveAll(filepath.Join(mount, "store")); err != nil {
				t.Fatal(err)
			}
		}
		p := open(t, filepath.Join(mount, "store"), &fakeRunner{}, Options{})
		var mu sync.Mutex
		outcomes := make(map[string]string) // the bodies of the keys that were taken; empty without an answer
		over := false
		note := func(name, body string) bool {
			mu.Lock()
			defer mu.Unlock()
			if !over {
				outcomes[name] = body
			}
			return !over
		}
		var clients sync.WaitGroup
		for client := range 16 {
			clients.Go(func() {
				for n := 0; ; n++ {
					name := fmt.Sprintf("%d-%d-%d", cut, client, n)
					c, err := p.begin(t.Context(), testKey(name), nil)
					if err != nil || !note(name, "") {
						return
					}
					body := strings.Repeat(name, 1+rand.N(4*maxInline)/len(name))
					_, _ = c.Write([]byte(body))
					if c.Keep(Head{Status: 200}) != nil || !note(name, body) {
						return
					}
				}
			})
		}
		await.Until(t, "some keys", func() bool { mu.Lock(); defer mu.Unlock(); return len(outcomes) > 50+rand.N(200) })
		mu.Lock()
		over = true
		mu.Unlock()
		if err := cutPower(mount); err != nil {
			t.Fatal(err)
		}
		clients.Wait()
		_ = p.Cleanup()
		remount()
		p = open(t, filepath.Join(mount, "store"), &fakeRunner{}, Options{})
		for name, body := range outcomes {
			_, got, err := replayed(t, p, testKey(name))
			switch {
			case body != "" && (err != nil || got != body):
				t.Errorf("key %s: got %d bytes of %d, %v", name, len(got), len(body), err)
			case body == "" && err != nil && lost(err) != LostGateway:
				t.Errorf("key %s: %v", name, err)
			}
			taken++
			kept += min(len(body), 1)
		}
		if err := p.Cleanup(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d keys were taken, and %d answered", taken, kept)
}
