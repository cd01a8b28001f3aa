// SPDX-License-Identifier: Apache-2.0

//go:build unix

package worker

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// nightly says that tests run at full length; see e2e/nightly.
var nightly = os.Getenv("AGENTFM_TEST_NIGHTLY") == "1"

// scaled returns the first value, or in a nightly run the second.
func scaled[T any](everyday, night T) T {
	if nightly {
		return night
	}
	return everyday
}

// generous are limits that no test reaches.
var generous = limits{entries: mostFiles, size: 1 << 40}

// must ends the test at an error.
func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// packed collects a folder and returns its zip as it is read.
func packed(t testing.TB, dir string, l limits) (*zipped, []byte) {
	t.Helper()
	z, err := collect(t.Context(), dir, l)
	must(t, err)
	var b bytes.Buffer
	must(t, z.write(t.Context(), &b))
	if int64(b.Len()) != z.size {
		t.Fatalf("the zip has %d bytes, not the %d that were measured", b.Len(), z.size)
	}
	return z, b.Bytes()
}

// content returns what is in a zip by its names.
func content(t testing.TB, b []byte) map[string]string {
	t.Helper()
	r, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	must(t, err)
	files := make(map[string]string)
	for _, f := range r.File {
		rc, err := f.Open()
		must(t, err)
		text, err := io.ReadAll(rc)
		must(t, err, rc.Close())
		if _, twice := files[f.Name]; twice {
			t.Errorf("%q is twice in the zip", f.Name)
		}
		if f.Mode()&^fs.ModePerm&^fs.ModeDir != 0 || f.Mode().IsDir() != strings.HasSuffix(f.Name, "/") {
			t.Errorf("%q has mode %v", f.Name, f.Mode())
		}
		files[f.Name] = string(text)
	}
	return files
}

// reasons returns how much was left out, by the reason.
func reasons(s skipped) map[string]int {
	m := make(map[string]int)
	for _, k := range s {
		m[k.Reason] = k.Count
	}
	return m
}

// TestCollectOddities puts whatever an agent can make into one folder. The walk ends
// soon, the zip has the regular files below the folder and no others, and all else is
// told.
func TestCollectOddities(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	at := func(elem ...string) string { return filepath.Join(append([]string{dir}, elem...)...) }
	write := func(name, text string) error { return os.WriteFile(at(name), []byte(text), 0o644) }
	secret := filepath.Join(outside, "secret")
	long, wide := strings.Repeat("l", 255), strings.Repeat("ü", 127)
	deep := strings.TrimSuffix(strings.Repeat("d/", 300), "/")
	must(t,
		os.WriteFile(secret, []byte("secret"), 0o600),
		write("plain", "plain"), write(long, "long"), write(wide, "wide"), write(".hidden", ""),
		write("a\xffb", "not UTF-8"), write("c\\..\\d\n", "backslash"),
		write("taken\xff", "escaped"), write("taken%FF", "literal"),
		os.Mkdir(at("folder\xff"), 0o755), write("folder\xff/f", "in it"),
		os.WriteFile(at("setuid"), []byte("#!"), 0o755), os.Chmod(at("setuid"), 0o4755|fs.ModeSetuid),
		syscall.Mkfifo(at("fifo"), 0o644),
		os.Symlink("/etc/shadow", at("shadow")), os.Symlink(outside, at("out")), os.Symlink(".", at("loop")),
		os.Symlink("self", at("self")), os.Symlink("plain", at("alias")),
		os.Link(secret, at("hard")),
		write("twin", "twin"), os.Link(at("twin"), at("twin2")),
		os.MkdirAll(at("empty", "inner"), 0o755), os.MkdirAll(at(deep), 0o755),
		os.WriteFile(at(deep[:2*62]+"file"), []byte("deep"), 0o600), os.WriteFile(at(deep, "file"), []byte("too deep"), 0o600),
		write("sparse", ""), os.Truncate(at("sparse"), 1<<40),
	)
	listener, err := net.Listen("unix", at("s"))
	must(t, err)
	defer listener.Close()
	special := 2
	if syscall.Mknod(at("device"), syscall.S_IFCHR|0o666, 1<<8|5) == nil { // /dev/zero
		special++
	}
	growing, err := os.Create(at("growing"))
	must(t, err)
	defer growing.Close()
	stop, grown := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(grown)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				_, _ = growing.Write([]byte("0123456789abcdef"))
				if n%1000 == 0 {
					_, _ = growing.Seek(0, io.SeekStart) // of what is there nothing changes
				}
			}
		}
	}()
	begun := time.Now()
	z, b := packed(t, dir, limits{entries: 1000, size: 1 << 30})
	close(stop)
	<-grown
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	got := content(t, b)
	if len(got["growing"])%16 != 0 || strings.Trim(got["growing"], "0123456789abcdef") != "" {
		t.Errorf("growing has %d bytes", len(got["growing"]))
	}
	delete(got, "growing")
	want := map[string]string{
		"plain": "plain", long: "long", wide: "wide", ".hidden": "", "setuid": "#!",
		"a%FFb": "not UTF-8", "c%5C..%5Cd%0A": "backslash", "taken%FF": "literal", "folder%FF/": "", "folder%FF/f": "in it",
		"twin": "twin", "twin2": "twin", "empty/": "", "empty/inner/": "", deep[:2*62] + "file": "deep",
	}
	for i := 1; i <= maxDepth; i++ {
		want[deep[:2*i]] = ""
	}
	for name, text := range want {
		if have, ok := got[name]; !ok || have != text {
			t.Errorf("%.40q: got %q, %v, want %q", name, have, ok, text)
		}
		delete(got, name)
	}
	for name, text := range got {
		t.Errorf("%.40q: %.20q is in the zip", name, text)
	}
	wantSkipped := map[string]int{isLink: 5, isSpecial: special, isOutside: 1, isDeep: 1, isLarge: 1, isTwice: 1}
	for why, n := range reasons(z.skipped) {
		if wantSkipped[why] != n {
			t.Errorf("%s: %d left out, want %d", why, n, wantSkipped[why])
		}
		delete(wantSkipped, why)
	}
	for why := range wantSkipped {
		t.Errorf("nothing is left out as %s", why)
	}
	r, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	must(t, err)
	for _, line := range []string{"left out: symbolic link: 5: ", "left out: over the size of all files: 1: sparse\n"} {
		if !strings.Contains(r.Comment, line) {
			t.Errorf("the comment lacks %q: %q", line, r.Comment)
		}
	}
	must(t, z.prune(t.Context()))
	var left []string
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if d.Type()&^fs.ModeDir != 0 || d.Name() == "hard" || d.Name() == "sparse" || strings.HasSuffix(path, deep[:140]) {
			left = append(left, path)
		}
		return err
	}))
	if len(left) > 0 {
		t.Errorf("what was left out is still there: %q", left)
	}
	var again bytes.Buffer
	if err := z.write(t.Context(), &again); err != nil || !bytes.Equal(again.Bytes(), b) {
		t.Errorf("after that, the zip is another: %v", err)
	}
	must(t, removeAll(dir))
}

// TestCollectLimits wants each limit to hold to the file, and what has no room to be
// counted.
func TestCollectLimits(t *testing.T) {
	tree := func(names ...string) string {
		dir := t.TempDir()
		for _, name := range names {
			must(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755), os.WriteFile(filepath.Join(dir, name), make([]byte, 100), 0o600))
		}
		return dir
	}
	for name, c := range map[string]struct {
		dir     string
		limits  limits
		files   int
		skipped map[string]int
	}{
		"nothing":      {tree(), generous, 0, nil},
		"entries":      {tree("a", "b", "c", "d"), limits{3, 1 << 20}, 3, map[string]int{isMany: 1}},
		"folders too":  {tree("x/a", "x/b", "x/c"), limits{3, 1 << 20}, 3, map[string]int{isMany: 1}},
		"size":         {tree("a", "b", "c"), limits{10, 250}, 2, map[string]int{isLarge: 1}},
		"size exactly": {tree("a", "b", "c"), limits{10, 300}, 3, nil},
		"long paths":   {tree(strings.Repeat(strings.Repeat("p", 250)+"/", 4)+strings.Repeat("q", 100), "a"), generous, 5, map[string]int{isLong: 1}},
	} {
		z, b := packed(t, c.dir, c.limits)
		if len(z.files) != c.files || len(content(t, b)) != c.files || fmt.Sprint(reasons(z.skipped)) != fmt.Sprint(map[string]int(c.skipped)) && len(z.skipped)+len(c.skipped) > 0 {
			t.Errorf("%s: got %d files, left out %v; want %d, %v", name, len(z.files), z.skipped, c.files, c.skipped)
		}
	}
}

// TestCollectMany wants a folder of very many files to be left in time, with the number
// of files that there may be, and those that were left out to be no burden.
func TestCollectMany(t *testing.T) {
	if !nightly {
		old := maxLooked
		maxLooked = 5000
		defer func() { maxLooked = old }()
	}
	dir := t.TempDir()
	for i := range scaled(20_000, 1_000_000) {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint(i)), os.O_CREATE|os.O_WRONLY, 0o600)
		must(t, err, f.Close())
	}
	begun := time.Now()
	z, err := collect(t.Context(), dir, limits{entries: 1000, size: 1 << 20})
	must(t, err)
	t.Logf("left after %v: %v", time.Since(begun), z.skipped.lines())
	if time.Since(begun) > 10*time.Second || len(z.files) != 1000 || reasons(z.skipped)[isUnseen] != 1 || reasons(z.skipped)[isMany] < 1000 {
		t.Errorf("%d files after %v", len(z.files), time.Since(begun))
	}
	if len(z.skipped.lines()) > 3 || len(fmt.Sprint(z.skipped)) > 2000 {
		t.Errorf("the list is long: %v", z.skipped)
	}
	must(t, z.prune(t.Context()))
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1000 {
		t.Errorf("%d files are left, %v", len(left), err)
	}
}

// TestCollectRace swaps a folder for a link while it is collected, and files for FIFOs
// and other files. Nothing from outside comes in, and nothing is waited for.
func TestCollectRace(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	secret := make([]byte, 300) // in a zip as it is, for it cannot be compressed
	_, _ = rand.Read(secret)
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o755), os.Mkdir(filepath.Join(dir, "e"), 0o755))
	for i := range 20 {
		name := fmt.Sprint("f", i)
		must(t,
			os.WriteFile(filepath.Join(outside, name), secret, 0o600),
			os.WriteFile(filepath.Join(dir, "d", name), []byte("inside"), 0o600),
			os.WriteFile(filepath.Join(dir, "e", name), []byte("inside"), 0o600))
	}
	pairs := [][2]string{{"d", "link"}, {"e/f1", "fifo"}, {"e/f2", "shadow"}, {"e/f3", "other"}, {"e", "fifo2"}}
	must(t, os.Symlink(outside, filepath.Join(dir, "link")), os.Symlink(filepath.Join(outside, "f1"), filepath.Join(dir, "shadow")),
		syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600), syscall.Mkfifo(filepath.Join(dir, "fifo2"), 0o600),
		os.WriteFile(filepath.Join(dir, "other"), []byte("inside too"), 0o600))
	var swaps atomic.Int64
	stop := make(chan struct{})
	var swapping sync.WaitGroup
	swapping.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			pair := pairs[i/2%len(pairs)] // there and back
			a, b, spare := filepath.Join(dir, pair[0]), filepath.Join(dir, pair[1]), filepath.Join(dir, "spare")
			if errors.Join(os.Rename(a, spare), os.Rename(b, a), os.Rename(spare, b)) == nil {
				swaps.Add(1)
			}
		}
	})
	defer swapping.Wait()
	defer close(stop)
	_, control := packed(t, outside, generous)
	if !bytes.Contains(control, secret) {
		t.Fatal("what is looked for cannot be found")
	}
	whole, changed := 0, 0
	for range scaled(300, 10_000) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		z, err := collect(ctx, dir, generous)
		must(t, err)
		var b bytes.Buffer
		switch err := z.write(ctx, &b); {
		case err == nil:
			whole++
		case errors.Is(err, errChanged):
			changed++
			if int64(b.Len()) == z.size {
				t.Fatal("a zip that is another came whole")
			}
		default:
			t.Fatal(err)
		}
		if bytes.Contains(b.Bytes(), secret) {
			t.Fatal("the zip has a file from outside")
		}
		if err == nil && int64(b.Len()) == z.size {
			for name, text := range content(t, b.Bytes()) {
				if !strings.HasSuffix(name, "/") && text != "inside" && text != "inside too" {
					t.Fatalf("%s has %q", name, text)
				}
			}
		}
		cancel()
	}
	t.Logf("%d swaps; %d zips were whole, %d changed", swaps.Load(), whole, changed)
	if swaps.Load() < 100 || whole == 0 {
		t.Error("that was no race")
	}
}

// TestCollectCancelled wants the end of the context to end both passes.
func TestCollectCancelled(t *testing.T) {
	notHeld(t)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o600), os.Truncate(filepath.Join(dir, "f"), 1<<40))
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(50*time.Millisecond, func() { cancel(errGatewayGone) })
	if _, err := collect(ctx, dir, generous); !errors.Is(err, errGatewayGone) {
		t.Errorf("got %v", err)
	}
	must(t, os.Truncate(filepath.Join(dir, "f"), 1<<20))
	z, err := collect(t.Context(), dir, generous)
	must(t, err)
	if err := z.write(ctx, io.Discard); !errors.Is(err, errGatewayGone) {
		t.Errorf("got %v", err)
	}
}

// FuzzZipName wants a name in a zip to be one that every system takes for the name of
// a file, to be as it was where it is such already, and to tell what it was.
func FuzzZipName(f *testing.F) {
	for _, seed := range []string{"a", "a/b", "ü", "\xff", "a\\b", "\x00", "\u0085", "%FF", "\ufffd", "a\xe2\x82"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		name := zipName(path)
		if !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) || strings.Contains(name, `\`) || len(name) > 3*len(path) {
			t.Fatalf("%q is %q", path, name)
		}
		if plain := utf8.ValidString(path) && !strings.ContainsFunc(path, unicode.IsControl) && !strings.Contains(path, `\`); plain != (name == path) {
			t.Fatalf("%q is %q", path, name)
		}
		if strings.Count(name, "/") != strings.Count(path, "/") {
			t.Fatalf("%q is %q", path, name)
		}
		if shown := shown(path); len(shown) > 120 || !utf8.ValidString(shown) || strings.ContainsFunc(shown, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("%q is shown as %q", path, shown)
		}
	})
}
