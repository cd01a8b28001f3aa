// SPDX-License-Identifier: Apache-2.0

//go:build unix

package worker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// deepTree makes a folder of n levels, in each of which there is a file.
func deepTree(t *testing.T, dir string, n int) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o700))
	root, err := os.OpenRoot(dir)
	must(t, err)
	for range n {
		must(t, root.WriteFile("f", nil, 0o600), root.Mkdir(strings.Repeat("n", 100), 0o700))
		next, err := root.OpenRoot(strings.Repeat("n", 100))
		must(t, err, root.Close())
		root = next
	}
	must(t, root.Close())
}

// TestRemove removes what was made to be hard to remove, with few open files.
func TestRemove(t *testing.T) {
	var old syscall.Rlimit
	must(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old))
	low := old
	low.Cur = 128
	must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low))
	defer func() { must(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old)) }()

	dir := filepath.Join(t.TempDir(), "task")
	outside := filepath.Join(t.TempDir(), "kept")
	deepTree(t, dir, 300)
	deepTree(t, filepath.Join(dir, "second"), 20)
	must(t,
		os.WriteFile(outside, nil, 0o600), os.Symlink(outside, filepath.Join(dir, "link")), os.Symlink(filepath.Dir(outside), filepath.Join(dir, "second", "link")),
		syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
		os.WriteFile(filepath.Join(dir, ".removed-1"), nil, 0o600), os.MkdirAll(filepath.Join(dir, ".removed-2", "x"), 0o700),
		os.Mkdir(filepath.Join(dir, "closed"), 0o700), os.WriteFile(filepath.Join(dir, "closed", "f"), nil, 0o600), os.Chmod(filepath.Join(dir, "closed"), 0),
	)
	z, err := collect(t.Context(), dir, generous)
	must(t, err)
	if len(z.files) == 0 || reasons(z.skipped)[isLong] != 2 {
		t.Errorf("%d files, left out: %v", len(z.files), z.skipped)
	}
	must(t, z.prune(t.Context()))
	z2, err := collect(t.Context(), dir, generous)
	must(t, err)
	if len(z2.files) != len(z.files) || len(z2.skipped) != 0 {
		t.Errorf("after what was left out is removed: %d files, of %d, and left out: %v", len(z2.files), len(z.files), z2.skipped)
	}
	deepTree(t, filepath.Join(dir, "third"), 300)
	begun := time.Now()
	must(t, removeAll(dir), removeAll(dir))
	t.Logf("removed in %v", time.Since(begun))
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder is there: %v", err)
	}
	if _, err := os.Lstat(outside); err != nil {
		t.Error(err)
	}
}

// TestRemoveWide wants folders of folders to go.
func TestRemoveWide(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "task")
	for i := range 20 {
		for j := range 20 {
			path := filepath.Join(dir, fmt.Sprint(i), fmt.Sprint(j))
			must(t, os.MkdirAll(filepath.Join(path, "a", "b"), 0o700), os.Chmod(filepath.Join(path, "a"), 0o500), os.Chmod(path, 0o500))
		}
	}
	must(t, removeAll(dir))
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("the folder is there: %v", err)
	}
}
