// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"
)

// prose is text as agents write it.
const prose = "The gateway doesn't know what an agent will print, so it counts: 1234 words, a list (of 3), and\n\tsome_code(); 中文，也有。\n\n"

func TestCountTokens(t *testing.T) {
	for in, want := range map[string]int{
		"":                   0,
		"hello world":        2,
		"tiktoken is great!": 6,
		"x":                  1,
		"\x7f":               1,
		"12345678":           3,
		"\n  \n-x":           2, // the lines are one token
		"<|endoftext|>":      7, // text is never a special token
	} {
		if got := CountTokens(in); got != want {
			t.Errorf("%q: got %d, want %d", in, got, want)
		}
	}
}

// The tokenizer must not pass over text: the limits count on the sizes of tokens.
func TestSplitKeepsText(t *testing.T) {
	for r := rune(0); r < 0x3000; r++ {
		if !utf8.ValidRune(r) {
			continue
		}
		s := "a" + string(r) + "b"
		if got := strings.Join(split(s), ""); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
}

// Of a long text the count is an estimate, near the real one, and takes the same
// time whatever the size.
func TestCountTokensLong(t *testing.T) {
	long := strings.Repeat(prose, 1<<20/len(prose))
	got, want := CountTokens(long), len(long)/len(prose)*CountTokens(prose)
	if got < want*99/100 || got > want*101/100 {
		t.Errorf("got %d, want about %d", got, want)
	}
	for _, unit := range []string{" \n", "\n", "a", "中", "\x00", "0"} {
		s := strings.Repeat(unit, 8<<20)
		if n := CountTokens(s); n < len(s)/200 || n > len(s) {
			t.Errorf("%q: %d tokens of %d bytes", unit, n, len(s))
		}
	}
}

// What comes in parts has the same tokens.
func TestMeter(t *testing.T) {
	for _, text := range []string{prose, strings.Repeat(prose, 400), strings.Repeat("中", 20_000)} {
		for _, n := range []int{1, 7, maxRun, 5000} {
			var m meter
			for rest := text; rest != ""; {
				k := max(1, wholeRunes(rest, n))
				for !utf8.ValidString(rest[:k]) {
					k++
				}
				m.add(rest[:k])
				rest = rest[k:]
				if len(m.tail) > maxRun {
					t.Fatalf("%d bytes wait", len(m.tail))
				}
			}
			if got, want := m.count(), CountTokens(text); got != want {
				t.Errorf("%.20q… in parts of %d: got %d, want %d", text, n, got, want)
			}
		}
	}
}

// Both sides of a boundary must have the tokens that they have together.
func TestBoundary(t *testing.T) {
	alphabet := []string{"a", "B", "é", "ǅ", "ʰ", "中", "\u0301", "1", "Ⅷ", "'", "'s", "'LL", " ", "  ", "\n", "\r\n", "\t", "\u2028", ".", "/", "-", "😀", "\x00", "\x7f", "�", "word", "ſ"}
	random := rand.New(rand.NewPCG(1, 2))
	for range 5_000 {
		var b strings.Builder
		for range 2 + random.IntN(12) {
			b.WriteString(alphabet[random.IntN(len(alphabet))])
		}
		s := b.String()
		for i := range s {
			if !boundary(s, i) {
				continue
			}
			if tokens(s[:i])+tokens(s[i:]) != tokens(s) {
				t.Fatalf("%q has a boundary before %q: %q and %q", s, s[i:], split(s[:i]), split(s[i:]))
			}
		}
	}
}

func BenchmarkCountTokens(b *testing.B) {
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, maxExact)
	for i := range noise {
		noise[i] = byte('!' + random.IntN(94))
	}
	for _, r := range []struct{ name, text string }{
		{"prose", strings.Repeat(prose, maxExact/len(prose))},
		{"prose of 1 MiB", strings.Repeat(prose, 1<<20/len(prose))},
		{"noise", string(noise)},
		{"one letter", strings.Repeat("a", maxExact)},
		{"newlines", strings.Repeat("\n", maxExact)},
		{"spaces and newlines", strings.Repeat(" \n", maxExact/2)},
		{"Chinese", strings.Repeat("中", maxExact/3)},
	} {
		b.Run(r.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				CountTokens(r.text)
			}
		})
	}
}
