// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"
)

func TestSubmissionIsReadAsWritten(t *testing.T) {
	a := newAuthor(t)
	for _, want := range []*Submission{
		{},
		{Old: 0, Head: a.head(t, 1, 1)},
		{Old: 1 << 40, Head: a.head(t, 1<<41, 1), Proof: make([]Hash, MaxProof)},
	} {
		var b bytes.Buffer
		if err := WriteSubmission(&b, want); err != nil {
			t.Fatal(err)
		}
		for cut := range b.Len() {
			if _, err := ReadSubmission(bytes.NewReader(b.Bytes()[:cut])); err == nil {
				t.Fatalf("%d bytes of %d are a submission", cut, b.Len())
			}
		}
		got, err := ReadSubmission(&b)
		if err != nil || got.Old != want.Old || len(got.Proof) != len(want.Proof) || (got.Head == nil) != (want.Head == nil) || got.Head != nil && got.Head.Verify() != nil {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if _, err := ReadSubmission(bytes.NewReader([]byte{7: 1, 12: 0})); !errors.Is(err, ErrBad) {
		t.Errorf("a size, and no head: %v", err)
	}
	if err := WriteSubmission(new(bytes.Buffer), &Submission{Head: a.head(t, 1, 1), Proof: make([]Hash, MaxProof+1)}); !errors.Is(err, ErrBad) {
		t.Error(err)
	}
}

func TestVerdictIsReadAsWritten(t *testing.T) {
	a, w := newAuthor(t), newAuthor(t)
	h := a.head(t, 3, 1)
	signature, err := h.Cosign(w.key)
	if err != nil || signature.Peer != w.id || h.VerifyWitness(signature) != nil {
		t.Fatal(signature, err)
	}
	for _, want := range []Verdict{
		{Status: Signed, Witness: signature},
		{Status: Conflict, Held: h},
		{Status: Conflict},
		{Status: BadProof},
	} {
		var b bytes.Buffer
		if err := WriteVerdict(&b, want); err != nil {
			t.Fatal(err)
		}
		got, err := ReadVerdict(&b)
		if err != nil || got.Status != want.Status || (got.Held == nil) != (want.Held == nil) || got.Witness.Peer != want.Witness.Peer {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if _, err := ReadVerdict(bytes.NewReader([]byte{0, 200, 0, 0, 0, 0})); !errors.Is(err, ErrBad) {
		t.Errorf("signed by nobody: %v", err)
	}
}

// TestChecked wants the signatures of witnesses that are theirs, each once, and none of the owner.
func TestChecked(t *testing.T) {
	a, w := newAuthor(t), newAuthor(t)
	h := a.head(t, 3, 1)
	good, _ := h.Cosign(w.key)
	own, _ := h.Cosign(a.key)
	of, _ := a.head(t, 4, 1).Cosign(newAuthor(t).key)
	h.Witnesses = []Witness{{Peer: w.id}, good, good, own, of, {}}
	got := h.Checked()
	if len(got.Witnesses) != 1 || !got.WitnessedBy(w.id) || len(h.Witnesses) != 6 {
		t.Errorf("%+v", got.Witnesses)
	}
}

// TestJoined joins the witnesses of two copies of one head.
func TestJoined(t *testing.T) {
	a, w, x := newAuthor(t), newAuthor(t), newAuthor(t)
	h := a.head(t, 3, 1)
	with := func(h *Head, ws ...author) *Head {
		c := *h
		for _, w := range ws {
			s, err := c.Cosign(w.key)
			if err != nil {
				t.Fatal(err)
			}
			c.Witnesses = append(c.Witnesses, s)
		}
		return &c
	}
	one, two := with(h, w), with(h, x, w)
	if got := one.Joined(two); len(got.Witnesses) != 2 || len(one.Witnesses) != 1 || len(got.Checked().Witnesses) != 2 {
		t.Errorf("%v", got.Witnesses)
	}
	if two.Joined(one) != two || one.Joined(one) != one {
		t.Error("nothing was to be added")
	}
	later := *h
	later.Time++
	if err := later.Sign(a.key); err != nil {
		t.Fatal(err)
	}
	if l := with(&later, w); one.Joined(l) != one || h.Joined(l) != l {
		t.Error("of two that are signed apart, the one with more witnesses")
	}
}

// TestAlertOfTwoSizes proves that a head is not of the log of a larger one.
func TestAlertOfTwoSizes(t *testing.T) {
	a, w := newAuthor(t), newAuthor(t)
	var leaves [3]Hash
	for i := range leaves {
		leaves[i] = leafHash([]byte{byte(i)})
	}
	node := func(l, r Hash) Hash { return Hash(rfc6962.DefaultHasher.HashChildren(l[:], r[:])) }
	two := node(leaves[0], leaves[1])
	head := func(size uint64, root Hash) *Head {
		h := &Head{Peer: a.id, Size: size, Root: root, Time: time.Now().UnixNano()}
		if err := h.Sign(a.key); err != nil {
			t.Fatal(err)
		}
		return h
	}
	three := head(3, node(two, leaves[2]))
	for name, c := range map[string]struct {
		small, large *Head
		path         []Hash
		proven       bool
	}{
		"another log":      {head(2, Hash{9}), three, []Hash{two, leaves[2]}, true},
		"the same log":     {head(2, two), three, []Hash{two, leaves[2]}, false},
		"no proof":         {head(2, Hash{9}), three, nil, false},
		"a wrong proof":    {head(2, Hash{9}), three, []Hash{two, leaves[1]}, false},
		"another root":     {head(2, Hash{9}), three, []Hash{{8}, leaves[2]}, false},
		"larger first":     {three, head(2, Hash{9}), []Hash{two, leaves[2]}, false},
		"of one size":      {head(3, Hash{9}), three, []Hash{two, leaves[2]}, false},
		"too long a proof": {head(2, Hash{9}), three, []Hash{two, leaves[2], leaves[2]}, false},
	} {
		x := &Alert{Peer: a.id, A: c.small, B: c.large, Path: c.path, Witness: w.id, Time: 5}
		if err := x.Sign(w.key); err != nil {
			t.Fatal(err)
		}
		got, err := ParseAlert(x.Marshal())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := got.Verify(); (err == nil) != c.proven {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzWitness wants what is asked of witnesses, and what they answer, to be read within its
// bounds, and to be written as it was read.
func FuzzWitness(f *testing.F) {
	a, w := newAuthor(f), newAuthor(f)
	h := a.head(f, 3, 1)
	var b bytes.Buffer
	_ = WriteSubmission(&b, &Submission{Old: 1, Proof: []Hash{{1}}, Head: h})
	f.Add(bytes.Clone(b.Bytes()))
	b.Reset()
	_ = WriteSubmission(&b, new(Submission))
	f.Add(bytes.Clone(b.Bytes()))
	b.Reset()
	signature, _ := h.Cosign(w.key)
	_ = WriteVerdict(&b, Verdict{Status: Signed, Witness: signature})
	f.Add(bytes.Clone(b.Bytes()))
	b.Reset()
	_ = WriteVerdict(&b, Verdict{Status: Conflict, Held: h})
	f.Add(bytes.Clone(b.Bytes()))
	f.Fuzz(func(t *testing.T, in []byte) {
		again := func(r *bytes.Reader, write func(*bytes.Buffer) error) {
			var out bytes.Buffer
			if err := write(&out); err != nil || !bytes.Equal(out.Bytes(), in[:len(in)-r.Len()]) {
				t.Fatalf("written as %x, %v", out.Bytes(), err)
			}
		}
		r := bytes.NewReader(in)
		if s, err := ReadSubmission(r); err == nil {
			again(r, func(out *bytes.Buffer) error { return WriteSubmission(out, s) })
		}
		r = bytes.NewReader(in)
		if v, err := ReadVerdict(r); err == nil && v.Status == Signed {
			again(r, func(out *bytes.Buffer) error { return WriteVerdict(out, v) })
		}
	})
}
