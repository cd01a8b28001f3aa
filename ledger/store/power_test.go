// SPDX-License-Identifier: Apache-2.0

//go:build linux

package store

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sys/unix"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger/wire"
)

// powerCuts is how many there are in the environment, or every day.
func powerCuts(t *testing.T, everyday int) int {
	t.Helper()
	return await.Times(t, "AGENTFM_TEST_POWER_CUTS", everyday)
}

// disk is one that can lose its power.
type disk struct{ mount, again string }

func newDisk(t *testing.T) disk {
	t.Helper()
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "mount")
	d := disk{mount, fmt.Sprintf("mount -o loop %s %s", image, mount)}
	if err := shell(fmt.Sprintf("truncate -s 128M %[1]s && mkfs.ext4 -q %[1]s && mkdir %s && %s", image, mount, d.again)); err != nil {
		t.Skipf("a disk that can lose its power takes root: %v", err)
	}
	t.Cleanup(func() { _ = shell("umount -l " + mount) })
	return d
}

// comeBack gives the disk its power again. Another mount namespace may have the dead file system for a
// moment more.
func (d disk) comeBack(t *testing.T) {
	t.Helper()
	await.Until(t, "the disk comes back", func() bool {
		if err := shell("umount " + d.mount + " && " + d.again); err != nil {
			t.Fatal(err)
		}
		return shell("touch "+filepath.Join(d.mount, "alive")) == nil
	})
}

func shell(command string) error {
	out, err := exec.Command("sh", "-c", command).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w %s", command, err, out)
	}
	return nil
}

// TestPowerCut cuts the power of the disk while another process appends and shows heads. No
// head that was shown may be another afterwards: that would be an equivocation.
func TestPowerCut(t *testing.T) {
	d, me := newDisk(t), newAuthor(t)
	dir := filepath.Join(d.mount, "store")
	shown, signed := make(map[uint64]string), uint64(0)
	for cut := range powerCuts(t, 50) {
		w := startWriter(t, "TestPowerWriter", dir, me.key)
		await.Until(t, "the writer appends", func() bool { return len(w.seen()) >= 3 })
		time.Sleep(rand.N(200 * time.Millisecond))
		seen := w.seen()
		signed = max(signed, w.signedAs()) // not later: what is synced during the cut may be lost
		if err := cutPower(d.mount); err != nil {
			t.Fatal(err)
		}
		w.stop()
		for _, line := range seen {
			var size uint64
			var root string
			if _, err := fmt.Sscan(line, &size, &root); err != nil {
				t.Fatal(err)
			}
			if before, ok := shown[size]; ok && before != root {
				t.Fatalf("after cut %d: size %d was shown with two roots", cut, size)
			}
			shown[size] = root
		}
		d.comeBack(t)
		checkShown(t, dir, me.key, cut, shown, signed)
	}
	t.Logf("%d heads were shown, and one of size %d was signed as a witness", len(shown), signed)
}

// TestKilledWitness kills a process while it signs heads as a witness: what it has signed last
// is never smaller afterwards.
func TestKilledWitness(t *testing.T) {
	dir, me, signed := filepath.Join(t.TempDir(), "store"), newAuthor(t), uint64(0)
	for kill := range powerCuts(t, 5) {
		w := startWriter(t, "TestPowerWriter", dir, me.key)
		await.Until(t, "the witness signs", func() bool { return w.signedAs() > signed+3 })
		time.Sleep(rand.N(50 * time.Millisecond))
		w.stop()
		signed = w.signedAs()
		checkShown(t, dir, me.key, kill, nil, signed)
	}
	t.Logf("one of size %d was signed", signed)
}

// checkShown wants every head that was shown to be that of the entries that are there, and the
// one that was signed as a witness not to be forgotten.
func checkShown(t *testing.T, dir string, key crypto.PrivKey, cut int, shown map[uint64]string, signed uint64) {
	t.Helper()
	s, err := Open(dir, key)
	if err != nil {
		t.Fatalf("after cut %d: %v", cut, err)
	}
	defer s.Close()
	if h, err := s.Cosigned(powerLog(t).id); signed > 0 && (h == nil || err != nil || h.Size < signed) {
		t.Errorf("after cut %d: size %d was signed, and %+v is known, %v", cut, signed, h, err)
	}
	for size, root := range shown {
		if have, err := nodes(s.ro, s.me).Root(size); err != nil || have.String() != root {
			t.Errorf("after cut %d: the root of %d entries was %s, and is %s, %v", cut, size, root, have, err)
		}
	}
}

// cutPower makes a file system forget what was not synced, and take no more. An fsync that
// is under way in that instant may report success and be forgotten (Linux 6.18), which no
// real power cut does: what was seen before it counts.
func cutPower(mount string) error {
	const shutdown, noLogFlush = 0x8004587D, 2 // FS_IOC_SHUTDOWN
	dir, err := os.Open(mount)
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.IoctlSetPointerInt(int(dir.Fd()), shutdown, noLogFlush)
}

// writer is another process, which appends and says what heads it has.
type writer struct {
	cmd   *exec.Cmd
	mu    sync.Mutex
	lines []string
	as    uint64 // the size that it has signed last, as a witness
	done  chan struct{}
}

// powerLog is a log that the process is a witness of.
func powerLog(t testing.TB) *growing {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(bytes.NewReader(make([]byte, 32)))
	if err != nil {
		t.Fatal(err)
	}
	return newGrowing(t, key)
}

func startWriter(t *testing.T, test, dir string, key crypto.PrivKey) *writer {
	t.Helper()
	b, err := crypto.MarshalPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{cmd: exec.Command(os.Args[0], "-test.run=^"+test+"$"), done: make(chan struct{})}
	w.cmd.Env = append(os.Environ(), "LEDGER_POWER_WRITER="+dir, "LEDGER_POWER_KEY="+hex.EncodeToString(b))
	out, err := w.cmd.StdoutPipe()
	if err == nil {
		err = w.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(w.done)
		for s := bufio.NewScanner(out); s.Scan(); {
			if line, ok := strings.CutPrefix(s.Text(), "saw "); ok {
				w.mu.Lock()
				w.lines = append(w.lines, line)
				w.mu.Unlock()
			}
			var size uint64
			if _, err := fmt.Sscanf(s.Text(), "signed %d", &size); err == nil {
				w.mu.Lock()
				w.as = max(w.as, size)
				w.mu.Unlock()
			}
		}
	}()
	return w
}

func (w *writer) seen() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lines
}

func (w *writer) signedAs() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.as
}

// stop ends the process, and waits for that.
func (w *writer) stop() {
	_ = w.cmd.Process.Kill()
	<-w.done
	_ = w.cmd.Wait()
}

// openWritten opens the store in the process that writes; nil in any other.
func openWritten(t *testing.T) *Store {
	t.Helper()
	dir := os.Getenv("LEDGER_POWER_WRITER")
	if dir == "" {
		return nil
	}
	b, err := hex.DecodeString(os.Getenv("LEDGER_POWER_KEY"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := crypto.UnmarshalPrivateKey(b)
	if err != nil {
		t.Fatal(err)
	}
	return open(t, dir, key)
}

// TestPowerWriter is that process.
func TestPowerWriter(t *testing.T) {
	s := openWritten(t)
	if s == nil {
		return
	}
	var clients sync.WaitGroup
	for range 4 {
		subject := newAuthor(t)
		clients.Go(func() {
			for s.Append(ctx, &wire.Entry{Kind: wire.Rating, Subject: peer.ID(subject.id), Dimension: wire.Honesty}, nil, true) == nil {
				h := s.Head()
				fmt.Printf("saw %d %s\n", h.Size, h.Root)
			}
		})
	}
	log := powerLog(t)
	from := uint64(0)
	if h, err := s.Cosigned(log.id); err != nil {
		t.Fatal(err)
	} else if h != nil {
		from = h.Size
	}
	log.grow(t, from)
	clients.Go(func() {
		for size := from + 1; ; size++ {
			log.grow(t, 1)
			if v, _, err := s.Cosign(ctx, log.submit(t, size-1, size)); err != nil || v.Status != wire.Signed {
				return
			}
			fmt.Printf("signed %d\n", size)
		}
	})
	clients.Wait()
}
