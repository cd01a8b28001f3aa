// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"time"
	"unicode/utf8"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"
)

// Kind is the kind of an entry.
type Kind int

// Kinds of entries. The number is that of the field in which an entry travels.
const (
	Rating  Kind = 1
	Comment Kind = 2
)

// String implements fmt.Stringer.
func (k Kind) String() string {
	if k == Comment {
		return "Comment"
	}
	return "Rating"
}

// Honesty is the dimension of ratings of which scores are made.
const Honesty = "honesty"

// Entry is one entry of a log: what its author says of another peer.
type Entry struct {
	// Kind says which of the fields below count.
	Kind Kind
	// Rater is the author, Subject the peer that it speaks of.
	Rater, Subject peer.ID
	// Time is when it was said, in nanoseconds since 1970.
	Time int64
	// Prev is the hash of the entry before it in the author's log; zero for the first.
	Prev Hash
	// Signature is the author's, over [Entry.Canonical].
	Signature []byte

	// Dimension says what is rated, Score is from -1 to 1, Context is why.
	Dimension, Context string
	Score              float64

	// TextCID names the text of a comment; see [CID].
	TextCID []byte
	// Language is that of the text; may be empty.
	Language string
	// AttachedRating is the hash of a rating that the comment belongs to; may be empty.
	AttachedRating []byte
}

// firstTime is the earliest time of an entry: before that there was no mesh.
var firstTime = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()

// CID returns the name of a comment's text: that of its SHA-256.
func CID(text []byte) []byte {
	sum := sha256.Sum256(text)
	return append([]byte{0x12, sha256.Size}, sum[:]...)
}

// ParseCID reads a CID in hex.
func ParseCID(s string) ([]byte, error) {
	if len(s) != 2*(2+sha256.Size) {
		return nil, fmt.Errorf("%w: a cid has %d hex digits", ErrBad, 2*(2+sha256.Size))
	}
	cid, err := hex.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	return cid, CheckCID(cid)
}

// CheckCID refuses what is not the name of a text.
func CheckCID(cid []byte) error {
	if len(cid) != 2+sha256.Size || cid[0] != 0x12 || cid[1] != sha256.Size {
		return fmt.Errorf("%w: the cid of a text is 0x12, 0x20 and a SHA-256", ErrBad)
	}
	return nil
}

// body returns the inner message with the signature given.
func (e *Entry) body(signature []byte) []byte {
	var m message
	m.bytes(1, []byte(e.Rater))
	m.bytes(2, []byte(e.Subject))
	if e.Kind == Comment {
		m.bytes(3, e.TextCID)
		m.text(4, e.Language)
		m.bytes(5, e.AttachedRating)
	} else {
		m.text(3, e.Dimension)
		m.double(4, e.Score)
		m.text(5, e.Context)
	}
	m.uint(6, uint64(e.Time))
	m.bytes(7, e.Prev[:])
	m.bytes(8, signature)
	return m
}

// Canonical returns the bytes that the author signs.
func (e *Entry) Canonical() []byte { return e.body(nil) }

// Marshal returns the entry as it travels.
func (e *Entry) Marshal() []byte {
	var m message
	m.embed(protowire.Number(e.Kind), e.body(e.Signature))
	return m
}

// Hash returns the entry's hash: the leaf of its author's Merkle tree, and what the next
// entry names as the one before it.
func (e *Entry) Hash() Hash { return leafHash(e.Canonical()) }

// Sign signs the entry. The key must be the author's.
func (e *Entry) Sign(key crypto.PrivKey) (err error) {
	e.Signature, err = sign(key, e.Canonical())
	return err
}

// Verify checks the author's signature.
func (e *Entry) Verify() error { return verify(e.Rater, e.Canonical(), e.Signature) }

// ParseEntry reads an entry in its one form. It does not verify the signature.
func ParseEntry(b []byte) (*Entry, error) {
	if len(b) > MaxEntry {
		return nil, fmt.Errorf("%w: an entry has at most %d bytes", ErrBad, MaxEntry)
	}
	e := new(Entry)
	var body []byte
	err := read(b, func(f field) bool {
		e.Kind = Kind(f.number)
		return (e.Kind == Rating || e.Kind == Comment) && f.into(&body)
	})
	if err != nil {
		return nil, err
	}
	var prev []byte
	if err := read(body, func(f field) bool { return e.take(f, &prev) }); err != nil {
		return nil, err
	}
	if len(prev) != len(e.Prev) {
		return nil, fmt.Errorf("%w: prev_hash has %d bytes instead of %d", ErrBad, len(prev), len(e.Prev))
	}
	e.Prev = Hash(prev)
	if err := e.Check(); err != nil {
		return nil, err
	}
	return e, sole(b, e.Marshal())
}

// take stores a field of the inner message.
func (e *Entry) take(f field, prev *[]byte) bool {
	comment := e.Kind == Comment
	switch f.number {
	case 1:
		return f.into(&e.Rater)
	case 2:
		return f.into(&e.Subject)
	case 3:
		if comment {
			return f.into(&e.TextCID)
		}
		return f.into(&e.Dimension)
	case 4:
		if comment {
			return f.into(&e.Language)
		}
		return f.into(&e.Score)
	case 5:
		if comment {
			return f.into(&e.AttachedRating)
		}
		return f.into(&e.Context)
	case 6:
		return f.into(&e.Time)
	case 7:
		return f.into(prev)
	case 8:
		return f.into(&e.Signature)
	}
	return false
}

// Check refuses an entry whose fields are not what they should be. That no rating can be
// read as a comment is for the form of the dimension and of the cid to see to.
func (e *Entry) Check() error {
	if err := checkPeer("rater_peer_id", e.Rater); err != nil {
		return err
	}
	if err := checkPeer("subject_peer_id", e.Subject); err != nil {
		return err
	}
	if e.Time < firstTime {
		return fmt.Errorf("%w: its time is before 2024", ErrBad)
	}
	if e.Kind == Comment {
		return e.checkComment()
	}
	switch {
	case e.Rater == e.Subject:
		return fmt.Errorf("%w: a rating of oneself", ErrBad)
	case e.Dimension == "":
		return fmt.Errorf("%w: a rating without a dimension", ErrBad)
	case !(e.Score >= -1 && e.Score <= 1): // nor NaN
		return fmt.Errorf("%w: a score is between -1 and 1", ErrBad)
	case e.Score == 0 && math.Signbit(e.Score):
		return fmt.Errorf("%w: a score of -0", ErrBad)
	case !utf8.ValidString(e.Context):
		return fmt.Errorf("%w: the context is not UTF-8", ErrBad)
	}
	return checkLabel("dimension", e.Dimension, maxDimension)
}

func (e *Entry) checkComment() error {
	if err := CheckCID(e.TextCID); err != nil {
		return err
	}
	if n := len(e.AttachedRating); n != 0 && n != len(Hash{}) {
		return fmt.Errorf("%w: attached_rating has %d bytes", ErrBad, n)
	}
	return checkLabel("language", e.Language, maxLanguage)
}

// CheckComment refuses a text that is not one, or not that of the cid.
func CheckComment(text, cid []byte) error {
	switch {
	case len(text) == 0 || len(text) > MaxComment:
		return fmt.Errorf("%w: a comment has 1 to %d bytes", ErrBad, MaxComment)
	case !utf8.Valid(text):
		return fmt.Errorf("%w: the comment is not UTF-8", ErrBad)
	case !bytes.Equal(CID(text), cid):
		return fmt.Errorf("%w: the comment is not that of its cid", ErrBad)
	}
	return nil
}
