// SPDX-License-Identifier: Apache-2.0

package unzip

import (
	"bytes"
	"compress/flate"
	"hash/crc32"
	"math"
)

// item is an entry of a zip file that is made for a test. What it says of itself may be wrong.
type item struct {
	name    string
	content string
	deflate bool

	mode       uint32 // external attributes
	flags      uint16
	method     *uint16
	localName  *string // if it is another
	localFlags *uint16
	localCRC   *uint32
	localSize  *uint32
	crc        *uint32
	size       *uint32 // unpacked, in both headers
	packed     []byte  // in place of the content
	offset     *uint32
	disk       uint16
	extra      []byte // central
	localExtra []byte
	descriptor int // bytes of it; with the flag
	descCRC    *uint32
	gap        string // between it and what follows
	comment    string
}

// archive is a zip file that is made for a test.
type archive struct {
	items   []item
	before  string // prepended
	after   string // appended
	middle  string // before the directory
	comment string
	count   *uint16
	dirSize *uint32
	dirAt   *uint32
	disk    uint16
	zip64   bool
	zip64At func(b []byte) // changes the Zip64 record and locator
	end     func(b []byte) // changes the end record
}

// or returns *p, or v when p is nil.
func or[T any](p *T, v T) T {
	if p != nil {
		return *p
	}
	return v
}

// bytes returns the zip file.
func (a archive) bytes() []byte {
	b := []byte(a.before)
	var dir []byte
	for _, it := range a.items {
		at := len(b)
		b = append(b, it.local()...)
		dir = append(dir, it.central(uint32(at))...)
	}
	b = append(b, a.middle...)
	at := len(b)
	b = append(b, dir...)
	size, offset, count := uint32(len(dir)), uint32(at), uint16(len(a.items))
	if a.zip64 {
		place := len(b)
		r := le.AppendUint32(nil, sigEnd64)
		r = le.AppendUint64(r, lenEnd64-12)
		r = le.AppendUint16(le.AppendUint16(r, 45), 45)
		r = le.AppendUint32(le.AppendUint32(r, 0), 0)
		r = le.AppendUint64(le.AppendUint64(r, uint64(count)), uint64(count))
		r = le.AppendUint64(le.AppendUint64(r, uint64(size)), uint64(offset))
		r = le.AppendUint32(le.AppendUint32(r, sigLocator64), 0)
		r = le.AppendUint32(le.AppendUint64(r, uint64(place)), 1)
		if a.zip64At != nil {
			a.zip64At(r)
		}
		b = append(b, r...)
		size, offset, count = math.MaxUint32, math.MaxUint32, math.MaxUint16
	}
	e := le.AppendUint32(nil, sigEnd)
	e = le.AppendUint16(le.AppendUint16(e, a.disk), a.disk)
	e = le.AppendUint16(le.AppendUint16(e, or(a.count, count)), or(a.count, count))
	e = le.AppendUint32(le.AppendUint32(e, or(a.dirSize, size)), or(a.dirAt, offset))
	e = append(le.AppendUint16(e, uint16(len(a.comment))), a.comment...)
	if a.end != nil {
		a.end(e)
	}
	return append(append(b, e...), a.after...)
}

// data returns the content as it is in the zip file, and its method.
func (it *item) data() ([]byte, uint16) {
	method := uint16(methodStore)
	data := []byte(it.content)
	if it.deflate {
		method = methodDeflate
		var b bytes.Buffer
		w, _ := flate.NewWriter(&b, flate.BestCompression)
		_, _ = w.Write(data)
		_ = w.Close()
		data = b.Bytes()
	}
	if it.packed != nil {
		data = it.packed
	}
	return data, or(it.method, method)
}

// local returns the local header, the content and the descriptor.
func (it *item) local() []byte {
	data, method := it.data()
	crc, size, packed := crc32.ChecksumIEEE([]byte(it.content)), uint32(len(it.content)), uint32(len(data))
	size = or(it.size, size)
	name := or(it.localName, it.name)
	b := le.AppendUint32(nil, sigLocal)
	b = le.AppendUint16(b, 20)
	b = le.AppendUint16(b, or(it.localFlags, it.flags))
	b = le.AppendUint32(le.AppendUint16(b, method), 0)
	if it.flags&flagDescriptor != 0 && it.localCRC == nil {
		b = append(b, make([]byte, 12)...)
	} else {
		b = le.AppendUint32(b, or(it.localCRC, or(it.crc, crc)))
		b = le.AppendUint32(le.AppendUint32(b, packed), or(it.localSize, size))
	}
	b = le.AppendUint16(le.AppendUint16(b, uint16(len(name))), uint16(len(it.localExtra)))
	b = append(append(append(b, name...), it.localExtra...), data...)
	d := []byte{}
	if it.descriptor == 16 || it.descriptor == 24 {
		d = le.AppendUint32(d, sigDescriptor)
	}
	d = le.AppendUint32(d, or(it.descCRC, crc))
	switch it.descriptor {
	case 12, 16:
		d = le.AppendUint32(le.AppendUint32(d, packed), size)
	case 20, 24:
		d = le.AppendUint64(le.AppendUint64(d, uint64(packed)), uint64(size))
	default:
		d = nil
	}
	return append(append(b, d...), it.gap...)
}

// central returns the entry of the directory.
func (it *item) central(at uint32) []byte {
	data, method := it.data()
	b := le.AppendUint32(nil, sigCentral)
	b = le.AppendUint16(le.AppendUint16(b, 3<<8|20), 20)
	b = le.AppendUint16(le.AppendUint16(b, it.flags), method)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, or(it.crc, crc32.ChecksumIEEE([]byte(it.content))))
	b = le.AppendUint32(le.AppendUint32(b, uint32(len(data))), or(it.size, uint32(len(it.content))))
	b = le.AppendUint16(le.AppendUint16(b, uint16(len(it.name))), uint16(len(it.extra)))
	b = le.AppendUint16(le.AppendUint16(b, uint16(len(it.comment))), it.disk)
	b = le.AppendUint32(le.AppendUint16(b, 0), it.mode)
	b = le.AppendUint32(b, or(it.offset, at))
	return append(append(append(b, it.name...), it.extra...), it.comment...)
}

// field is an extra field.
func field(kind uint16, content ...byte) []byte {
	return append(le.AppendUint16(le.AppendUint16(nil, kind), uint16(len(content))), content...)
}
