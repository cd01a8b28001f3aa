// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"strings"
	"unicode/utf8"
)

// Cutter turns a stream of bytes into pieces of text that never end inside a
// character. Each byte that is not part of a character becomes U+FFFD. The
// pieces together are the same however the bytes were split. The zero value is
// ready for use.
type Cutter struct {
	held []byte // the begin of a character, at most three bytes
}

// Next returns the text that is complete with p.
func (c *Cutter) Next(p []byte) string {
	if len(c.held) > 0 {
		p = append(c.held, p...)
		c.held = nil
	}
	end := len(p) - partial(p)
	if end < len(p) {
		c.held = append([]byte(nil), p[end:]...)
	}
	return text(p[:end])
}

// Rest returns what was held back, for the end of the stream.
func (c *Cutter) Rest() string {
	rest := text(c.held)
	c.held = nil
	return rest
}

// partial returns how many bytes at the end of p begin a character that more
// bytes could complete.
func partial(p []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(p); n++ {
		tail := p[len(p)-n:]
		if !utf8.RuneStart(tail[0]) {
			continue
		}
		if utf8.FullRune(tail) {
			return 0
		}
		return n
	}
	return 0
}

// text returns p as valid UTF-8. Bytes are replaced one by one: to replace a
// run of them by one character would depend on how the stream was split.
func text(p []byte) string {
	if utf8.Valid(p) {
		return string(p)
	}
	var b strings.Builder
	b.Grow(len(p) + 16)
	for _, r := range string(p) { // gives U+FFFD for each invalid byte
		b.WriteRune(r)
	}
	return b.String()
}
