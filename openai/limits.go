// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"strings"
	"unicode/utf8"
)

// Limits are where a request wants its answer cut. The zero value is none.
type Limits struct {
	// MaxTokens is how many tokens the answer may have at most; 0 is any number.
	MaxTokens int
	// Stop are texts that the answer ends before.
	Stop []string
}

// stopper ends a text before the first of some sequences.
type stopper struct {
	stops []string
	held  string // what could be the begin of one
}

// next adds s to the text and returns what of it is certain, and whether a
// sequence was found after that. Of several it is the one that is complete first.
func (p *stopper) next(s string, end bool) (string, bool) {
	s = p.held + s
	p.held = ""
	from, to := -1, len(s)+1
	for _, stop := range p.stops {
		i := strings.Index(s, stop)
		if i < 0 {
			continue
		}
		if e := i + len(stop); e < to || e == to && i < from {
			from, to = i, e
		}
	}
	if from >= 0 {
		return s[:from], true
	}
	if !end {
		n := len(s) - p.begun(s)
		s, p.held = s[:n], s[n:]
	}
	return s, false
}

// begun returns how many bytes at the end of s begin a sequence.
func (p *stopper) begun(s string) int {
	longest := 0
	for _, stop := range p.stops {
		for n := min(len(stop)-1, len(s)); n > longest; n-- {
			if strings.HasPrefix(stop, s[len(s)-n:]) {
				longest = n
			}
		}
	}
	return longest
}

// budget cuts a text after a number of tokens. A token has a byte at least, so
// that as many bytes as tokens are left can go out at once. Only near the limit
// a word waits for its end: how a word is split depends on all of it.
type budget struct {
	left  int    // tokens that may follow the text that was counted
	spent int    // tokens of that text
	tail  string // what comes after it
	given int    // bytes of tail that went out
}

// next adds s to the text and returns what of it is certain, and whether the text
// was cut after that.
func (b *budget) next(s string, end bool) (string, bool) {
	s = b.tail + s
	start, given, from := 0, b.given, b.given // of s: what is not counted, what went out
	for start < len(s) {
		rest := s[start:]
		if b.left == 0 {
			return b.cut(s, from, start)
		}
		if !end && len(rest) <= min(b.left, maxRun) {
			break
		}
		n := segment(rest, end)
		if n == 0 {
			break
		}
		count := tokens(rest[:n])
		if count > b.left {
			return b.cut(s, from, start+b.fitting(rest[:n]))
		}
		b.spend(count)
		start += n
		given = max(given, start)
	}
	given = max(given, start+wholeRunes(s[start:], b.left))
	b.tail, b.given = s[start:], given-start
	return s[from:given], false
}

// cut ends the text at s[:to], of which s[:from] went out and cannot come back.
func (b *budget) cut(s string, from, to int) (string, bool) {
	b.tail = ""
	return s[from:max(from, to)], true
}

// fitting returns how many bytes of s, which has more tokens than are left, fit,
// and takes their tokens from the budget. It goes from boundary to boundary, so
// that the result does not depend on how s came.
func (b *budget) fitting(s string) int {
	start := 0
	for i := 1; i <= len(s); i++ {
		if i < len(s) && !boundary(s, i) {
			continue
		}
		word := s[start:i]
		parts := split(word)
		if len(parts) > b.left { // it is cut; next may have given a part of it out
			word = word[:max(wholeRunes(word, b.left), aligned(parts[:b.left]))]
			b.spend(min(b.left, tokens(word)))
			return start + len(word)
		}
		b.spend(len(parts))
		start = i
	}
	return start
}

// spend takes tokens from the budget.
func (b *budget) spend(n int) {
	b.left -= n
	b.spent += n
}

// aligned returns the size of the longest run of tokens, from the first, that
// does not end inside a character.
func aligned(parts []string) int {
	n, size := 0, 0
	for i, part := range parts {
		if i > 0 && utf8.RuneStart(part[0]) {
			n = size
		}
		size += len(part)
	}
	if utf8.ValidString(strings.Join(parts, "")) {
		return size
	}
	return n
}

// wholeRunes returns how many bytes of s, at most n, are whole characters.
func wholeRunes(s string, n int) int {
	if n >= len(s) {
		return len(s)
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return n
}

// count returns the tokens of the text so far.
func (b *budget) count() int {
	if b.tail == "" {
		return b.spent
	}
	return b.spent + tokens(b.tail)
}
