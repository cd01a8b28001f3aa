// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// What a folder takes of the disk, and where it is too much.
func TestUsage(t *testing.T) {
	write := func(t *testing.T, path string, size int) {
		t.Helper()
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	inTime := time.Now().Add(time.Hour)
	for name, c := range map[string]struct {
		fill    func(t *testing.T, dir string)
		tooMuch bool
	}{
		"nothing": {func(*testing.T, string) {}, false},
		"little":  {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "f"), 100<<10) }, false},
		"a sparse file": {func(t *testing.T, dir string) {
			write(t, filepath.Join(dir, "f"), 0)
			if err := os.Truncate(filepath.Join(dir, "f"), 1<<40); err != nil {
				t.Fatal(err)
			}
		}, false},
		"a link to much": {func(t *testing.T, dir string) {
			large := filepath.Join(t.TempDir(), "large")
			write(t, large, 4<<20)
			if err := os.Symlink(large, filepath.Join(dir, "l")); err != nil {
				t.Fatal(err)
			}
		}, false},
		"much": {func(t *testing.T, dir string) {
			if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				write(t, filepath.Join(dir, "d", strconv.Itoa(i)), 1<<20)
			}
		}, true},
		"much behind long names": {func(t *testing.T, dir string) {
			root, err := os.OpenRoot(dir)
			if err != nil {
				t.Fatal(err)
			}
			for range 20 { // over 4,096 bytes in all
				long := strings.Repeat("d", 255)
				if err := root.Mkdir(long, 0o700); err != nil {
					t.Fatal(err)
				}
				next, err := root.OpenRoot(long)
				_ = root.Close()
				if root = next; err != nil {
					t.Fatal(err)
				}
			}
			if err := root.WriteFile("f", make([]byte, 3<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			_ = root.Close()
		}, true},
		"deep": {func(t *testing.T, dir string) {
			if err := os.MkdirAll(filepath.Join(dir, strings.Repeat("d/", maxUsageDepth+1)), 0o700); err != nil {
				t.Fatal(err)
			}
		}, true},
		"many": {func(t *testing.T, dir string) {
			old := maxLooked
			maxLooked = 1000
			t.Cleanup(func() { maxLooked = old })
			for i := range 1001 {
				write(t, filepath.Join(dir, strconv.Itoa(i)), 0)
			}
		}, true},
		"much, far below": {func(t *testing.T, dir string) {
			dir = filepath.Join(dir, strings.Repeat("d/", 4*usageStep+1))
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, "f"), 3<<20)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.fill(t, dir)
			u := usage{ctx: t.Context(), most: 2 << 20, end: inTime}
			if err := u.look(dir); errors.Is(err, errUsage) != c.tooMuch || err != nil && !c.tooMuch {
				t.Errorf("%v: %d bytes, %d entries", err, u.bytes, u.entries)
			}
		})
	}
}

// Folders far below take little more time to look at than others do, and what takes too
// long is too much: until the next look, an agent can write as much as it likes.
func TestUsageFarBelow(t *testing.T) {
	const folders = usageFew + 100
	dir := t.TempDir()
	far := filepath.Join(dir, strings.Repeat("d/", maxUsageDepth-2))
	if err := os.MkdirAll(far, 0o700); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(far)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for i := range folders {
		if err := root.Mkdir(strconv.Itoa(i), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	u := usage{ctx: t.Context(), most: 1 << 40, end: time.Now().Add(time.Hour)}
	began := time.Now()
	if err := u.look(dir); err != nil || u.entries < folders {
		t.Errorf("%d entries, %v", u.entries, err)
	}
	if took := time.Since(began); took > 10*time.Second { // from the beginning of the path, 20
		t.Errorf("looking took %v", took)
	}
	u = usage{ctx: t.Context(), most: 1 << 40, end: time.Now()}
	if err := u.look(dir); !errors.Is(err, errUsage) {
		t.Errorf("a look without an end: %v", err)
	}
	_ = removeAll(dir)
}

// TestGuard has an agent fill the disk: it is stopped, and says why.
func TestGuard(t *testing.T) {
	a := start(t, behaviour{run: func(ctx context.Context, task Task) (Exit, error) {
		err := os.WriteFile(filepath.Join(task.OutputDir, "f"), make([]byte, 4<<20), 0o600)
		<-ctx.Done()
		return Exit{}, err
	}}, map[string]any{"max_files_size": 1 << 20})
	_, files, err := newGateway(t, a).run(t, "t1", "x")
	ended, ok := errors.AsType[*wire.AgentError](err)
	if !ok || ended.Cause != wire.CauseOutputLimit || files != nil {
		t.Errorf("%v, %v", err, files)
	}
}
