// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/tiktoken-go/tokenizer/codec"
)

// maxExact is how much of a text has its tokens counted. What follows is taken to
// have as many tokens a byte: what an agent prints must not cost without bound.
const maxExact = 8 << 10

// maxRun bounds what the tokenizer gets in one piece, in bytes: on hostile text the
// cost of a piece grows with the square of its size. With this one it is at most
// three times that of other text.
const maxRun = 512

// vocabulary is made when the first tokens are counted. It holds some megabytes.
// Versions 0.8 to 0.10 of the tokenizer are quicker, but pass over U+007F and take
// lines of white space apart.
var vocabulary = sync.OnceValue(codec.NewO200kBase)

// CountTokens returns how many tokens the text has in the vocabulary o200k_base,
// that of OpenAI's models since 2024; an agent's model may have another. Up to
// 8 KiB of text are counted, and what is more is estimated from that. A run of
// over 512 bytes without the end of a word is counted in parts, which may give
// some tokens more. The first call also loads the vocabulary.
func CountTokens(text string) int {
	var m meter
	m.add(text)
	return m.count()
}

// tokens returns how many tokens s has, which is at most maxRun long.
func tokens(s string) int {
	n, _ := vocabulary().Count(s) // fails of a time limit only, which there is not
	return n
}

// split returns the tokens of s, which is at most maxRun long.
func split(s string) []string {
	_, parts, _ := vocabulary().Encode(s)
	return parts
}

// meter counts the tokens of a text that comes in parts. The zero value is ready
// for use.
type meter struct {
	tokens  int    // of the text that was counted
	counted int    // bytes of it
	size    int    // bytes of the whole text
	tail    string // what comes after it, at most maxRun: more text may change its tokens
}

// add adds s to the text.
func (m *meter) add(s string) {
	m.size += len(s)
	if m.counted >= maxExact {
		return
	}
	s = m.tail + s
	for len(s) > maxRun && m.counted < maxExact {
		n := segment(s, false)
		m.tokens += tokens(s[:n])
		m.counted += n
		s = s[n:]
	}
	if m.counted >= maxExact {
		s = ""
	}
	m.tail = s
}

// count returns the tokens of the text so far.
func (m *meter) count() int {
	n, counted := m.tokens, m.counted
	if m.tail != "" {
		n, counted = n+tokens(m.tail), counted+len(m.tail)
	}
	if counted == m.size { // exactly, whatever the division gives
		return n
	}
	return int(float64(n) / float64(counted) * float64(m.size))
}

// segment returns how many bytes at the begin of s may be tokenized apart from
// what follows: up to the last boundary within maxRun, or maxRun when there is
// none. When s is not longer than that, and more may come, it is 0 without one.
func segment(s string, end bool) int {
	if len(s) <= maxRun && end {
		return len(s)
	}
	n := min(len(s), maxRun)
	for n < len(s) && !utf8.RuneStart(s[n]) {
		n--
	}
	for i := n; i > 0; i-- {
		if boundary(s, i) {
			return i
		}
	}
	if len(s) <= maxRun {
		return 0
	}
	return n
}

// boundary says whether no token goes across s[:i] and s[i:], whatever comes
// before and after: the tokenizer splits a text before it looks for tokens, and
// always between a letter or digit and what is neither.
func boundary(s string, i int) bool {
	if i <= 0 || i >= len(s) || !utf8.RuneStart(s[i]) {
		return false
	}
	after, _ := utf8.DecodeRuneInString(s[i:])
	if after == '\'' || word(after) || unicode.IsMark(after) { // it's: one piece
		return false
	}
	before, _ := utf8.DecodeLastRuneInString(s[:i])
	return word(before)
}

// word says whether r is a letter or a digit.
func word(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) }
