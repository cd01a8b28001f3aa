// SPDX-License-Identifier: Apache-2.0

package unzip

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
)

// Signatures and sizes of a zip file's records, by PKWARE's APPNOTE.
const (
	sigLocal      = 0x04034b50
	sigCentral    = 0x02014b50
	sigEnd        = 0x06054b50
	sigEnd64      = 0x06064b50
	sigLocator64  = 0x07064b50
	sigDescriptor = 0x08074b50

	lenLocal     = 30
	lenCentral   = 46
	lenEnd       = 22
	lenEnd64     = 56
	lenLocator64 = 20

	// maxDirectory bounds the directory of a zip file, in bytes.
	maxDirectory = 16 << 20
)

// le reads numbers.
var le = binary.LittleEndian

// readAt reads so many bytes.
func readAt(r io.ReaderAt, at, n int64) ([]byte, error) {
	b := make([]byte, n)
	got, err := r.ReadAt(b, at)
	if int64(got) == n {
		return b, nil
	}
	if err == io.EOF {
		return nil, refuse("it ends early")
	}
	return nil, err
}

// directory is where the entries of a zip file are.
type directory struct{ offset, size, count int64 }

// findDirectory reads the end of a zip file.
func findDirectory(r io.ReaderAt, size int64) (directory, error) {
	at, end, err := findEnd(r, size)
	if err != nil {
		return directory{}, err
	}
	if le.Uint16(end[4:]) != le.Uint16(end[6:]) || le.Uint16(end[8:]) != le.Uint16(end[10:]) {
		return directory{}, refuse("it is a part of several")
	}
	d := directory{count: int64(le.Uint16(end[10:])), size: int64(le.Uint32(end[12:])), offset: int64(le.Uint32(end[16:]))}
	disk := le.Uint16(end[4:])
	if at >= lenLocator64 {
		locator, err := readAt(r, at-lenLocator64, lenLocator64)
		if err != nil {
			return d, err
		}
		if le.Uint32(locator) == sigLocator64 {
			if at, err = d.large(r, at-lenLocator64, locator); err != nil {
				return d, err
			}
			if disk == math.MaxUint16 {
				disk = 0
			}
		}
	}
	switch {
	case disk != 0:
		return d, refuse("it is a part of several")
	case d.offset < 0 || d.size < 0 || d.count < 0 || d.offset > at || d.size != at-d.offset:
		return d, refuse("its directory is not where it says")
	case d.size > maxDirectory:
		return d, refuse("its directory is over %d bytes", maxDirectory)
	case d.count > d.size/lenCentral:
		return d, refuse("it has not the entries that it says")
	}
	return d, nil
}

// findEnd finds the record at the end of a zip file. There must be one that could be it.
func findEnd(r io.ReaderAt, size int64) (at int64, end []byte, err error) {
	if size < lenEnd {
		return 0, nil, refuse("it is no zip file")
	}
	n := min(size, lenEnd+math.MaxUint16)
	tail, err := readAt(r, size-n, n)
	if err != nil {
		return 0, nil, err
	}
	found := -1
	for i := len(tail) - lenEnd; i >= 0; i-- {
		if le.Uint32(tail[i:]) != sigEnd || i+lenEnd+int(le.Uint16(tail[i+20:])) != len(tail) {
			continue
		}
		if found >= 0 {
			return 0, nil, refuse("it can be read in two ways")
		}
		found = i
	}
	if found < 0 {
		return 0, nil, refuse("it is no zip file, or not all of one")
	}
	return size - n + int64(found), tail[found : found+lenEnd], nil
}

// large reads the numbers of a large zip file, whose locator is at a place. Where the small
// numbers are there as well, they must be the same. It returns where the directory ends.
func (d *directory) large(r io.ReaderAt, place int64, locator []byte) (int64, error) {
	at := le.Uint64(locator[8:])
	if le.Uint32(locator[4:]) != 0 || le.Uint32(locator[16:]) > 1 || place < lenEnd64 || at != uint64(place-lenEnd64) {
		return 0, refuse("its Zip64 record is not where it says")
	}
	b, err := readAt(r, int64(at), lenEnd64)
	if err != nil {
		return 0, err
	}
	if le.Uint32(b) != sigEnd64 || le.Uint64(b[4:]) != lenEnd64-12 || le.Uint64(b[16:]) != 0 || le.Uint64(b[24:]) != le.Uint64(b[32:]) {
		return 0, refuse("its Zip64 record is damaged")
	}
	for _, f := range []struct {
		small *int64
		none  int64 // the small number that says to look here
		large uint64
	}{
		{&d.count, math.MaxUint16, le.Uint64(b[32:])},
		{&d.size, math.MaxUint32, le.Uint64(b[40:])},
		{&d.offset, math.MaxUint32, le.Uint64(b[48:])},
	} {
		if f.large > math.MaxInt64 || *f.small != f.none && uint64(*f.small) != f.large {
			return 0, refuse("its Zip64 record says something else")
		}
		*f.small = int64(f.large)
	}
	return int64(at), nil
}

// Methods of compression that are unpacked.
const (
	methodStore   = 0
	methodDeflate = 8
)

// Flags of an entry.
const (
	flagDescriptor = 1 << 3
	flagUTF8       = 1 << 11
	flagsAllowed   = flagDescriptor | flagUTF8 | 1<<1 | 1<<2 // the last two say how it was compressed
)

// entry is a file or a folder in a zip file.
type entry struct {
	name   string // without a slash at its end
	folder bool
	flags  uint16
	method uint16
	crc    uint32
	packed int64 // size as it is in the zip file
	size   int64
	header int64 // where its local header is
	data   int64 // where its content is
	large  bool  // it has Zip64 numbers
}

// central reads an entry of the directory, which b begins with. It returns what follows.
func central(b []byte) (e entry, rest []byte, err error) {
	if len(b) < lenCentral || le.Uint32(b) != sigCentral {
		return e, nil, refuse("its directory is damaged")
	}
	nameLen, extraLen, commentLen := int(le.Uint16(b[28:])), int(le.Uint16(b[30:])), int(le.Uint16(b[32:]))
	if len(b)-lenCentral < nameLen+extraLen+commentLen {
		return e, nil, refuse("its directory is damaged")
	}
	name := b[lenCentral : lenCentral+nameLen]
	extra := b[lenCentral+nameLen : lenCentral+nameLen+extraLen]
	rest = b[lenCentral+nameLen+extraLen+commentLen:]
	e = entry{
		flags: le.Uint16(b[8:]), method: le.Uint16(b[10:]), crc: le.Uint32(b[16:]),
		packed: int64(le.Uint32(b[20:])), size: int64(le.Uint32(b[24:])), header: int64(le.Uint32(b[42:])),
	}
	if e.name, e.folder, err = checkName(string(name)); err != nil {
		return e, nil, err
	}
	if le.Uint16(b[34:]) != 0 {
		return e, nil, refuse("%q: it is in another part", e.name)
	}
	if err := e.extra(extra, name, &e.size, &e.packed, &e.header); err != nil {
		return e, nil, err
	}
	if err := checkType(&e, le.Uint32(b[38:])); err != nil {
		return e, nil, err
	}
	return e, rest, e.check()
}

// Kinds of extra fields that matter.
const (
	extraZip64       = 0x0001
	extraUnicodePath = 0x7075
	extraAES         = 0x9901
)

// extra reads the extra fields of an entry. Numbers that are as large as they can be are
// replaced by those of the Zip64 field, in this order.
func (e *entry) extra(b, name []byte, numbers ...*int64) error {
	seen := false
	for len(b) > 0 {
		if len(b) < 4 || len(b)-4 < int(le.Uint16(b[2:])) {
			return refuse("%q: its extra fields are damaged", e.name)
		}
		kind, field := le.Uint16(b), b[4:4+int(le.Uint16(b[2:]))]
		b = b[4+len(field):]
		switch kind {
		case extraZip64:
			if seen {
				return refuse("%q: it has two Zip64 fields", e.name)
			}
			seen, e.large = true, true
			for _, n := range numbers {
				if *n != math.MaxUint32 {
					continue
				}
				if len(field) < 8 || le.Uint64(field) > math.MaxInt64 {
					return refuse("%q: its Zip64 field is damaged", e.name)
				}
				*n, field = int64(le.Uint64(field)), field[8:]
			}
		case extraUnicodePath:
			if len(field) < 5 || !bytes.Equal(field[5:], name) {
				return refuse("%q: it has another name, too", e.name)
			}
		case extraAES:
			return refuse("%q: it is encrypted", e.name)
		}
	}
	for _, n := range numbers {
		if *n == math.MaxUint32 && !seen {
			return refuse("%q: its Zip64 field is missing", e.name)
		}
	}
	return nil
}

// check returns an error for what is not unpacked.
func (e *entry) check() error {
	switch {
	case e.flags&1 != 0 || e.flags&(1<<6) != 0 || e.flags&(1<<13) != 0:
		return refuse("%q: it is encrypted", e.name)
	case e.flags&^flagsAllowed != 0:
		return refuse("%q: it has flags that are not known", e.name)
	case e.method != methodStore && e.method != methodDeflate:
		return refuse("%q: it is compressed in a way that is not known", e.name)
	case e.method == methodStore && e.size != e.packed:
		return refuse("%q: its sizes do not agree", e.name)
	case e.folder && e.size != 0:
		return refuse("%q: it is a folder and has a content", e.name)
	}
	return nil
}
