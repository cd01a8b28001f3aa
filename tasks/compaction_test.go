// SPDX-License-Identifier: Apache-2.0

//go:build linux

package tasks

import (
	"fmt"
	"os/exec"
	"path/filepath"
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
	defer func() { _ = shell("umount -l " + mount) }()
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
	await.Until(t, "the disk is free", func() bool { return shell("umount "+mount) == nil })
	if err := shell(mountDisk); err != nil {
		t.Fatal(err)
	}
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
