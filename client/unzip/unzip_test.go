// SPDX-License-Identifier: Apache-2.0

package unzip

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ptr returns a pointer to v.
func ptr[T any](v T) *T { return &v }

// one is a zip file with one entry.
func one(it item) archive { return archive{items: []item{it}} }

// file is an entry with a content.
func file(name string) item { return item{name: name, content: "content of " + name} }

// files are entries with these names.
func files(names ...string) (a archive) {
	for _, name := range names {
		it := file(name)
		if strings.HasSuffix(name, "/") {
			it.content = ""
		}
		a.items = append(a.items, it)
	}
	return a
}

// Modes of Unix, as external attributes.
const (
	modeFile, modeFolder, modeLink, modeFIFO   = 0x8000 << 16, 0x4000 << 16, 0xa000 << 16, 0x1000 << 16
	modeDevice, modeBlock, modeSocket, modeOdd = 0x2000 << 16, 0x6000 << 16, 0xc000 << 16, 0x3000 << 16
)

// accepted are zip files that are unpacked: the names of the files, and what they hold.
func accepted() map[string]archive {
	deflated := item{name: "a", content: strings.Repeat("abc", 1000), deflate: true}
	described := func(n int) archive {
		it := deflated
		it.flags, it.descriptor = flagDescriptor, n
		return archive{items: []item{it, file("b")}}
	}
	return map[string]archive{
		"empty":                       {},
		"one file":                    files("a"),
		"empty file":                  one(item{name: "a"}),
		"deflated":                    one(deflated),
		"empty, deflated":             one(item{name: "a", deflate: true}),
		"folders":                     files("a/", "a/b/", "a/b/c", "d/e"),
		"folder after what is in it":  files("a/b", "a/"),
		"comment":                     {items: files("a").items, comment: "what was left out"},
		"comment of an entry":         one(item{name: "a", comment: "x"}),
		"descriptor, 16":              described(16),
		"descriptor, 12":              described(12),
		"descriptor, 24":              described(24),
		"descriptor, 20":              described(20),
		"Zip64 end":                   {items: files("a", "b").items, zip64: true},
		"UTF-8":                       one(item{name: "ü/日本語 😀.txt", content: "x", flags: flagUTF8}),
		"UTF-8 without the flag":      files("ü"),
		"mode of a file":              one(item{name: "a", content: "x", mode: modeFile | 0o644<<16}),
		"mode of a folder":            one(item{name: "a/", mode: modeFolder | 0o755<<16 | 0x10}),
		"setuid is not kept":          one(item{name: "a", content: "x", mode: modeFile | 0o6777<<16}),
		"unknown extra field":         one(item{name: "a", content: "x", extra: field(0x5455, 1, 0, 0, 0, 0), localExtra: field(0x5455)}),
		"the same Unicode path":       one(item{name: "a", content: "x", extra: field(extraUnicodePath, 1, 0, 0, 0, 0, 'a')}),
		"dots inside":                 files("..a", "a..b", "...c/d", ".hidden"),
		"almost a device":             files("CONSOLE", "COM", "COM10", "LPTx", "nulls.txt", "a/NULL", "COM¼"),
		"spaces":                      files(" a", "b c"),
		"long name":                   files(strings.Repeat("a", maxPart)),
		"deep":                        files(strings.Repeat("d/", 512) + "f"),
		"order is not that of places": {items: files("b", "a").items},
		"nested zip":                  one(item{name: "a.zip", content: string(files("x").bytes())}),
		"level flags":                 one(item{name: "a", content: "x", deflate: true, flags: 2 | 4}),
	}
}

// refused are zip files that are not.
func refused() map[string]archive {
	link := func(mode uint32) archive { return one(item{name: "a", content: "/etc/passwd", mode: mode}) }
	flagged := func(flags uint16) archive { return one(item{name: "a", content: "x", flags: flags}) }
	method := func(m uint16) archive { return one(item{name: "a", content: "x", method: &m}) }
	twice := files("a", "b")
	twice.items[1].offset = ptr(uint32(0))
	zip64 := func(change func(b []byte)) archive {
		return archive{items: files("a").items, zip64: true, zip64At: change}
	}
	ended := func(change func(b []byte)) archive { return archive{items: files("a").items, end: change} }
	return map[string]archive{
		"up":                   files("../a"),
		"up, inside":           files("a/../../b"),
		"up and back":          files("a/../b"),
		"up alone":             files(".."),
		"up, folder":           files("a/../"),
		"here":                 files("./a"),
		"here, inside":         files("a/./b"),
		"absolute":             files("/etc/passwd"),
		"two slashes":          files("//server/share"),
		"double slash":         files("a//b"),
		"root":                 files("/"),
		"no name":              files(""),
		"drive":                files("C:/a"),
		"drive, relative":      files("C:a"),
		"stream of NTFS":       files("a:b"),
		"backslash":            files(`a\b`),
		"backslash up":         files(`..\a`),
		"UNC":                  files(`\\server\share\a`),
		"NUL byte":             files("a\x00.txt"),
		"newline":              files("a\nb"),
		"escape":               files("a\x1b[2J"),
		"DEL":                  files("a\x7f"),
		"C1":                   files("a\u0085"),
		"line separator":       files("a\u2028b"),
		"not UTF-8":            files("a\xff"),
		"overlong slash":       files("a\xc0\xafb"),
		"trailing dot":         files("a."),
		"trailing dots":        files("a/b.../c"),
		"trailing space":       files("a "),
		"space before slash":   files("a /b"),
		"CON":                  files("CON"),
		"nul.txt":              files("nul.txt"),
		"Aux in a folder":      files("a/Aux.h/b"),
		"COM1":                 files("COM1"),
		"com0.tar.gz":          files("com0.tar.gz"),
		"LPT9":                 files("lpt9"),
		"COM²":                 files("COM²"),
		"PRN .txt":             files("PRN .txt"),
		"CONIN$":               files("conin$"),
		"long part":            files(strings.Repeat("a", maxPart+1)),
		"long name":            files(strings.Repeat("a/", maxName/2) + "b"),
		"twice":                files("a", "a"),
		"folder twice":         files("a/", "a/"),
		"case":                 files("readme", "README"),
		"case of a folder":     files("A/x", "a/y"),
		"case, not ASCII":      files("ÄB", "äb"),
		"long s":               files("ſ", "s"),
		"Kelvin":               files("K", "k"),
		"composed":             files("\u00e9", "e\u0301"),
		"file and folder":      files("a", "a/"),
		"file, then folder":    files("a", "a/b"),
		"folder, then file":    files("a/b", "a"),
		"link":                 link(modeLink | 0o777<<16),
		"link to a folder":     {items: []item{{name: "a", content: "..", mode: modeLink}, file("a/b")}},
		"FIFO":                 link(modeFIFO),
		"character device":     link(modeDevice),
		"block device":         link(modeBlock),
		"socket":               link(modeSocket),
		"odd type":             link(modeOdd),
		"file by mode":         one(item{name: "a/", mode: modeFile}),
		"folder by mode":       one(item{name: "a", mode: modeFolder}),
		"folder by DOS":        one(item{name: "a", mode: 0x10}),
		"link by Windows":      one(item{name: "a", mode: 0x400}),
		"folder with content":  one(item{name: "a/", content: "x"}),
		"encrypted":            flagged(1),
		"strong encryption":    flagged(1 | 1<<6),
		"masked headers":       flagged(1 << 13),
		"patched":              flagged(1 << 5),
		"unknown flag":         flagged(1 << 9),
		"AES":                  one(item{name: "a", content: "x", extra: field(extraAES, 1, 2)}),
		"bzip2":                method(12),
		"LZMA":                 method(14),
		"zstd":                 method(93),
		"AES method":           method(99),
		"implode":              method(6),
		"deflate64":            method(9),
		"local name":           one(item{name: "a", content: "x", localName: ptr("b")}),
		"local name up":        one(item{name: "abcd", content: "x", localName: ptr("../b")}),
		"local flags":          one(item{name: "a", content: "x", localFlags: ptr(uint16(flagUTF8))}),
		"local checksum":       one(item{name: "a", content: "x", localCRC: ptr(uint32(1))}),
		"local size":           one(item{name: "a", content: "x", localSize: ptr(uint32(2))}),
		"another Unicode path": one(item{name: "a", content: "x", extra: field(extraUnicodePath, 1, 0, 0, 0, 0, 'b')}),
		"local Unicode path":   one(item{name: "a", content: "x", localExtra: field(extraUnicodePath, 1, 0, 0, 0, 0, 'b')}),
		"broken extra":         one(item{name: "a", content: "x", extra: []byte{1, 0, 9}}),
		"long extra":           one(item{name: "a", content: "x", extra: []byte{9, 9, 200, 0, 1}}),
		"two Zip64 fields":     one(item{name: "a", content: "x", extra: append(field(extraZip64), field(extraZip64)...)}),
		"Zip64 size lies":      one(item{name: "a", content: "x", deflate: true, size: ptr(uint32(1<<32 - 1)), extra: field(extraZip64, 0, 0, 0, 0, 0, 0, 0, 0x80), localExtra: field(extraZip64, 0, 0, 0, 0, 0, 0, 0, 0x80)}),
		"Zip64 field missing":  one(item{name: "a", content: "x", deflate: true, size: ptr(uint32(1<<32 - 1))}),
		"Zip64 offset lies":    one(item{name: "a", content: "x", offset: ptr(uint32(1<<32 - 1)), extra: field(extraZip64, 1, 0, 0, 0, 0, 0, 0, 0)}),
		"checksum":             one(item{name: "a", content: "x", crc: ptr(uint32(1))}),
		"too long":             one(item{name: "a", content: "xyz", deflate: true, size: ptr(uint32(2))}),
		"too short":            one(item{name: "a", content: "xyz", deflate: true, size: ptr(uint32(4))}),
		"stored size":          one(item{name: "a", content: "xyz", size: ptr(uint32(2))}),
		"bad deflate":          one(item{name: "a", content: "xyz", deflate: true, packed: []byte{0xff, 0xff, 0xff}}),
		"half a deflate":       one(item{name: "a", content: "xyz", deflate: true, packed: []byte{0x4a}}),
		"more after deflate":   one(item{name: "a", content: "", deflate: true, packed: []byte{3, 0, 1, 2, 3}}),
		"descriptor lies":      one(item{name: "a", content: "x", flags: flagDescriptor, descriptor: 16, descCRC: ptr(uint32(1))}),
		"descriptor missing":   one(item{name: "a", content: "x", flags: flagDescriptor}),
		"half described":       one(item{name: "a", content: "x", flags: flagDescriptor, descriptor: 16, localCRC: ptr(uint32(1))}),
		"not described":        one(item{name: "a", content: "x", descriptor: 16}),
		"the same place":       twice,
		"prepended":            {items: files("a").items, before: "MZ junk"},
		"appended":             {items: files("a").items, after: "junk"},
		"gap":                  {items: []item{{name: "a", content: "x", gap: "hidden"}, file("b")}},
		"large gap":            {items: []item{{name: "a", content: "x", flags: flagDescriptor, descriptor: 16, gap: "hidden and more"}, file("b")}},
		"before the directory": {items: files("a").items, middle: "junk"},
		"only junk":            {middle: "junk"},
		"fewer entries":        {items: files("a", "b").items, count: ptr(uint16(1))},
		"more entries":         {items: files("a").items, count: ptr(uint16(2))},
		"many more entries":    {items: files("a").items, count: ptr(uint16(60000))},
		"directory's size":     {items: files("a").items, dirSize: ptr(uint32(1))},
		"directory's place":    {items: files("a").items, dirAt: ptr(uint32(1))},
		"directory outside":    {items: files("a").items, dirAt: ptr(uint32(1 << 31))},
		"several parts":        {items: files("a").items, disk: 1},
		"another part":         one(item{name: "a", content: "x", disk: 1}),
		"two ends":             {items: files("a").items, comment: string(archive{}.bytes())},
		"some of two counts":   ended(func(b []byte) { b[8] = 7 }),
		"some of two disks":    ended(func(b []byte) { b[6] = 7 }),
		"Zip64 count":          zip64(func(b []byte) { b[24], b[32] = 2, 2 }),
		"Zip64 counts":         zip64(func(b []byte) { b[24] = 2 }),
		"Zip64 huge count":     zip64(func(b []byte) { b[31], b[39] = 0xff, 0xff }),
		"Zip64 size":           zip64(func(b []byte) { b[40]++ }),
		"Zip64 offset":         zip64(func(b []byte) { b[48]++ }),
		"Zip64 part":           zip64(func(b []byte) { b[16] = 1 }),
		"Zip64 length":         zip64(func(b []byte) { b[4]++ }),
		"Zip64 signature":      zip64(func(b []byte) { b[0]++ }),
		"Zip64 place":          zip64(func(b []byte) { b[64]++ }),
		"Zip64 parts":          zip64(func(b []byte) { b[72] = 2 }),
		"Zip64 and small":      {items: files("a").items, zip64: true, count: ptr(uint16(2))},
	}
}

// extract unpacks a zip file next to a canary, and returns what is there then.
func extract(t *testing.T, b []byte, limits Limits) (paths []string, content map[string]string, err error) {
	t.Helper()
	parent := t.TempDir()
	dir := filepath.Join(parent, "in", "out")
	paths, err = Extract(t.Context(), bytes.NewReader(b), int64(len(b)), dir, limits)
	content = map[string]string{}
	walk := filepath.WalkDir(parent, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 != 0 {
			t.Errorf("%s: %v", path, info.Mode())
		}
		b, err := os.ReadFile(path)
		content[path] = string(b)
		return err
	})
	if walk != nil {
		t.Fatal(walk)
	}
	if _, statErr := os.Stat(dir); err != nil && !errors.Is(statErr, fs.ErrNotExist) {
		t.Errorf("after %v, the folder is there: %v", err, statErr)
	}
	for path := range content {
		if !strings.HasPrefix(path, dir+string(filepath.Separator)) {
			t.Errorf("%s is outside", path)
		}
	}
	return paths, content, err
}

// TestAccepted wants files of these zip files, whole, and nothing else.
func TestAccepted(t *testing.T) {
	for name, a := range accepted() {
		paths, content, err := extract(t, a.bytes(), Limits{})
		if err != nil || len(paths) != len(content) {
			t.Errorf("%s: %v, %d paths, %d files", name, err, len(paths), len(content))
			continue
		}
		n := 0
		for _, it := range a.items {
			if strings.HasSuffix(it.name, "/") {
				continue
			}
			if !strings.HasSuffix(paths[n], filepath.FromSlash(it.name)) || content[paths[n]] != it.content {
				t.Errorf("%s: %s: %.40q", name, paths[n], content[paths[n]])
			}
			n++
		}
		if err := Check(bytes.NewReader(a.bytes()), int64(len(a.bytes())), Limits{}); err != nil {
			t.Errorf("%s: checked: %v", name, err)
		}
	}
}

// TestRefused wants none of these to leave anything.
func TestRefused(t *testing.T) {
	for name, a := range refused() {
		paths, content, err := extract(t, a.bytes(), Limits{})
		if !errors.Is(err, ErrRefused) || paths != nil || len(content) != 0 {
			t.Errorf("%s: %v, %q, %q", name, err, paths, content)
		}
	}
	if n := len(accepted()) + len(refused()); n < 120 {
		t.Errorf("only %d cases", n)
	}
	whole := files("a", "b/c").bytes()
	for n := range len(whole) { // every beginning of a zip file
		if _, content, err := extract(t, whole[:n], Limits{}); !errors.Is(err, ErrRefused) || len(content) != 0 {
			t.Errorf("%d bytes of it: %v", n, err)
		}
	}
}

// overlapping is Fifield's bomb: entries that all have the same content, which is deflated.
func overlapping(n int, quoted bool) []byte {
	kernel := item{name: "k", content: strings.Repeat("\x00", 64<<10), deflate: true}
	kernel.packed, _ = kernel.data() // once
	var b, dir []byte
	if !quoted { // one local header for all
		b = kernel.local()
		for i := range n {
			it := kernel
			it.name = fmt.Sprintf("f%d", i)
			dir = append(dir, it.central(0)...)
		}
	} else { // each quotes the next one's header in a stored block
		kernelLocal := kernel.local()
		b = kernelLocal
		names := []string{"k"}
		offsets := []uint32{0}
		for i := range n - 1 {
			quote := append([]byte{0}, le.AppendUint16(le.AppendUint16(nil, uint16(lenLocal+1)), ^uint16(lenLocal+1))...)
			it := item{name: string(rune('A' + i%26)), method: ptr(uint16(methodDeflate)), packed: append(quote, b...), size: ptr(uint32(64 << 10))}
			b = it.local()
			for j := range offsets {
				offsets[j] += uint32(len(b) - len(it.packed) + len(quote))
			}
			names, offsets = append(names, it.name), append(offsets, 0)
		}
		for i, name := range names {
			it := item{name: name, method: ptr(uint16(methodDeflate)), packed: make([]byte, len(b)-int(offsets[i])-lenLocal-1), size: ptr(uint32(64 << 10))}
			dir = append(dir, it.central(offsets[i])...)
		}
	}
	a := archive{}.bytes()
	le.PutUint16(a[8:], uint16(n))
	le.PutUint16(a[10:], uint16(n))
	le.PutUint32(a[12:], uint32(len(dir)))
	le.PutUint32(a[16:], uint32(len(b)))
	return append(append(b, dir...), a...)
}

// TestBombs wants them refused before anything is unpacked, in little memory.
func TestBombs(t *testing.T) {
	empty := archive{}
	for i := range 20_000 {
		empty.items = append(empty.items, item{name: fmt.Sprintf("e%d", i)})
	}
	deep := archive{}
	for i := range 70 {
		deep.items = append(deep.items, item{name: fmt.Sprintf("%d/", i) + strings.Repeat("d/", 1500) + "f"})
	}
	defer func(n int64) { freeBytes = n }(freeBytes)
	freeBytes = 1 << 20
	zeros := one(item{name: "a", content: strings.Repeat("\x00", 1<<20+1), deflate: true})
	for name, c := range map[string]struct {
		b      []byte
		limits Limits
	}{
		"overlapping":        {overlapping(300, false), Limits{}},
		"quoted overlapping": {overlapping(25, true), Limits{}},
		"many empty entries": {empty.bytes(), Limits{Entries: 10_000}},
		"many folders":       {deep.bytes(), Limits{}},
		"ratio":              {zeros.bytes(), Limits{}},
		"bytes":              {files("a").bytes(), Limits{Bytes: 5}},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, content, err := extract(t, c.b, c.limits)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrRefused) || len(content) != 0 {
			t.Errorf("%s: %v", name, err)
		}
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
			t.Errorf("%s: %d bytes of memory for %d", name, grown, len(c.b))
		}
	}
	if _, _, err := extract(t, zeros.bytes(), Limits{Ratio: 2000}); err != nil {
		t.Error(err)
	}
}

// TestGoZip wants what Go's own writer makes to be taken, with and without descriptors.
func TestGoZip(t *testing.T) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, content := range map[string]string{"a/b.txt": "one", "empty": "", "big": strings.Repeat("x", 1<<20)} {
		w, err := z.Create(name)
		if err == nil {
			_, err = io.WriteString(w, content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := z.Create("folder/"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(z.SetComment("a comment"), z.Close()); err != nil {
		t.Fatal(err)
	}
	paths, content, err := extract(t, b.Bytes(), Limits{})
	if err != nil || len(paths) != 3 || len(content) != 3 {
		t.Error(paths, err)
	}
}

// TestOccupied wants nothing to be written over, and nothing of a zip file to be left beside
// what was there.
func TestOccupied(t *testing.T) {
	b := files("a", "b", "c/d").bytes()
	for _, there := range []string{"a", "b", "c"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, there), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Extract(t.Context(), bytes.NewReader(b), int64(len(b)), dir, Limits{})
		left, _ := os.ReadDir(dir)
		mine, _ := os.ReadFile(filepath.Join(dir, there))
		if !errors.Is(err, fs.ErrExist) || len(left) != 1 || string(mine) != "mine" {
			t.Errorf("%s: %v, %v, %q", there, err, left, mine)
		}
	}
	dir := t.TempDir()
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "c")); err != nil {
		t.Fatal(err)
	}
	if _, err := Extract(t.Context(), bytes.NewReader(b), int64(len(b)), dir, Limits{}); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(outside); len(left) != 0 {
		t.Error(left)
	}
	if err := os.Remove(filepath.Join(dir, "c")); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if paths, err := Extract(t.Context(), bytes.NewReader(b), int64(len(b)), dir, Limits{}); err != nil || len(paths) != 3 {
		t.Error(paths, err)
	}
}

// TestEnds wants the work to end with its context, and an error of who is read from to come
// out as what it is.
func TestEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	b := archive{items: []item{file("a"), {name: "b", content: strings.Repeat("x", 1<<20)}}}.bytes()
	dir := filepath.Join(t.TempDir(), "out")
	r := &ending{bytes.NewReader(b), int64(len(b)) / 2, cancel, nil}
	if _, err := Extract(ctx, r, int64(len(b)), dir, Limits{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	r = &ending{bytes.NewReader(b), 0, func() {}, io.ErrClosedPipe}
	if _, err := Extract(t.Context(), r, int64(len(b)), dir, Limits{}); !errors.Is(err, io.ErrClosedPipe) || errors.Is(err, ErrRefused) {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// ending is a file of which reading at a place does something, or fails.
type ending struct {
	*bytes.Reader
	at  int64
	do  func()
	err error
}

func (e *ending) ReadAt(p []byte, at int64) (int, error) {
	if at <= e.at && at+int64(len(p)) >= e.at {
		e.do()
		if e.err != nil {
			return 0, e.err
		}
	}
	return e.Reader.ReadAt(p, at)
}

// FuzzExtract wants whatever comes to be refused, or to be what Go's own reader finds in it.
func FuzzExtract(f *testing.F) {
	for _, cases := range []map[string]archive{accepted(), refused()} {
		for _, a := range cases {
			if b := a.bytes(); len(b) < 4<<10 {
				f.Add(b)
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		paths, content, err := extract(t, b, Limits{Entries: 1000, Bytes: 1 << 20})
		if err != nil {
			if len(content) != 0 {
				t.Errorf("after %v: %q", err, content)
			}
			return
		}
		z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatalf("Go cannot read it: %v", err)
		}
		n := 0
		for _, f := range z.File {
			if strings.HasSuffix(f.Name, "/") {
				continue
			}
			r, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			want, err := io.ReadAll(r)
			if err != nil || content[paths[n]] != string(want) {
				t.Errorf("%s: %q, want %q, %v", f.Name, content[paths[n]], want, err)
			}
			n++
		}
		if n != len(paths) {
			t.Errorf("%d files, want %d", len(paths), n)
		}
	})
}
