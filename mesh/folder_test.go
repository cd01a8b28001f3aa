// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// newFolder returns a folder of artifacts.
func newFolder(t testing.TB, dir string, l *ArtifactLimits) *artifactFolder {
	t.Helper()
	f, err := newArtifactFolder(dir, l)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// keep stores a zip of that size and age, by way of a file as another has it.
func (f *artifactFolder) keep(t *testing.T, name string, size int64, age time.Duration) {
	t.Helper()
	err := f.store(name, size, func(file *os.File) error { return file.Truncate(size) }, func(commit func() error) error { return commit() })
	if err != nil {
		t.Fatal(err)
	}
	when := time.Now().Add(-age)
	if err := os.Chtimes(f.file(name), when, when); err != nil {
		t.Fatal(err)
	}
}

// names returns what is in the folder.
func (f *artifactFolder) names(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), zipSuffix))
	}
	return strings.Join(names, " ")
}

func TestArtifactAge(t *testing.T) {
	f := newFolder(t, filepath.Join(t.TempDir(), "new"), &ArtifactLimits{MaxAge: caddy.Duration(time.Hour)})
	if err := f.open(); err != nil {
		t.Fatal(err)
	}
	f.keep(t, "old", 10, 2*time.Hour)
	f.keep(t, "young", 10, time.Minute)
	for name, age := range map[string]time.Duration{".a.zip.1.part": 2 * ArtifactTimeout, ".b.zip.2.part": time.Minute, "notes.txt": 1000 * time.Hour} {
		file, when := filepath.Join(f.dir, name), time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Chtimes(file, when, when)); err != nil {
			t.Fatal(err)
		}
	}
	open, err := os.Open(f.file("old"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	f.sweep()
	if got := f.names(t); got != ".b.zip.2.part notes.txt young" {
		t.Errorf("left: %s", got)
	}
	if b, err := io.ReadAll(open); err != nil || len(b) != 10 {
		t.Errorf("who reads it has %d bytes, %v", len(b), err)
	}
	f.maxAge = -1
	f.keep(t, "ancient", 10, 1000*time.Hour)
	if f.sweep(); !strings.Contains(f.names(t), "ancient") {
		t.Error("what is kept for ever is gone")
	}
}

func TestArtifactSize(t *testing.T) {
	f := newFolder(t, t.TempDir(), &ArtifactLimits{MaxSize: 100})
	for i, name := range []string{"a", "b", "c", "d"} {
		f.keep(t, name, 25, time.Duration(10-i)*time.Minute)
	}
	if got := f.names(t); got != "a b c d" {
		t.Errorf("left: %s", got)
	}
	f.keep(t, "e", 30, 0)
	if got := f.names(t); got != "c d e" {
		t.Errorf("left: %s", got)
	}
	if _, err := f.take(101); !errors.Is(err, ErrArtifactSize) {
		t.Errorf("got %v", err)
	}
	// What is on its way counts, and until it is there.
	done, err := f.take(40)
	if err != nil {
		t.Fatal(err)
	}
	if got := f.names(t); got != "d e" && got != "e" {
		t.Errorf("left: %s", got)
	}
	done()
	done()
	if f.coming != 0 {
		t.Errorf("%d bytes are still to come", f.coming)
	}
	err = f.store("e", 1, func(*os.File) error { return nil }, func(commit func() error) error { return commit() })
	if !errors.Is(err, os.ErrExist) {
		t.Errorf("a file was replaced: %v", err)
	}
	if f.coming != 0 || strings.Contains(f.names(t), "part") {
		t.Errorf("%d bytes are still to come, in %s", f.coming, f.names(t))
	}
}

// TestArtifactDiskFull wants files to make room for others, a full disk to be told as such,
// and all to go on when there is room again.
func TestArtifactDiskFull(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("mounting a file system takes root: %v %s", err, out)
	}
	defer func() { _ = exec.Command("umount", "-l", dir).Run() }()
	a := newTestApp(t, nil)
	a.artifacts = newFolder(t, dir, nil)
	content := make([]byte, 4<<20)
	var w *peerHost
	w = newWorker(t, a, func(s network.Stream, req wire.TaskRequest) {
		defer s.Close()
		_, _ = io.WriteString(s, "said\n"+wire.MarkerFiles+"\n")
		to, err := w.NewStream(context.Background(), a.node.Load().host.ID(), wire.ArtifactProtocol)
		if err == nil {
			err = wire.WriteArtifactHeader(to, wire.ArtifactHeader{Size: int64(len(content)), TaskID: req.TaskID})
		}
		if err == nil {
			_, _ = to.Write(content)
			_ = to.CloseWrite()
			_, _ = to.Read(make([]byte, 1)) // until the gateway has them, or not
		}
	})
	run := func(id string) error {
		c := call("m")
		c.TaskID = id
		r, err := lease(t, a).Dispatch(t.Context(), c)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(io.Discard, r)
		return err
	}
	ids := strings.Split("a b c d e f g h i j k l", " ")
	for _, id := range ids {
		if err := run(id); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		time.Sleep(10 * time.Millisecond) // so that they differ in age
	}
	kept := strings.Split(a.artifacts.names(t), " ")
	if len(kept) < 4 || !slices.Equal(kept, ids[len(ids)-len(kept):]) {
		t.Errorf("of %q, %q are kept", ids, kept)
	}
	ballast := filepath.Join(dir, "ballast")
	for a.artifacts.names(t) != "ballast" { // other things take all that files make room for
		_ = os.WriteFile(ballast, make([]byte, 64<<20), 0o600) // as much as there is room for
		a.artifacts.sweep()
	}
	_ = os.WriteFile(ballast, make([]byte, 64<<20), 0o600)
	if err := run("full"); !errors.Is(err, ErrNoRoom) {
		t.Errorf("got %v", err)
	}
	if err := lease(t, a).Roomy(); !errors.Is(err, ErrNoRoom) {
		t.Errorf("got %v", err)
	}
	if got := a.artifacts.names(t); got != "ballast" {
		t.Errorf("left: %s", got)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := lease(t, a).Roomy(); err != nil {
		t.Error(err)
	}
	if err := run("again"); err != nil {
		t.Error(err)
	}
}
