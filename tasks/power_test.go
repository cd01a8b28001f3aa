// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tasks

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// powerCuts is how many there are in the environment, or every day.
func powerCuts(t *testing.T, everyday int) int {
	t.Helper()
	return await.Times(t, "AGENTFM_TEST_POWER_CUTS", everyday)
}

// TestPowerCut wants what was accepted before the power of the disk was cut to be there
// afterwards, and an end that was seen to be that end still.
func TestPowerCut(t *testing.T) {
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "mount")
	shell := func(command string) error {
		out, err := exec.Command("sh", "-c", command).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w %s", command, err, out)
		}
		return nil
	}
	mountDisk := fmt.Sprintf("mount -o loop %s %s", image, mount)
	if err := shell(fmt.Sprintf("truncate -s 2G %[1]s && mkfs.ext4 -q %[1]s && mkdir %s && %s", image, mount, mountDisk)); err != nil {
		t.Skipf("a disk that can lose its power takes root: %v", err)
	}
	defer func() { _ = shell("umount -l " + mount) }()
	accepted, ends := make(map[string]bool), make(map[string]State)
	fresh, cuts := make(map[string]bool), powerCuts(t, 50)
	for cut := range cuts {
		w := startWriter(t, filepath.Join(mount, "store"))
		w.await(t, 5)
		time.Sleep(rand.N(400 * time.Millisecond))
		seen := w.seen()
		if err := cutPower(mount); err != nil {
			t.Fatal(err)
		}
		w.stop()
		for _, line := range seen {
			switch id, end, _ := strings.Cut(line, " "); {
			case end == "":
				accepted[id], fresh[id] = true, true
			case ends[id] == "":
				ends[id] = State(end)
			}
		}
		// Another mount namespace may have the dead file system for a moment more.
		await.Until(t, "the disk comes back", func() bool {
			if err := shell("umount " + mount + " && " + mountDisk); err != nil {
				t.Fatal(err)
			}
			return shell("touch "+filepath.Join(mount, "alive")) == nil
		})
		if (cut+1)%50 == 0 || cut+1 == cuts { // all that was ever accepted
			fresh = accepted
		}
		checkStore(t, filepath.Join(mount, "store"), cut, fresh, ends)
		fresh = make(map[string]bool)
	}
	t.Logf("%d cuts, %d accepted, %d ends seen", cuts, len(accepted), len(ends))
}

// checkStore looks for what was lost.
func checkStore(t *testing.T, dir string, cut int, accepted map[string]bool, ends map[string]State) {
	t.Helper()
	s, err := openStore(t.Context(), place{dir: dir}, zap.NewNop())
	if err != nil {
		t.Fatalf("after cut %d: %v", cut, err)
	}
	defer s.close()
	for id := range accepted {
		r, _, err := s.get(t.Context(), (&Record{Owner: "ann", ID: id}).key())
		if err != nil {
			t.Errorf("after cut %d: task %s: %v", cut, id, err)
			continue
		}
		if want := ends[id]; want != "" && r.State != want {
			t.Errorf("after cut %d: task %s was %s, and is %s", cut, id, want, r.State)
		}
		if there, err := s.waiting(t.Context(), s.queue, inQueue(r.key())); !r.State.Ended() && (err != nil || !there) {
			t.Errorf("after cut %d: task %s is %s and in no queue: %v", cut, id, r.State, err)
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

// writer is another process, which submits tasks and says what it has seen.
type writer struct {
	cmd   *exec.Cmd
	mu    sync.Mutex
	lines []string
	other string // what it said beside, such as why it ended
	done  chan struct{}
}

// startWriter starts one on the store of a folder.
func startWriter(t *testing.T, dir string) *writer {
	t.Helper()
	w := &writer{cmd: exec.Command(os.Args[0], "-test.run=^TestPowerWriter$"), done: make(chan struct{})}
	w.cmd.Env = append(os.Environ(), "TASKS_POWER_WRITER="+dir)
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
			} else if len(w.other) < 4096 {
				w.other += s.Text() + "\n"
			}
		}
	}()
	return w
}

// await waits for so many lines.
func (w *writer) await(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		got := len(w.seen())
		if got >= n {
			return
		}
		if time.Now().After(deadline) {
			w.stop()
			t.Fatalf("the writer has only seen %d, and says: %s", got, w.other)
		}
	}
}

// seen returns the lines so far.
func (w *writer) seen() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lines
}

// stop ends the process, and waits for that.
func (w *writer) stop() {
	_ = w.cmd.Process.Kill()
	<-w.done
	_ = w.cmd.Wait()
}

// TestPowerWriter is that process. Many submit at one time, and more look for the ends.
func TestPowerWriter(t *testing.T) {
	dir := os.Getenv("TASKS_POWER_WRITER")
	if dir == "" {
		return
	}
	dieAt(os.Getenv("TASKS_DIE_AT"))
	p, err := New(Options{Dir: dir, InFlight: 1000, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	p.Register("site", &fakeRunner{run: says("done", nil)})
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() {
			for {
				r, err := p.Submit(context.Background(), Submission{
					Owner: "ann", Site: "site", Prompt: "prompt", WebhookURL: os.Getenv("TASKS_WEBHOOK"), Base: "https://gw.example",
				})
				if err != nil {
					time.Sleep(time.Millisecond) // the disk is gone, or the store is being opened anew
					continue
				}
				fmt.Printf("saw %s\n", r.ID)
				for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
					r, err := p.Get(context.Background(), "ann", r.ID)
					if err == nil && r.State.Ended() {
						fmt.Printf("saw %s %s\n", r.ID, r.State)
						break
					}
				}
			}
		})
	}
	clients.Wait()
	time.Sleep(time.Minute) // until it is killed
}
