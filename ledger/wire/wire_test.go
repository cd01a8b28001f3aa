// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"crypto/rand"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// author is a key with its peer id.
type author struct {
	key crypto.PrivKey
	id  peer.ID
}

func newAuthor(t testing.TB) author {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return author{key, id}
}

func (a author) rating(t testing.TB, change func(*Entry)) *Entry {
	t.Helper()
	e := &Entry{Kind: Rating, Rater: a.id, Subject: newAuthor(t).id, Time: time.Now().UnixNano(), Dimension: Honesty, Score: 0.5, Context: "because"}
	return a.finish(t, e, change)
}

func (a author) comment(t testing.TB, change func(*Entry)) *Entry {
	t.Helper()
	e := &Entry{Kind: Comment, Rater: a.id, Subject: newAuthor(t).id, Time: time.Now().UnixNano(), TextCID: CID([]byte("text")), Language: "en"}
	return a.finish(t, e, change)
}

func (a author) finish(t testing.TB, e *Entry, change func(*Entry)) *Entry {
	t.Helper()
	if change != nil {
		change(e)
	}
	if err := e.Sign(a.key); err != nil {
		t.Fatal(err)
	}
	return e
}

func (a author) head(t testing.TB, size uint64, root byte) *Head {
	t.Helper()
	h := &Head{Peer: a.id, Size: size, Root: Hash{root}, Time: time.Now().UnixNano()}
	if err := h.Sign(a.key); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestEntryIsReadAsWritten(t *testing.T) {
	a := newAuthor(t)
	attached := Hash{7}
	for name, e := range map[string]*Entry{
		"rating":           a.rating(t, nil),
		"score 0":          a.rating(t, func(e *Entry) { e.Score = 0 }),
		"score -1":         a.rating(t, func(e *Entry) { e.Score = -1 }),
		"no context":       a.rating(t, func(e *Entry) { e.Context = "" }),
		"other dimension":  a.rating(t, func(e *Entry) { e.Dimension = "latency" }),
		"comment":          a.comment(t, nil),
		"no language":      a.comment(t, func(e *Entry) { e.Language = "" }),
		"comment attached": a.comment(t, func(e *Entry) { e.AttachedRating = attached[:] }),
		"comment of self":  a.comment(t, func(e *Entry) { e.Subject = e.Rater }),
	} {
		t.Run(name, func(t *testing.T) {
			b := e.Marshal()
			got, err := ParseEntry(b)
			if err != nil {
				t.Fatal(err)
			}
			if err := got.Verify(); err != nil {
				t.Error(err)
			}
			if !bytes.Equal(got.Marshal(), b) || got.Hash() != e.Hash() || got.Kind != e.Kind {
				t.Errorf("%+v instead of %+v", got, e)
			}
			got.Time++
			if err := got.Verify(); !errors.Is(err, ErrSignature) {
				t.Errorf("changed: %v", err)
			}
		})
	}
}

func TestEntryIsRefused(t *testing.T) {
	a := newAuthor(t)
	good := a.rating(t, nil)
	inner := good.body(good.Signature)
	envelope := func(field protowire.Number, body []byte, more ...byte) []byte {
		return append(protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), body), more...)
	}
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 1)
	longTag := append([]byte{0x8a, 0x00}, envelope(1, inner)[1:]...) // field 1 in two bytes
	longLength := append([]byte{0x0a}, append(protowire.AppendVarint(nil, uint64(len(inner))|1<<35), inner...)...)

	for name, b := range map[string][]byte{
		"nothing":                  {},
		"empty body":               envelope(1, nil),
		"unknown field outside":    envelope(1, inner, unknown...),
		"unknown field inside":     envelope(1, append(bytes.Clone(inner), unknown...)),
		"unknown kind":             envelope(3, inner),
		"rating as comment":        envelope(2, inner),
		"two bodies":               append(good.Marshal(), good.Marshal()...),
		"tag not minimal":          longTag,
		"length too long":          longLength,
		"cut":                      good.Marshal()[:100],
		"fields in another order":  envelope(1, append(bytes.Clone(inner[len(inner)-66:]), inner[:len(inner)-66]...)),
		"field twice":              envelope(1, append(protowire.AppendString(protowire.AppendTag(nil, 3, protowire.BytesType), "x"), inner...)),
		"group":                    {0x0b, 0x0c},
		"over 4 KiB":               a.rating(t, func(e *Entry) { e.Context = strings.Repeat("x", MaxEntry) }).Marshal(),
		"NaN":                      a.rating(t, func(e *Entry) { e.Score = math.NaN() }).Marshal(),
		"infinite":                 a.rating(t, func(e *Entry) { e.Score = math.Inf(1) }).Marshal(),
		"over 1":                   a.rating(t, func(e *Entry) { e.Score = 1.0001 }).Marshal(),
		"minus 0":                  a.rating(t, func(e *Entry) { e.Score = math.Copysign(0, -1) }).Marshal(),
		"no dimension":             a.rating(t, func(e *Entry) { e.Dimension = "" }).Marshal(),
		"control in the dimension": a.rating(t, func(e *Entry) { e.Dimension = "\x12 x" }).Marshal(),
		"context not UTF-8":        a.rating(t, func(e *Entry) { e.Context = "\xff" }).Marshal(),
		"of oneself":               a.rating(t, func(e *Entry) { e.Subject = e.Rater }).Marshal(),
		"no subject":               a.rating(t, func(e *Entry) { e.Subject = "" }).Marshal(),
		"subject no peer":          a.rating(t, func(e *Entry) { e.Subject = "x" }).Marshal(),
		"no time":                  a.rating(t, func(e *Entry) { e.Time = 0 }).Marshal(),
		"time below 0":             a.rating(t, func(e *Entry) { e.Time = -1 }).Marshal(),
		"before the mesh":          a.rating(t, func(e *Entry) { e.Time = 1 }).Marshal(),
		"no cid":                   a.comment(t, func(e *Entry) { e.TextCID = nil }).Marshal(),
		"cid of another hash":      a.comment(t, func(e *Entry) { e.TextCID[0] = 0x13 }).Marshal(),
		"attached too short":       a.comment(t, func(e *Entry) { e.AttachedRating = []byte{1} }).Marshal(),
		"control in the language":  a.comment(t, func(e *Entry) { e.Language = "\n" }).Marshal(),
	} {
		t.Run(name, func(t *testing.T) {
			if e, err := ParseEntry(b); !errors.Is(err, ErrBad) {
				t.Errorf("%+v, %v", e, err)
			}
		})
	}
}

// TestNoEntryIsTwoKinds wants no bytes that an author signed to be an entry of the other
// kind as well.
func TestNoEntryIsTwoKinds(t *testing.T) {
	a := newAuthor(t)
	digest := CID([]byte("text"))[2:]
	for i := range digest {
		digest[i] = 'x' // so that it is UTF-8
	}
	cid := append([]byte{0x12, 0x20}, digest...)
	c := a.comment(t, func(e *Entry) { e.TextCID, e.Language, e.AttachedRating = cid, "", digest })
	if _, err := ParseEntry(c.Marshal()); err != nil {
		t.Fatal(err)
	}
	r := a.rating(t, func(e *Entry) { *e = *c; e.Kind, e.Dimension, e.Context = Rating, string(cid), string(digest) })
	if !bytes.Equal(r.Canonical(), c.Canonical()) {
		t.Fatal("the test does not make the same bytes")
	}
	if _, err := ParseEntry(r.Marshal()); !errors.Is(err, ErrBad) {
		t.Errorf("also a rating: %v", err)
	}
}

func TestSignatureOfAnotherKeyType(t *testing.T) {
	key, _, err := crypto.GenerateECDSAKeyPair(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	e := author{key, id}.rating(t, nil)
	if err := e.Verify(); !errors.Is(err, ErrSignature) {
		t.Error(err)
	}
}

func TestHead(t *testing.T) {
	a, w := newAuthor(t), newAuthor(t)
	h := a.head(t, 3, 1)
	h.Witnesses = []Witness{{w.id, h.Signature}, {a.id, nil}}
	h.Anchor = "x"
	got, err := ParseHead(h.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Verify(); err != nil || len(got.Witnesses) != 2 || got.Witnesses[0].Peer != w.id || got.Anchor != "x" {
		t.Errorf("%+v, %v", got, err)
	}
	for name, change := range map[string]func(*Head){
		"size 0":         func(h *Head) { h.Size = 0 },
		"no time":        func(h *Head) { h.Time = 0 },
		"no peer":        func(h *Head) { h.Peer = "" },
		"many witnesses": func(h *Head) { h.Witnesses = make([]Witness, 40) },
	} {
		bad := *h
		change(&bad)
		if _, err := ParseHead(bad.Marshal()); !errors.Is(err, ErrBad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseHead(append(h.Marshal(), 0x40, 1)); !errors.Is(err, ErrBad) {
		t.Errorf("unknown field: %v", err)
	}
}

func TestAlert(t *testing.T) {
	a, w := newAuthor(t), newAuthor(t)
	alert := func(change func(*Alert)) *Alert {
		x := &Alert{Peer: a.id, A: a.head(t, 3, 1), B: a.head(t, 3, 2), Witness: w.id, Time: time.Now().UnixNano()}
		change(x)
		if err := x.Sign(w.key); err != nil {
			t.Fatal(err)
		}
		got, err := ParseAlert(x.Marshal())
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if err := alert(func(*Alert) {}).Verify(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Alert){
		"same root":     func(x *Alert) { x.B = a.head(t, 3, 1) },
		"other size":    func(x *Alert) { x.B = a.head(t, 4, 2) },
		"other owner":   func(x *Alert) { x.B = w.head(t, 3, 2) },
		"other accused": func(x *Alert) { x.Peer = w.id },
		"forged head":   func(x *Alert) { x.B.Root[5]++ },
		"other witness": func(x *Alert) { x.Witness = a.id },
	} {
		if err := alert(change).Verify(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	items := []Item{{1, []byte("one")}, {9, bytes.Repeat([]byte("x"), MaxEntry+1)}, {10, []byte("three")}}
	if err := WritePage(&b, items); err != nil {
		t.Fatal(err)
	}
	page := bytes.Clone(b.Bytes())
	got, err := ReadPage(&b, 3)
	if err != nil || len(got) != 3 || string(got[2].Entry) != "three" || got[1].Entry != nil || got[1].Index != 9 {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := ReadPage(bytes.NewReader(page), 2); !errors.Is(err, ErrBad) {
		t.Errorf("more than asked for: %v", err)
	}
	b.Reset()
	text := []byte("hello")
	_ = WriteBytes(&b, text)
	if got, err := ReadComment(bytes.NewReader(b.Bytes()), CID(text)); err != nil || !bytes.Equal(got, text) {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := ReadComment(&b, CID([]byte("other"))); !errors.Is(err, ErrBad) {
		t.Errorf("another text: %v", err)
	}
	_ = WriteNoComment(&b, "gone")
	if _, err := ReadComment(&b, CID(text)); !errors.Is(err, ErrNoComment) {
		t.Error(err)
	}
	_ = WriteBytes(&b, nil)
	if h, err := ReadHead(&b); h != nil || err != nil {
		t.Errorf("no head: %v, %v", h, err)
	}
	_ = WriteRange(&b, Range{7, 5000})
	if r, err := ReadRange(&b); r != (Range{7, MaxPage}) || err != nil {
		t.Errorf("%v, %v", r, err)
	}
}

// schema is that of the messages, for the protobuf library to make its own form of them.
func schema(t testing.TB) protoreflect.FileDescriptor {
	t.Helper()
	const (
		double  = descriptorpb.FieldDescriptorProto_TYPE_DOUBLE
		int64   = descriptorpb.FieldDescriptorProto_TYPE_INT64
		uint64  = descriptorpb.FieldDescriptorProto_TYPE_UINT64
		str     = descriptorpb.FieldDescriptorProto_TYPE_STRING
		bytes   = descriptorpb.FieldDescriptorProto_TYPE_BYTES
		message = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE
	)
	type fields []descriptorpb.FieldDescriptorProto_Type
	msg := func(name string, types fields, names ...string) *descriptorpb.DescriptorProto {
		d := &descriptorpb.DescriptorProto{Name: proto.String(name)}
		for i, kind := range types {
			f := &descriptorpb.FieldDescriptorProto{
				Name: proto.String(string(rune('a' + i))), Number: proto.Int32(int32(i + 1)), Type: kind.Enum(),
				Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
			}
			if kind == message {
				f.TypeName, names = proto.String("."+names[0]), names[1:]
			}
			d.Field = append(d.Field, f)
		}
		return d
	}
	head := msg("LogHead", fields{bytes, uint64, bytes, int64, bytes, message, str}, "WitnessSig")
	head.Field[5].Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
	signed := msg("SignedEntry", fields{message, message}, "Rating", "Comment")
	signed.OneofDecl = []*descriptorpb.OneofDescriptorProto{{Name: proto.String("body")}}
	signed.Field[0].OneofIndex, signed.Field[1].OneofIndex = proto.Int32(0), proto.Int32(0)
	alert := msg("EquivocationAlert", fields{bytes, message, message, bytes, bytes, int64, bytes}, "LogHead", "LogHead")
	alert.Field[6].Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
	fd, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: proto.String("ledger.proto"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{
			msg("Rating", fields{bytes, bytes, str, double, str, int64, bytes, bytes}),
			msg("Comment", fields{bytes, bytes, bytes, str, bytes, int64, bytes, bytes}),
			msg("WitnessSig", fields{bytes, bytes}), head, signed, alert,
			msg("Epoch", fields{str, bytes, int64, bytes}),
		},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// reform reads a message with the protobuf library and writes it again; false when it
// cannot be read. There is nothing in it that its schema does not know.
func reform(t testing.TB, fd protoreflect.FileDescriptor, name string, b []byte) ([]byte, bool) {
	t.Helper()
	m := dynamicpb.NewMessage(fd.Messages().ByName(protoreflect.Name(name)))
	if proto.Unmarshal(b, m) != nil {
		return nil, false
	}
	if len(m.GetUnknown()) > 0 {
		t.Errorf("unknown fields: %x", m.GetUnknown())
	}
	out, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return out, true
}

// TestFormIsProtobufs wants our form of every message to be what the protobuf library
// makes of it.
func TestFormIsProtobufs(t *testing.T) {
	a, fd := newAuthor(t), schema(t)
	h := a.head(t, 300, 1)
	h.Witnesses = []Witness{{newAuthor(t).id, h.Signature}, {}}
	attached := Hash{7}
	alert := &Alert{Peer: a.id, A: h, B: a.head(t, 300, 2), Witness: a.id, Time: 5}
	if err := alert.Sign(a.key); err != nil {
		t.Fatal(err)
	}
	long := *alert
	long.Path = []Hash{{1}, {2}}
	for _, c := range []struct {
		name  string
		bytes []byte
	}{
		{"SignedEntry", a.rating(t, nil).Marshal()},
		{"SignedEntry", a.rating(t, func(e *Entry) { e.Score, e.Context = 0, "" }).Marshal()},
		{"SignedEntry", a.comment(t, func(e *Entry) { e.AttachedRating = attached[:] }).Marshal()},
		{"SignedEntry", (&Entry{Kind: Rating}).Marshal()},
		{"Rating", a.rating(t, nil).Canonical()},
		{"Comment", a.comment(t, nil).Canonical()},
		{"LogHead", h.Marshal()},
		{"LogHead", h.Canonical()},
		{"EquivocationAlert", alert.Marshal()},
		{"EquivocationAlert", long.Marshal()},
	} {
		if got, ok := reform(t, fd, c.name, c.bytes); !ok || !bytes.Equal(got, c.bytes) {
			t.Errorf("%s: %x instead of %x", c.name, c.bytes, got)
		}
	}
}

// TestOneKeyHasOneID writes the fields of a key in the other order: the peer id of that names the
// same key, and nobody.
func TestOneKeyHasOneID(t *testing.T) {
	a := newAuthor(t)
	raw, err := a.key.GetPublic().Raw()
	if err != nil {
		t.Fatal(err)
	}
	key := append(append([]byte{0x12, byte(len(raw))}, raw...), 0x08, 0x01)
	alias, err := peer.IDFromBytes(append([]byte{0x00, byte(len(key))}, key...))
	if err != nil || alias == a.id {
		t.Fatal(alias, err)
	}
	h := a.head(t, 1, 1)
	w, err := h.Cosign(newAuthor(t).key)
	if err != nil || h.VerifyWitness(w) != nil {
		t.Fatal(err)
	}
	h.Peer = alias
	if err := h.Sign(a.key); err != nil {
		t.Fatal(err)
	}
	if err := h.Verify(); !errors.Is(err, ErrSignature) {
		t.Errorf("a head: %v", err)
	}
	if _, err := ParseHead(h.Marshal()); !errors.Is(err, ErrBad) {
		t.Errorf("a head is read: %v", err)
	}
	other := newAuthor(t).head(t, 1, 1)
	if w, err = other.Cosign(a.key); err != nil {
		t.Fatal(err)
	}
	w.Peer = alias
	if err := other.VerifyWitness(w); !errors.Is(err, ErrSignature) {
		t.Errorf("a witness: %v", err)
	}
	e := newAuthor(t).rating(t, func(e *Entry) { e.Subject = alias })
	if _, err := ParseEntry(e.Marshal()); !errors.Is(err, ErrBad) {
		t.Errorf("an entry about it is read: %v", err)
	}
}
