// SPDX-License-Identifier: Apache-2.0

// Package unzip unpacks zip files of strangers. What it takes is what every reader
// understands in one way: regular files and folders, with names that are good on every
// system, whose headers agree, one after the other. All else is refused, before anything
// is written where it can be known by then. Nothing is written outside of the folder, and
// a file that is refused leaves nothing in it.
package unzip

import (
	"bufio"
	"compress/flate"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path"
	"path/filepath"
)

// Limits bound what a zip file may hold. A field that is 0 has its default.
type Limits struct {
	// Entries is how many files and folders there may be: 100,000.
	Entries int
	// Bytes is how much they may be when they are unpacked: 5 GiB.
	Bytes int64
	// Ratio is how many times larger than the zip file they may be: 200. The first 64 MiB
	// are always allowed.
	Ratio int64
}

// Defaults of [Limits].
const (
	DefaultEntries = 100_000
	DefaultBytes   = 5 << 30
	DefaultRatio   = 200
)

// freeBytes may be unpacked whatever the ratio is. A variable for tests.
var freeBytes int64 = 64 << 20

// withDefaults returns the limits without zeros.
func (l Limits) withDefaults() Limits {
	if l.Entries == 0 {
		l.Entries = DefaultEntries
	}
	if l.Bytes == 0 {
		l.Bytes = DefaultBytes
	}
	if l.Ratio == 0 {
		l.Ratio = DefaultRatio
	}
	return l
}

// ErrRefused is wrapped by the error for a file that is no zip file, is damaged, or holds
// what is not allowed. Test with [errors.Is].
var ErrRefused = errors.New("refused zip file")

// refuse returns an error that wraps [ErrRefused].
func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
}

// Check returns an error when a zip file of so many bytes would not be unpacked because of
// its structure. What is wrong with its contents shows only when it is unpacked.
func Check(r io.ReaderAt, size int64, limits Limits) error {
	_, err := read(r, size, limits.withDefaults())
	return err
}

// Extract unpacks a zip file of so many bytes into the folder dir, which it makes where it
// is not there. It returns the paths of the files, in the order that they have in the zip
// file. No file and no folder at the top of it may be in dir already. Files are readable,
// and never executable. The work ends with ctx.
//
// Until all of it is unpacked, it is in a folder ".unzip-…" in dir, which is left only when
// the process is killed.
func Extract(ctx context.Context, r io.ReaderAt, size int64, dir string, limits Limits) ([]string, error) {
	entries, err := read(r, size, limits.withDefaults())
	if err != nil {
		return nil, err
	}
	err = place(dir, func(root *os.Root) error {
		for i := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := entries[i].write(ctx, r, root); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if !e.folder {
			files = append(files, filepath.Join(dir, filepath.FromSlash(e.name)))
		}
	}
	return files, nil
}

// Modes of what is made.
const (
	folderMode = 0o755
	fileMode   = 0o644
)

// write makes the file or folder below root.
func (e *entry) write(ctx context.Context, r io.ReaderAt, root *os.Root) error {
	if e.folder {
		return root.MkdirAll(filepath.FromSlash(e.name), folderMode)
	}
	if parent := path.Dir(e.name); parent != "." {
		if err := root.MkdirAll(filepath.FromSlash(parent), folderMode); err != nil {
			return err
		}
	}
	f, err := root.OpenFile(filepath.FromSlash(e.name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, fileMode)
	if err != nil {
		return err
	}
	err = e.copy(ctx, r, f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// copy writes the content to w, which gets no more than the entry says that it has.
func (e *entry) copy(ctx context.Context, r io.ReaderAt, w io.Writer) error {
	packed := bufio.NewReaderSize(io.NewSectionReader(r, e.data, e.packed), 64<<10)
	content := io.Reader(packed)
	if e.method == methodDeflate {
		inflate := flate.NewReader(packed)
		defer inflate.Close()
		content = inflate
	}
	sum := crc32.NewIEEE()
	n, err := io.Copy(io.MultiWriter(sum, w), &limited{ctx, content, e.size})
	_, rest := packed.ReadByte()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && !isData(err):
		return err
	case err != nil:
		return refuse("%q: %w", e.name, err)
	case n != e.size:
		return refuse("%q: it has %d bytes, and says that it has %d", e.name, n, e.size)
	case rest != io.EOF:
		return refuse("%q: there is more after its end", e.name)
	case sum.Sum32() != e.crc:
		return refuse("%q: the checksum is wrong", e.name)
	}
	return nil
}

// errTooLong says that a content is longer than it is said to be.
var errTooLong = errors.New("it is larger than it says")

// isData reports whether an error is the fault of what was read.
func isData(err error) bool {
	_, corrupt := errors.AsType[flate.CorruptInputError](err)
	return corrupt || errors.Is(err, errTooLong) || errors.Is(err, io.ErrUnexpectedEOF)
}

// limited reads at most so many bytes, and an error instead of more. It ends with ctx.
type limited struct {
	ctx  context.Context
	r    io.Reader
	left int64
}

// Read implements io.Reader.
func (l *limited) Read(p []byte) (int, error) {
	if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	if l.left == 0 { // is this the end?
		var one [1]byte
		n, err := io.ReadFull(l.r, one[:])
		if n > 0 {
			return 0, errTooLong
		}
		return 0, err
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}
