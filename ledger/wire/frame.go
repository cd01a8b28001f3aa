// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Limits of the frames.
const (
	// MaxPage is how many entries one answer may have.
	MaxPage = 1000

	maxHeadFrame  = 64 << 10
	maxEntryFrame = 1 << 20
	maxPageBytes  = 32 << 20
	maxMessage    = 1 << 10
)

// noComment is the length that stands for an error in place of a comment's text.
const noComment = 0xffffffff

// ErrNoComment says that the other side does not have the text.
var ErrNoComment = errors.New("the peer does not have the comment")

// Range asks for entries: from which index or rowid on, and how many at most.
type Range struct{ From, Count uint64 }

// WriteRange writes a request.
func WriteRange(w io.Writer, r Range) error {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], r.From)
	binary.BigEndian.PutUint64(b[8:], r.Count)
	_, err := w.Write(b[:])
	return err
}

// ReadRange reads a request. More than [MaxPage] is cut to that.
func ReadRange(r io.Reader) (Range, error) {
	var b [16]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Range{}, err
	}
	return Range{binary.BigEndian.Uint64(b[:]), min(binary.BigEndian.Uint64(b[8:]), MaxPage)}, nil
}

// Item is one entry of a page. Entry is not parsed, and is nil when it was too large to
// be one.
type Item struct {
	Index uint64
	Entry []byte
}

// WritePage writes an answer.
func WritePage(w io.Writer, items []Item) error {
	b := binary.BigEndian.AppendUint64(nil, uint64(len(items)))
	for _, i := range items {
		b = binary.BigEndian.AppendUint64(b, i.Index)
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(i.Entry))), i.Entry...)
	}
	_, err := w.Write(b)
	return err
}

// ReadPage reads an answer of at most limit entries.
func ReadPage(r io.Reader, limit uint64) ([]Item, error) {
	var head [12]byte
	if _, err := io.ReadFull(r, head[:8]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint64(head[:])
	if n > limit || n > MaxPage {
		return nil, fmt.Errorf("%w: %d entries", ErrBad, n)
	}
	var items []Item
	for left := int64(maxPageBytes); n > 0; n-- {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return nil, err
		}
		size := int64(binary.BigEndian.Uint32(head[8:]))
		if left -= size + int64(len(head)); size > maxEntryFrame || left < 0 {
			return nil, fmt.Errorf("%w: an entry of %d bytes", ErrBad, size)
		}
		i := Item{Index: binary.BigEndian.Uint64(head[:])}
		if size > MaxEntry {
			if _, err := io.CopyN(io.Discard, r, size); err != nil {
				return nil, err
			}
		} else {
			i.Entry = make([]byte, size)
			if _, err := io.ReadFull(r, i.Entry); err != nil {
				return nil, err
			}
		}
		items = append(items, i)
	}
	return items, nil
}

// WriteBytes writes bytes with their length before them.
func WriteBytes(w io.Writer, v []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(v))), v...))
	return err
}

// readBytes reads bytes with their length before them.
func readBytes(r io.Reader, limit uint32) ([]byte, error) {
	n, err := readLength(r)
	if err != nil {
		return nil, err
	}
	return readLong(r, n, limit)
}

func readLength(r io.Reader) (uint32, error) {
	var b [4]byte
	_, err := io.ReadFull(r, b[:])
	return binary.BigEndian.Uint32(b[:]), err
}

func readLong(r io.Reader, n, limit uint32) ([]byte, error) {
	if n > limit {
		return nil, fmt.Errorf("%w: %d bytes where there may be %d", ErrBad, n, limit)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

// ReadHead reads the answer of [HeadProtocol]; nil when the peer has no head yet.
func ReadHead(r io.Reader) (*Head, error) {
	b, err := readBytes(r, maxHeadFrame)
	if err != nil || len(b) == 0 {
		return nil, err
	}
	return ParseHead(b)
}

// ReadCID reads the request of [CommentProtocol].
func ReadCID(r io.Reader) ([]byte, error) {
	cid, err := readBytes(r, maxPeer)
	if err != nil {
		return nil, err
	}
	return cid, CheckCID(cid)
}

// WriteNoComment writes that there is no such comment.
func WriteNoComment(w io.Writer, why string) error {
	b := binary.BigEndian.AppendUint32(nil, noComment)
	_, err := w.Write(append(binary.BigEndian.AppendUint32(b, uint32(len(why))), why...))
	return err
}

// ReadComment reads the answer of [CommentProtocol] to the request for a cid. The error
// is [ErrNoComment] when the peer does not have it.
func ReadComment(r io.Reader, cid []byte) ([]byte, error) {
	n, err := readLength(r)
	if err != nil {
		return nil, err
	}
	if n == noComment {
		if _, err := readBytes(r, maxMessage); err != nil {
			return nil, err
		}
		return nil, ErrNoComment
	}
	b, err := readLong(r, n, MaxComment)
	if err != nil {
		return nil, err
	}
	return b, CheckComment(b, cid)
}
