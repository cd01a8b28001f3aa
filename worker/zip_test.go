// SPDX-License-Identifier: Apache-2.0

//go:build unix

package worker

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/mesh/wire"
)

// Kinds of content, in blocks that never come twice alike.
var kinds = map[string]func(block []byte, r *rand.Rand){
	"text": func(b []byte, r *rand.Rand) {
		for n := 0; n < len(b); {
			n += copy(b[n:], fmt.Sprintf("%s item %d of the report costs %d.%02d EUR\n", words[r.IntN(len(words))], r.IntN(1e6), r.IntN(1000), r.IntN(100)))
		}
	},
	"random": func(b []byte, r *rand.Rand) {
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	},
	"zero": func(b []byte, _ *rand.Rand) { clear(b) },
}

var words = strings.Fields("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon")

// fill makes a file of a kind.
func fill(t testing.TB, path, kind string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	r := rand.New(rand.NewPCG(1, 2))
	block := make([]byte, 256<<10)
	for n := int64(0); n < size; n += int64(len(block)) {
		if n%(16<<20) == 0 { // the same again is too far away to be found
			kinds[kind](block, r)
		}
		_, err := f.Write(block[:min(int64(len(block)), size-n)])
		must(t, err)
	}
}

// TestZipSame wants the zip of a folder to be the same each time, from whatever byte it
// is read, and beside others.
func TestZipSame(t *testing.T) {
	notHeld(t)
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 30 {
		must(t, os.MkdirAll(filepath.Join(dir, fmt.Sprint("d", i%7)), 0o755))
		kind := []string{"text", "random", "zero"}[i%3]
		fill(t, filepath.Join(dir, fmt.Sprint("d", i%7), fmt.Sprint(i)), kind, r.Int64N(100_000)*int64(i%4))
	}
	must(t, os.Symlink("x", filepath.Join(dir, "link")))
	z, whole := packed(t, dir, generous)
	var readers sync.WaitGroup
	for range 4 {
		from := []int64{0, 1, z.size - 1, z.size, r.Int64N(z.size), r.Int64N(z.size)}
		readers.Go(func() {
			zr := &zipReader{ctx: t.Context(), of: z}
			defer zr.stop()
			for _, at := range from {
				if _, err := zr.Seek(at, io.SeekStart); err != nil {
					t.Error(err)
				}
				if got, err := io.ReadAll(zr); err != nil || !bytes.Equal(got, whole[at:]) {
					t.Errorf("from %d of %d: %d bytes, %v", at, z.size, len(got), err)
				}
			}
		})
	}
	readers.Wait()
}

// TestZipChanged changes files after they were collected: what is no longer what was
// announced never comes whole. What is added to a file does not matter.
func TestZipChanged(t *testing.T) {
	notHeld(t)
	for name, c := range map[string]struct {
		change func(path string) error
		same   bool
	}{
		"nothing":  {func(string) error { return nil }, true},
		"appended": {func(p string) error { return appendTo(p, "more") }, true},
		"other content": {func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("X"), 1000)
			}
			return errors.Join(err, f.Close())
		}, false},
		"shorter": {func(p string) error { return os.Truncate(p, 1000) }, false},
		"gone":    {os.Remove, false},
		"replaced": {func(p string) error {
			return errors.Join(os.WriteFile(p+"2", make([]byte, 200_000), 0o600), os.Rename(p+"2", p))
		}, false},
		"a link":    {func(p string) error { return errors.Join(os.Rename(p, p+"2"), os.Symlink(filepath.Base(p)+"2", p)) }, true},
		"a folder":  {func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }, false},
		"no folder": {func(p string) error { return os.RemoveAll(filepath.Dir(p)) }, false},
	} {
		dir := t.TempDir()
		fill(t, filepath.Join(dir, "f"), "text", 200_000)
		z, whole := packed(t, dir, generous)
		must(t, c.change(filepath.Join(dir, "f")))
		var b bytes.Buffer
		err := z.write(t.Context(), &b)
		if c.same && (err != nil || !bytes.Equal(b.Bytes(), whole)) || !c.same && (!errors.Is(err, errChanged) || int64(b.Len()) >= z.size) {
			t.Errorf("%s: %d bytes of %d, %v", name, b.Len(), z.size, err)
		}
		zr := &zipReader{ctx: t.Context(), of: z}
		got, err := io.ReadAll(zr)
		zr.stop()
		if c.same != (err == nil && bytes.Equal(got, whole)) || c.same != (zr.err == nil) {
			t.Errorf("%s, read: %d bytes of %d, %v, %v", name, len(got), z.size, err, zr.err)
		}
	}
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// TestZipMemory wants the collecting and sending of much to take little memory, and no
// room on the disk.
func TestZipMemory(t *testing.T) {
	size := scaled[int64](64<<20, 2<<30)
	dir := t.TempDir()
	for _, kind := range []string{"text", "random"} {
		fill(t, filepath.Join(dir, kind), kind, size/2)
	}
	for i := range 5000 {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprintf("%05d-%s", i, strings.Repeat("n", 100))), []byte("x"), 0o600))
	}
	before := heap()
	var most int64
	stop := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, int64(m.HeapInuse)-before)
			}
		}
	})
	begun := time.Now()
	z, err := collect(t.Context(), dir, generous)
	must(t, err)
	collected := time.Since(begun)
	held := heap() - before
	n, err := io.Copy(io.Discard, &zipReader{ctx: t.Context(), of: z})
	must(t, err)
	close(stop)
	watching.Wait()
	t.Logf("%d MiB in %d files: a zip of %d MiB was measured in %v and read in %v; the heap grew by %d MiB at most, and what waits holds %d KiB",
		size>>20, len(z.files), n>>20, collected.Round(time.Millisecond), (time.Since(begun) - collected).Round(time.Millisecond), most>>20, held>>10)
	if n != z.size || most > 16<<20 || held > 2<<20 {
		t.Errorf("%d bytes of %d; the heap grew by %d KiB at most, by %d KiB in the end", n, z.size, most>>10, held>>10)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 5002 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
}

// TestKeptRestart wants a gateway that asks again to be served at once, though it has
// not read its first answer, and that one to end.
func TestKeptRestart(t *testing.T) {
	a := ready(t, start(t, behaviour{run: leaveFiles}, nil))
	g := newGateway(t, a)
	const size = 64 << 20
	_, files, err := g.run(t, "t1", fmt.Sprint(size))
	if err != nil || files == nil {
		t.Fatal(files, err)
	}
	stuck := g.begin(t, "GET", wire.ArtifactPath("t1"), "") // and nothing is read
	a.mu.Lock()
	k := a.kept["t1"]
	a.mu.Unlock()
	await.Until(t, "the first answer begins", func() bool {
		k.sending.Lock()
		defer k.sending.Unlock()
		return k.breakOff != nil
	})
	got := g.do(t, "GET", wire.ArtifactPath("t1"), "", "Range", "bytes=10-")
	if got.StatusCode != 206 || got.err != nil || int64(len(got.body)) != files.Size-10 {
		t.Errorf("got %d, %d bytes, %v", got.StatusCode, len(got.body), got.err)
	}
	if n, err := io.Copy(io.Discard, stuck); err == nil || n >= files.Size {
		t.Errorf("the first answer has %d bytes, %v", n, err)
	}
	g.do(t, "DELETE", wire.PathTasks+"/t1", "")
}

// TestKeptChanged wants a zip that is no longer what was announced to break off, and
// to be gone.
func TestKeptChanged(t *testing.T) {
	notHeld(t)
	a := ready(t, start(t, behaviour{run: leaveFiles}, nil))
	g := newGateway(t, a)
	if _, files, err := g.run(t, "t1", "300000"); err != nil || files == nil {
		t.Fatal(files, err)
	}
	a.mu.Lock()
	dir := a.kept["t1"].dir
	a.mu.Unlock()
	must(t, appendTo(filepath.Join(dir, "f"), "not seen"), os.WriteFile(filepath.Join(dir, "f"), make([]byte, 300000), 0o600))
	if got, err := io.ReadAll(g.begin(t, "GET", wire.ArtifactPath("t1"), "")); err == nil {
		t.Errorf("an answer that is whole: %d bytes", len(got))
	}
	if got := g.do(t, "GET", wire.ArtifactPath("t1"), ""); got.StatusCode != 404 {
		t.Errorf("afterwards: got %d", got.StatusCode)
	}
	await.Until(t, "the folder is gone", func() bool { return len(leftovers(t)) == 0 })
}

// TestKeptRoom wants what waits to be bounded in bytes and names, too.
func TestKeptRoom(t *testing.T) {
	a := &agent{kept: map[string]*kept{}}
	for i := range 4 {
		a.kept[fmt.Sprint(i)] = &kept{zipped: &zipped{bytes: wire.MaxArtifact - 1, files: make([]file, 1000)}, drop: make(chan struct{}), since: time.Unix(int64(i), 0)}
	}
	for name, c := range map[string]struct {
		z    zipped
		room bool
	}{
		"little":    {zipped{bytes: 4, files: make([]file, 10)}, true},
		"bytes":     {zipped{bytes: 5}, false},
		"files":     {zipped{files: make([]file, maxKeptFiles-3999)}, false},
		"all files": {zipped{files: make([]file, maxKeptFiles-4000)}, true},
	} {
		if got := a.hasRoom(&c.z); got != c.room {
			t.Errorf("%s: room is %v", name, got)
		}
	}
	a.kept["0"].fetched = true
	if !a.evictKept() || a.kept["1"] != nil || a.kept["0"] == nil {
		t.Error("the oldest that was not asked for has not made room")
	}
}

// TestSkippedTold wants the gateway to hear what was left out, and why.
func TestSkippedTold(t *testing.T) {
	a := ready(t, start(t, behaviour{run: func(_ context.Context, task Task) (Exit, error) {
		return Exit{}, errors.Join(
			os.WriteFile(filepath.Join(task.OutputDir, "f"), []byte("x"), 0o600),
			os.WriteFile(filepath.Join(task.OutputDir, "large"), make([]byte, 2000), 0o600),
			os.Symlink("f", filepath.Join(task.OutputDir, "l\n\u202eink")))
	}}, map[string]any{"max_files": 2, "max_files_size": 1000}))
	g := newGateway(t, a)
	_, files, err := g.run(t, "t1", "")
	if err != nil || files == nil || files.Skipped != 2 || len(files.SkippedFiles) != 2 {
		t.Fatalf("%+v, %v", files, err)
	}
	want := map[string]string{isLink: `l\n\u202eink`, isLarge: "large"}
	for _, s := range files.SkippedFiles {
		if s.Count != 1 || len(s.Names) != 1 || s.Names[0] != want[s.Reason] {
			t.Errorf("got %+v", s)
		}
	}
	await.Until(t, "the large file makes room", func() bool {
		_, err := os.Lstat(filepath.Join(leftovers(t)[0], "output", "large"))
		return errors.Is(err, fs.ErrNotExist)
	})
	g.do(t, "DELETE", wire.PathTasks+"/t1", "")
}

// BenchmarkZip compares a zip as it is made here with that of archive/zip alone.
// "ratio" is the size of the zip by that of the file; "small" is text of which the zip is held.
func BenchmarkZip(b *testing.B) {
	for _, kind := range []string{"text", "small", "random", "zip", "zero"} {
		size, of := int64(256<<20), kind
		if kind == "small" {
			size, of = 16<<20, "text"
		}
		dir := b.TempDir()
		path := filepath.Join(dir, "f")
		if kind == "zip" { // what is compressed already
			fill(b, filepath.Join(dir, "text"), "text", size)
			f, err := os.Create(path)
			must(b, err, standardZip(f, filepath.Join(dir, "text")), f.Close(), os.Remove(filepath.Join(dir, "text")))
		} else {
			fill(b, path, of, size)
		}
		fi, err := os.Stat(path)
		must(b, err)
		for how, pack := range map[string]func(io.Writer) error{
			"standard": func(w io.Writer) error { return standardZip(w, path) },
			"ours": func(w io.Writer) error {
				root, err := os.OpenRoot(dir)
				must(b, err)
				defer root.Close()
				found, err := look(b.Context(), root, generous)
				must(b, err)
				p := newPacker(b.Context(), root, w)
				for _, f := range found.found {
					if _, _, err := p.add(f); err != nil {
						return err
					}
				}
				return p.close(nil)
			},
			"both-passes": func(w io.Writer) error { // as a gateway gets it, with the hashes
				z, err := collect(b.Context(), dir, generous)
				must(b, err)
				defer z.free()
				return z.write(b.Context(), w)
			},
		} {
			b.Run(kind+"/"+how, func(b *testing.B) {
				b.SetBytes(fi.Size())
				b.ReportAllocs()
				var n counted
				before := computed(b)
				for b.Loop() {
					n = 0
					must(b, pack(&n))
				}
				b.ReportMetric(float64(computed(b)-before)/1e3/float64(b.N), "cpu-us/op")
				b.ReportMetric(float64(n)/float64(fi.Size()), "ratio")
			})
		}
	}
}

// computed is the time that the process has computed.
func computed(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// counted counts what is written.
type counted int64

func (c *counted) Write(b []byte) (int, error) {
	*c += counted(len(b))
	return len(b), nil
}

// standardZip zips a file as archive/zip does.
func standardZip(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	z := zip.NewWriter(w)
	entry, err := z.Create("f")
	if err == nil {
		_, err = io.Copy(entry, f)
	}
	return errors.Join(err, z.Close())
}
