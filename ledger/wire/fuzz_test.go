// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"testing"
)

// FuzzEntry wants what is accepted to be in its one form, which is that of the protobuf
// library, and to be of one kind.
func FuzzEntry(f *testing.F) {
	a := newAuthor(f)
	f.Add(a.rating(f, nil).Marshal())
	f.Add(a.comment(f, nil).Marshal())
	fd := schema(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseEntry(b)
		if err != nil {
			return
		}
		if form, ok := reform(t, fd, "SignedEntry", b); !ok || !bytes.Equal(form, b) || !bytes.Equal(e.Marshal(), b) {
			t.Fatalf("not the one form: %x", b)
		}
		other := *e
		other.Kind = Rating + Comment - e.Kind
		other.Dimension, other.TextCID = string(e.TextCID), []byte(e.Dimension)
		other.Context, other.AttachedRating = string(e.AttachedRating), []byte(e.Context)
		if _, err := ParseEntry(other.Marshal()); err == nil && bytes.Equal(other.Canonical(), e.Canonical()) {
			t.Fatal("of two kinds")
		}
	})
}

// FuzzHead wants what is accepted to be in its one form.
func FuzzHead(f *testing.F) {
	f.Add(newAuthor(f).head(f, 3, 1).Marshal())
	fd := schema(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHead(b)
		if err != nil {
			return
		}
		if form, ok := reform(t, fd, "LogHead", b); !ok || !bytes.Equal(form, b) || !bytes.Equal(h.Marshal(), b) {
			t.Fatalf("not the one form: %x", b)
		}
	})
}

// FuzzAlert wants what is accepted to be in its one form.
func FuzzAlert(f *testing.F) {
	a := newAuthor(f)
	alert := &Alert{Peer: a.id, A: a.head(f, 3, 1), B: a.head(f, 3, 2), Witness: a.id, Time: 5}
	f.Add(alert.Marshal())
	alert.Path = []Hash{{1}, {2}}
	f.Add(alert.Marshal())
	fd := schema(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseAlert(b)
		if err != nil {
			return
		}
		if form, ok := reform(t, fd, "EquivocationAlert", b); !ok || !bytes.Equal(form, b) || !bytes.Equal(a.Marshal(), b) {
			t.Fatalf("not the one form: %x", b)
		}
	})
}

// FuzzEpoch wants what is accepted to be in its one form, and to be nothing else.
func FuzzEpoch(f *testing.F) {
	a := newAuthor(f)
	f.Add(a.epoch(f).Marshal())
	f.Add(a.head(f, 3, 1).Marshal())
	fd := schema(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseEpoch(b)
		if err != nil {
			return
		}
		if form, ok := reform(t, fd, "Epoch", b); !ok || !bytes.Equal(form, b) || !bytes.Equal(e.Marshal(), b) {
			t.Fatalf("not the one form: %x", b)
		}
		if _, err := ParseHead(b); err == nil {
			t.Fatal("it is a head, too")
		}
		if _, err := ParseAlert(b); err == nil {
			t.Fatal("it is an alert, too")
		}
	})
}

// FuzzFrames wants each frame to be read within its bounds.
func FuzzFrames(f *testing.F) {
	var b bytes.Buffer
	_ = WritePage(&b, []Item{{1, []byte("one")}})
	f.Add(b.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 'x'})
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if items, err := ReadPage(bytes.NewReader(b), MaxPage); err == nil {
			for _, i := range items {
				if len(i.Entry) > MaxEntry {
					t.Fatal("an entry is too large")
				}
			}
		}
		if text, err := ReadComment(bytes.NewReader(b), CID([]byte("x"))); err == nil && string(text) != "x" {
			t.Fatalf("another text: %q", text)
		}
		_, _ = ReadHead(bytes.NewReader(b))
		_, _ = ReadCID(bytes.NewReader(b))
		_, _ = ReadRange(bytes.NewReader(b))
	})
}
