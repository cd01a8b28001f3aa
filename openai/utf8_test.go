// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// cut returns the pieces that a Cutter makes of p, given in parts of n bytes.
func cut(p []byte, n int) []string {
	var c Cutter
	var pieces []string
	for len(p) > 0 {
		k := min(n, len(p))
		pieces = append(pieces, c.Next(p[:k]))
		p = p[k:]
	}
	return append(pieces, c.Rest())
}

func TestCutter(t *testing.T) {
	for in, want := range map[string]string{
		"":                     "",
		"plain":                "plain",
		"é€😀":                  "é€😀",
		"\xff":                 "�",
		"a\xe2\x82":            "a��",
		"a\xe2\x82b":           "a��b",
		"\xf0\x9f\x98":         "���",
		"\xf0\x9f\x98\x80\xf0": "😀�",
		"\x80\x80\x80\x80x":    "����x",
		"\xed\xa0\x80":         "���", // a surrogate
		"\xf4\x90\x80\x80":     "����",
		"\xc0\xaf":             "��",
		"�":                    "�",
		"\x00\r\n\x1b[31m":     "\x00\r\n\x1b[31m",
		"ok\xe2\x28\xa1":       "ok�(�",
	} {
		if got := validText([]byte(in)); got != want {
			t.Errorf("%q as a whole: got %q, want %q", in, got, want)
		}
		for n := 1; n <= len(in); n++ {
			pieces := cut([]byte(in), n)
			if got := strings.Join(pieces, ""); got != want {
				t.Errorf("%q in parts of %d: got %q, want %q", in, n, got, want)
			}
		}
	}
}

// A character must come as soon as it is whole, and no byte may wait without need.
func TestCutterHoldsLittle(t *testing.T) {
	var c Cutter
	for i, step := range []struct{ in, out string }{
		{"a\xf0", "a"}, {"\x9f", ""}, {"\x98", ""}, {"\x80b", "😀b"}, {"\xe2\x82", ""}, {"x", "��x"}, {"", ""},
	} {
		if got := c.Next([]byte(step.in)); got != step.out {
			t.Errorf("step %d: got %q, want %q", i, got, step.out)
		}
		if len(c.held) > 3 {
			t.Errorf("step %d: %d bytes held", i, len(c.held))
		}
	}
}

func FuzzCutter(f *testing.F) {
	f.Add([]byte("é€😀\xff\xf0\x9f"), 1)
	f.Add([]byte("\xed\xa0\x80\xe2\x28"), 2)
	f.Fuzz(func(t *testing.T, p []byte, n int) {
		want := string([]rune(string(p)))
		var c Cutter
		var got strings.Builder
		for rest := p; len(rest) > 0; {
			k := min(max(n, 1, len(p)/256), len(rest)) // a long input in few steps
			piece := c.Next(rest[:k])
			if !utf8.ValidString(piece) || len(c.held) > 3 {
				t.Fatalf("piece %q with %d bytes held", piece, len(c.held))
			}
			got.WriteString(piece)
			rest = rest[k:]
		}
		got.WriteString(c.Rest())
		if got.String() != want || validText(p) != want {
			t.Errorf("%q: got %q, want %q", p, got.String(), want)
		}
	})
}

// validText returns an agent's whole output as valid UTF-8, the same as a [Cutter]
// gives in pieces.
func validText(output []byte) string { return text(output) }
