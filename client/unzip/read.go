// SPDX-License-Identifier: Apache-2.0

package unzip

import (
	"io"
	"math"
	"slices"
)

// read reads the structure of a zip file, and refuses one that is not sound.
func read(r io.ReaderAt, size int64, limits Limits) ([]entry, error) {
	d, err := findDirectory(r, size)
	if err != nil {
		return nil, err
	}
	if d.count > int64(limits.Entries) {
		return nil, refuse("it has more than %d files and folders", limits.Entries)
	}
	b, err := readAt(r, d.offset, d.size)
	if err != nil {
		return nil, err
	}
	entries := make([]entry, 0, d.count)
	names := newTree(limits.Entries)
	left := min(limits.Bytes, max(freeBytes, saturated(size, limits.Ratio)))
	for range d.count {
		var e entry
		if e, b, err = central(b); err != nil {
			return nil, err
		}
		if err := names.add(e.name, e.folder); err != nil {
			return nil, err
		}
		if left -= e.size; left < 0 {
			return nil, refuse("it holds too much, or far more than its size")
		}
		entries = append(entries, e)
	}
	if len(b) > 0 {
		return nil, refuse("it has more entries than it says")
	}
	return entries, checkPlaces(r, entries, d.offset)
}

// saturated is a product that stays in range.
func saturated(a, b int64) int64 {
	if a > 0 && b > math.MaxInt64/a {
		return math.MaxInt64
	}
	return a * b
}

// checkPlaces wants the entries to follow each other, from the begin of the file to its
// directory, without gaps, so that none has a content with another; and their local headers
// to say the same as the directory.
func checkPlaces(r io.ReaderAt, entries []entry, end int64) error {
	order := make([]*entry, len(entries))
	for i := range entries {
		order[i] = &entries[i]
	}
	slices.SortFunc(order, func(a, b *entry) int {
		switch {
		case a.header < b.header:
			return -1
		case a.header > b.header:
			return 1
		}
		return 0
	})
	at := int64(0)
	for i, e := range order {
		next := end
		if i+1 < len(order) {
			next = order[i+1].header
		}
		if e.header != at {
			return refuse("%q: it does not follow what is before it", e.name)
		}
		if err := e.local(r, next); err != nil {
			return err
		}
		at = next
	}
	if at != end {
		return refuse("there is something before its directory")
	}
	return nil
}

// local checks the local header, and that content and descriptor end at next.
func (e *entry) local(r io.ReaderAt, next int64) error {
	if next-e.header < lenLocal {
		return refuse("%q: it lies over another", e.name)
	}
	b, err := readAt(r, e.header, lenLocal)
	if err != nil {
		return err
	}
	nameLen, extraLen := int64(le.Uint16(b[26:])), int64(le.Uint16(b[28:]))
	e.data = e.header + lenLocal + nameLen + extraLen
	if le.Uint32(b) != sigLocal || e.data > next || e.packed > next-e.data {
		return refuse("%q: it lies over another, or its header is damaged", e.name)
	}
	more, err := readAt(r, e.header+lenLocal, nameLen+extraLen)
	if err != nil {
		return err
	}
	name := more[:nameLen]
	want := e.name
	if e.folder {
		want += "/"
	}
	l := entry{name: e.name, packed: int64(le.Uint32(b[18:])), size: int64(le.Uint32(b[22:]))}
	if err := l.extra(more[nameLen:], name, &l.size, &l.packed); err != nil {
		return err
	}
	if string(name) != want || le.Uint16(b[6:]) != e.flags || le.Uint16(b[8:]) != e.method {
		return refuse("%q: its two headers do not agree", e.name)
	}
	return e.checkNumbers(r, le.Uint32(b[14:]), &l, next)
}

// checkNumbers compares the checksum and sizes of the local header, or of the descriptor
// that follows the content, with those of the directory.
func (e *entry) checkNumbers(r io.ReaderAt, crc uint32, l *entry, next int64) error {
	gap := next - e.data - e.packed
	same := crc == e.crc && l.packed == e.packed && l.size == e.size
	if e.flags&flagDescriptor == 0 {
		if !same || gap != 0 {
			return refuse("%q: its two headers do not agree", e.name)
		}
		return nil
	}
	if !same && (crc != 0 || l.packed != 0 || l.size != 0) {
		return refuse("%q: its two headers do not agree", e.name)
	}
	if gap > 24 {
		return refuse("%q: there is something after it", e.name)
	}
	b, err := readAt(r, next-gap, gap)
	if err != nil {
		return err
	}
	if !e.isDescriptor(b) {
		return refuse("%q: its descriptor does not agree with the directory", e.name)
	}
	return nil
}

// isDescriptor reports whether b is a descriptor of the entry, of one of the four forms.
func (e *entry) isDescriptor(b []byte) bool {
	if len(b) == 16 || len(b) == 24 {
		if le.Uint32(b) != sigDescriptor {
			return false
		}
		b = b[4:]
	}
	switch len(b) {
	case 12:
		return le.Uint32(b) == e.crc && int64(le.Uint32(b[4:])) == e.packed && int64(le.Uint32(b[8:])) == e.size
	case 20:
		return le.Uint32(b) == e.crc && le.Uint64(b[4:]) == uint64(e.packed) && le.Uint64(b[12:]) == uint64(e.size)
	}
	return false
}
