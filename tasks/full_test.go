// SPDX-License-Identifier: Apache-2.0

package tasks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
)

// TestStoreFails wants a store that has failed to be opened anew, and what ran to run again.
func TestStoreFails(t *testing.T) {
	runner := &fakeRunner{run: hangs("half")}
	p := open(t, t.TempDir(), runner, Options{})
	id := submit(t, p, "")
	until(t, p, id, "a task that runs", func(r *Record) bool { return r.State == Running && output(t, p, id) == "half" })
	old := p.service.Load().current.Load()
	if err := old.store.failedTo(t.Context(), errors.New("maximum bytes exceeded")); !errors.Is(err, ErrStore) {
		t.Error(err)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_ = old.store.failedTo(gone, errors.New("no answer"))
	select {
	case <-old.store.failed:
		t.Error("that is no failure of the store")
	default:
	}
	runner.mu.Lock()
	runner.run = says("whole", nil)
	runner.mu.Unlock()
	_ = old.store.failedTo(t.Context(), errors.New("no space left on device"))
	await.Until(t, "another session", func() bool { now := p.service.Load().current.Load(); return now != nil && now != old })
	if r := ended(t, p, id); r.State != Completed || r.Lost != 1 || output(t, p, id) != "whole" {
		t.Errorf("got %+v", r)
	}
	empty(t, p)
}

// TestBrokenConsumers wants a store to open whose server has left files of consumers without
// what was in them, as a power cut can.
func TestBrokenConsumers(t *testing.T) {
	dir := t.TempDir()
	p := open(t, dir, &fakeRunner{run: func(context.Context, Job) (Attempt, error) { return nil, &Failure{Kind: Busy} }}, Options{})
	id := submit(t, p, "")
	if err := p.Cleanup(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(streamDir(dir, queueName), "obs", "*", "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		size := 0
		if filepath.Base(file) == "o.dat" {
			size = 32
		}
		if err := os.WriteFile(file, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p = open(t, dir, &fakeRunner{run: says("done", nil)}, Options{})
	if r := ended(t, p, id); r.State != Completed {
		t.Errorf("got %+v", r)
	}
}

// TestCloseBetweenPulls wants a store to close whatever its server says of pulls at that time:
// in the library, who waits for a message while a queue is stopped does so for ever when two
// pulls end then.
func TestCloseBetweenPulls(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{run: says("done", nil)}, Options{})
	server := p.service.Load().current.Load().store.server
	conn, err := nats.Connect("", nats.InProcessServer(server), nats.NoReconnect(), errorsTo(zap.NewNop()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	pulls, err := conn.SubscribeSync(jetstream.DefaultAPIPrefix + "CONSUMER.MSG.NEXT.>")
	if err != nil {
		t.Fatal(err)
	}
	inboxes := make(map[string]bool)
	for len(inboxes) < len(lanes)+1 {
		pull, err := pulls.NextMsg(startWait)
		if err != nil {
			t.Fatal(err)
		}
		inboxes[pull.Reply] = true
	}
	ctx, stop := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	flood.Go(func() {
		for ctx.Err() == nil {
			for inbox := range inboxes {
				for range 100 { // pulls that have ended, with nothing
					_ = conn.PublishMsg(&nats.Msg{Subject: inbox, Header: nats.Header{"Status": {"408"}, "Nats-Pending-Messages": {"128"}}})
				}
			}
		}
	})
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		_ = p.Cleanup()
	}()
	select {
	case <-closed:
	case <-time.After(startWait / 2):
		t.Error("the store does not close")
	}
	stop()
	flood.Wait()
}

// TestDiskFull wants submissions to be refused while the disk is full, nothing that was
// accepted to be lost, and all to go on when there is room again.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("mounting a file system takes root: %v %s", err, out)
	}
	defer func() { _ = exec.Command("umount", "-l", dir).Run() }()
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	p := open(t, filepath.Join(dir, "store"), &fakeRunner{run: func(ctx context.Context, j Job) (Attempt, error) {
		select {
		case <-gate:
			return says("done", nil)(ctx, j)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}, Options{})
	p.service.Load().limits.reserve = 64 << 20
	if err := p.Ready(); !errors.Is(err, ErrStore) {
		t.Errorf("a disk that is almost full: %v", err)
	}
	if _, err := p.Submit(t.Context(), Submission{Prompt: "x"}); !errors.Is(err, ErrStore) || !strings.Contains(err.Error(), "are free") {
		t.Errorf("a disk that is almost full: %v", err)
	}
	p.service.Load().limits.reserve = 0 // until it is full
	if err := p.Ready(); err != nil {
		t.Error(err)
	}
	sub := Submission{Owner: "ann", Site: "site", Prompt: strings.Repeat("x", 500<<10)}
	var ids []string
	refused := 0
	for refused < 5 && len(ids) < 100 {
		switch r, err := p.Submit(t.Context(), sub); {
		case err == nil:
			ids = append(ids, r.ID)
		case errors.Is(err, ErrStore), errors.Is(err, ErrNotRunning):
			refused++
		default:
			t.Fatal(err)
		}
	}
	if refused == 0 || len(ids) == 0 {
		t.Fatalf("%d accepted, %d refused", len(ids), refused)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	close(gate)
	get := func(id string) (r *Record) {
		await.Until(t, "a store that can be read", func() bool {
			var err error
			r, err = p.Get(t.Context(), "ann", id)
			if errors.Is(err, ErrNotFound) {
				t.Fatalf("task %s is lost", id)
			}
			return err == nil
		})
		return r
	}
	for _, id := range ids {
		await.Until(t, "the end of a task", func() bool { return get(id).State == Completed })
	}
	await.Until(t, "a store that takes tasks", func() bool { _, err := p.Submit(t.Context(), sub); return err == nil })
}

// TestNoSync wants nothing to be accepted once the disk takes no writes, whatever the
// server says of its own.
func TestNoSync(t *testing.T) {
	p := open(t, t.TempDir(), &fakeRunner{run: says("", nil)}, Options{})
	ended(t, p, submit(t, p, ""))
	empty(t, p)
	old := p.service.Load().current.Load()
	old.store.tails[queueName].dir += "-gone"
	if _, err := p.Submit(t.Context(), Submission{Owner: "ann", Prompt: "x"}); !errors.Is(err, ErrStore) || !strings.Contains(err.Error(), "disk") {
		t.Errorf("got %v", err)
	}
	await.Until(t, "another session", func() bool { now := p.service.Load().current.Load(); return now != nil && now != old })
	ended(t, p, submit(t, p, ""))
	empty(t, p)
}

// newTail returns the tail of a stream that has one file.
func newTail(t *testing.T) *tail {
	t.Helper()
	l := &tail{dir: t.TempDir()}
	addBlock(t, l, 1)
	t.Cleanup(l.close)
	return l
}

// addBlock makes a file of the stream.
func addBlock(t *testing.T, l *tail, n int) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(l.dir, fmt.Sprint(n, blockSuffix)), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRounds wants each sync to begin after it was asked for, and those who wait to share one.
func TestRounds(t *testing.T) {
	l := newTail(t)
	l.turn.Lock() // a sync is under way
	const n = 50
	ended := make(chan error, n)
	for i := range n {
		go func() { ended <- l.sync(uint64(i + 1)) }()
	}
	await.Until(t, "a round", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.next != nil && l.next.last > n/2 })
	addBlock(t, l, 2)
	l.turn.Unlock()
	for range n {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if l.number != 2 || l.safe.Load() != n {
		t.Errorf("file %d is the newest, message %d is safe", l.number, l.safe.Load())
	}
}

// TestTail wants the newest file to be found wherever the server has gone on, and a
// failure to be told.
func TestTail(t *testing.T) {
	l := newTail(t)
	message := uint64(0)
	next := func() error { message++; return l.sync(message) }
	sync := func(want int) {
		t.Helper()
		if err := next(); err != nil || l.number != want {
			t.Errorf("file %d, %v; want %d", l.number, err, want)
		}
	}
	sync(1)
	addBlock(t, l, 9)
	addBlock(t, l, 10)
	sync(10)
	addBlock(t, l, 12) // 11 came and went
	if err := os.Remove(filepath.Join(l.dir, "10.blk")); err != nil {
		t.Fatal(err)
	}
	sync(12)
	_ = l.file.Close()
	if err := next(); !errors.Is(err, os.ErrClosed) || !strings.Contains(err.Error(), "disk") {
		t.Errorf("got %v", err)
	}
	l.number = 13
	if err := next(); err == nil {
		t.Error("a stream without a file")
	}
	if err := l.sync(message - 2); err != nil {
		t.Errorf("what is safe: %v", err)
	}
}
