// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits of what is collected of a folder, beside those of the configuration.
const (
	// maxDepth is how many names the path of a file may have.
	maxDepth = 64
	// maxPath is the longest path in a zip, in bytes.
	maxPath = 1024
	// maxPaths is how many bytes all paths of a zip may have: they are in memory.
	maxPaths = 4 << 20
	// walkTime is how long looking may take.
	walkTime = 5 * time.Second
	// walkBatch is how many entries of a folder are read at a time.
	walkBatch = 512
)

// maxLooked is how many entries are looked at. A variable for tests.
var maxLooked = 250_000

// limits are those of the configuration.
type limits struct {
	entries int   // files and folders of a zip
	size    int64 // of all files together, in bytes
}

// Why files are left out.
const (
	isLink    = "symbolic link"
	isSpecial = "not a regular file" // a FIFO, a socket, a device
	isOutside = "linked from outside of the folder"
	isForeign = "on another file system"
	isDeep    = "path too deep"
	isLong    = "path too long"
	isTwice   = "another file has its name in the zip"
	isSecret  = "not readable"
	isChanged = "changed while it was collected"
	isMany    = "over the number of files"
	isLarge   = "over the size of all files"
	isUnseen  = "not looked at: too many"
)

// file is a regular file or a folder that is collected.
type file struct {
	path  string // below the folder, as the agent has named it
	id    fileID
	size  int64 // that is read
	mtime int64 // Unix time in seconds
	dir   bool
}

// walk looks through a folder. It follows no link and opens nothing but folders. It
// ends in bounded time, whatever is in the folder, and whoever changes that meanwhile.
type walk struct {
	root    *os.Root // of the folder
	device  uint64
	limits  limits
	end     time.Time
	folders []file // still to be looked through
	found   []file
	skipped skipped

	looked  int
	cut     bool           // what is left is not looked at
	paths   int            // bytes of the paths found
	size    int64          // bytes of the files found
	escaped bool           // a name in the zip is not as the agent wrote it
	links   map[fileID]int // of files with more names than one: those found, less those that there are
}

// look finds what is to be collected of a folder.
func look(ctx context.Context, root *os.Root, l limits) (*walk, error) {
	fi, err := root.Lstat(".")
	if err != nil {
		return nil, err
	}
	id := idOf(fi)
	w := &walk{root: root, device: id.device, limits: l, end: time.Now().Add(walkTime), links: make(map[fileID]int)}
	w.folders = []file{{path: ".", id: id, dir: true}}
	for len(w.folders) > 0 && !w.cut {
		last := len(w.folders) - 1
		dir := w.folders[last]
		w.folders = w.folders[:last]
		if err := w.folder(ctx, dir); err != nil {
			return nil, err
		}
	}
	w.settle()
	return w, nil
}

// folder looks through one folder.
func (w *walk) folder(ctx context.Context, dir file) error {
	f, why, err := openFile(w.root, dir)
	if why != "" {
		w.skipped.add(why, dir.path)
	}
	if f == nil {
		return err
	}
	defer f.Close()
	for {
		batch, err := f.ReadDir(walkBatch)
		for _, d := range batch {
			if w.looked++; w.looked > maxLooked || time.Now().After(w.end) {
				w.cut = true
				w.skipped.add(isUnseen, dir.path)
				return nil
			}
			path := below(dir.path, d.Name())
			if why := w.entry(path, d.Type()); why != "" {
				w.skipped.add(why, path)
			}
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// entry takes in an entry of a folder, or says why not.
func (w *walk) entry(path string, kind fs.FileMode) (why string) {
	name := zipName(path)
	switch {
	case kind == fs.ModeSymlink:
		return isLink
	case kind != 0 && kind != fs.ModeDir:
		return isSpecial
	case len(w.found) >= w.limits.entries || w.paths+len(path) > maxPaths:
		return isMany
	case strings.Count(path, "/") >= maxDepth:
		return isDeep
	case len(name) >= maxPath:
		return isLong
	}
	fi, err := w.root.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return isSecret
	case err != nil || fi.Mode().Type() != kind:
		return isChanged
	case idOf(fi).device != w.device:
		return isForeign
	case !fi.IsDir() && fi.Size() > w.limits.size-w.size:
		return isLarge
	}
	w.take(path, fi)
	w.escaped = w.escaped || name != path
	return ""
}

// take takes in a regular file or a folder.
func (w *walk) take(path string, fi fs.FileInfo) {
	f := file{path: path, id: idOf(fi), mtime: fi.ModTime().Unix(), dir: fi.IsDir()}
	if f.dir {
		w.folders = append(w.folders, f)
	} else {
		f.size = fi.Size()
		if n := namesOf(fi); n > 1 {
			if _, ok := w.links[f.id]; !ok {
				w.links[f.id] = -n
			}
			w.links[f.id]++
		}
	}
	w.paths += len(path)
	w.size += f.size
	w.found = append(w.found, f)
}

// settle puts what was found in order, and leaves out what the whole walk tells: files
// that have names outside of the folder, and those whose name in the zip is another's.
func (w *walk) settle() {
	slices.SortFunc(w.found, func(a, b file) int { return cmp.Compare(a.path, b.path) })
	taken := make(map[string]bool)
	for _, f := range w.found {
		if w.escaped && zipName(f.path) == f.path {
			taken[f.path] = true
		}
	}
	w.found = slices.DeleteFunc(w.found, func(f file) bool {
		name := zipName(f.path)
		switch {
		case w.links[f.id] < 0:
			w.skipped.add(isOutside, f.path)
			return true
		case name != f.path && taken[name]:
			w.skipped.add(isTwice, f.path)
			return true
		}
		if w.escaped {
			taken[name] = true
		}
		return false
	})
}

// below returns the path of an entry of a folder.
func below(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// openFile opens what was found, when it still is what it was, or says why it is left
// out. Whatever has come into its place meanwhile is not waited for, as a FIFO would
// have it, and not read, wherever a link leads.
func openFile(root *os.Root, f file) (opened *os.File, why string, err error) {
	flag := os.O_RDONLY | syscall.O_NONBLOCK
	if f.dir {
		flag |= openDir
	}
	opened, err = root.OpenFile(f.path, flag, 0)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, isSecret, nil
	case slices.ContainsFunc([]error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EIO}, func(ours error) bool { return errors.Is(err, ours) }):
		return nil, "", err
	case err != nil:
		return nil, isChanged, nil
	}
	fi, err := opened.Stat()
	if err == nil && idOf(fi) == f.id && fi.IsDir() == f.dir && (f.dir || fi.Mode().IsRegular()) {
		return opened, "", nil
	}
	_ = opened.Close()
	return nil, isChanged, err
}

// zipName returns the name that a path has in a zip: as it is, but that what is not
// UTF-8, and control characters and backslashes, are written as a percent sign and two
// hex digits for each byte.
func zipName(path string) string {
	plain := func(r rune, n int) bool { return (r != utf8.RuneError || n > 1) && r != '\\' && !unicode.IsControl(r) }
	var b strings.Builder
	for i := 0; i < len(path); {
		r, n := utf8.DecodeRuneInString(path[i:])
		if plain(r, n) {
			b.WriteString(path[i : i+n])
		} else {
			for _, c := range []byte(path[i : i+n]) {
				fmt.Fprintf(&b, "%%%02X", c)
			}
		}
		i += n
	}
	return b.String()
}
