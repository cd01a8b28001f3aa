// SPDX-License-Identifier: Apache-2.0

package openai

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"strconv"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// scanner walks over a JSON object and decodes nothing but the names of fields. It
// takes the same bodies as [check], which says what is wrong with the others, and
// is many times as fast. Its methods move over one thing each, and are false when
// it is not there.
type scanner struct {
	b      []byte
	i      int      // what is before it is done
	tokens int      // but the first; those that close are counted with those that open
	names  [][]byte // of the objects that are open
}

// whole walks over all of the body, which is one object, and calls field with the
// place of each of its values.
func (s *scanner) whole(field func(name []byte, start, end int)) bool {
	s.space()
	if s.peek() != '{' || !s.object(1, field) {
		return false
	}
	s.space()
	return s.i == len(s.b) && s.tokens <= maxTokens
}

// peek returns the next byte; 0, which begins nothing, when there is none.
func (s *scanner) peek() byte {
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

// skip moves over c.
func (s *scanner) skip(c byte) bool {
	if s.peek() != c {
		return false
	}
	s.i++
	return true
}

// space moves over white space.
func (s *scanner) space() {
	for s.i < len(s.b) && (s.b[s.i] == ' ' || s.b[s.i] == '\n' || s.b[s.i] == '\t' || s.b[s.i] == '\r') {
		s.i++
	}
}

// value moves over a value inside depth others.
func (s *scanner) value(depth int) bool {
	if s.tokens++; s.tokens > maxTokens {
		return false
	}
	switch c := s.peek(); c {
	case '{':
		return s.object(depth+1, nil)
	case '[':
		return s.array(depth + 1)
	case '"':
		_, ok := s.str()
		return ok
	case 't':
		return s.literal("true")
	case 'f':
		return s.literal("false")
	case 'n':
		return s.literal("null")
	default:
		return s.number()
	}
}

// object moves over an object, which is the depth-th value that is open.
func (s *scanner) object(depth int, field func(name []byte, start, end int)) bool {
	s.i++
	if s.tokens++; depth > maxDepth {
		return false
	}
	s.space()
	if s.skip('}') {
		return true
	}
	names := nameSet{s: s, base: len(s.names)}
	for {
		name, ok := s.name()
		if !ok || !names.add(name) {
			return false
		}
		start := s.i
		if !s.value(depth) {
			return false
		}
		if field != nil {
			field(name, start, s.i)
		}
		s.space()
		if !s.skip(',') {
			names.done()
			return s.skip('}')
		}
		s.space()
	}
}

// name moves over the name of a field, up to its value.
func (s *scanner) name() ([]byte, bool) {
	s.tokens++
	raw, ok := s.str()
	if !ok {
		return nil, false
	}
	name := raw[1 : len(raw)-1]
	if bytes.IndexByte(name, '\\') >= 0 {
		name, _ = jsontext.AppendUnquote(nil, raw) // str has checked it
	}
	s.space()
	if !s.skip(':') {
		return nil, false
	}
	s.space()
	return name, true
}

// array moves over an array, which is the depth-th value that is open.
func (s *scanner) array(depth int) bool {
	s.i++
	if s.tokens++; depth > maxDepth {
		return false
	}
	s.space()
	if s.skip(']') {
		return true
	}
	for {
		if !s.value(depth) {
			return false
		}
		s.space()
		if !s.skip(',') {
			return s.skip(']')
		}
		s.space()
	}
}

// literal moves over a word.
func (s *scanner) literal(word string) bool {
	if !bytes.HasPrefix(s.b[s.i:], []byte(word)) {
		return false
	}
	s.i += len(word)
	return true
}

// number moves over a number within the range of a double.
func (s *scanner) number() bool {
	start := s.i
	s.skip('-')
	if !s.skip('0') && !s.digits() {
		return false
	}
	if s.skip('.') && !s.digits() {
		return false
	}
	exponent := s.peek()|0x20 == 'e'
	if exponent {
		s.i++
		if !s.skip('+') {
			s.skip('-')
		}
		if !s.digits() {
			return false
		}
	}
	if !exponent && s.i-start <= 300 {
		return true
	}
	_, err := strconv.ParseFloat(string(s.b[start:s.i]), 64)
	return err == nil
}

// digits moves over digits, of which there is one at least.
func (s *scanner) digits() bool {
	start := s.i
	for s.i < len(s.b) && '0' <= s.b[s.i] && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > start
}

// str moves over a string, and returns it with its quotes.
func (s *scanner) str() ([]byte, bool) {
	start := s.i
	if !s.skip('"') {
		return nil, false
	}
	for {
		s.plain()
		switch s.peek() {
		case '"':
			s.i++
			raw := s.b[start:s.i]
			return raw, utf8.Valid(raw)
		case '\\':
			if !s.escape() {
				return nil, false
			}
		default: // a control character, or the end
			return nil, false
		}
	}
}

// plain moves to the next quote, backslash or control character. It looks at eight
// bytes at a time: in mark, the first of them that is one has its highest bit set.
func (s *scanner) plain() {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	b, i := s.b, s.i
	for ; i+8 <= len(b); i += 8 {
		word := binary.LittleEndian.Uint64(b[i:])
		quote, slash := word^ones*'"', word^ones*'\\'
		mark := ((quote-ones)&^quote | (slash-ones)&^slash | (word-ones*' ')&^word) & high
		if mark != 0 {
			s.i = i + bits.TrailingZeros64(mark)/8
			return
		}
	}
	for i < len(b) && b[i] != '"' && b[i] != '\\' && b[i] >= ' ' {
		i++
	}
	s.i = i
}

// escape moves over an escape; of a surrogate pair, over both.
func (s *scanner) escape() bool {
	s.i++
	c := s.peek()
	if c != 'u' {
		s.i++
		return c != 0 && bytes.IndexByte([]byte(`"\/bfnrt`), c) >= 0
	}
	r, ok := s.unit()
	switch {
	case !ok, 0xdc00 <= r && r <= 0xdfff:
		return false
	case 0xd800 <= r && r <= 0xdbff:
		if !s.skip('\\') {
			return false
		}
		low, ok := s.unit()
		return ok && 0xdc00 <= low && low <= 0xdfff
	}
	return true
}

// unit moves over u and four hex digits, and returns their value.
func (s *scanner) unit() (uint64, bool) {
	if !s.skip('u') || len(s.b)-s.i < 4 {
		return 0, false
	}
	var v uint64
	for range 4 {
		c := s.b[s.i]
		switch {
		case '0' <= c && c <= '9':
			v = v<<4 | uint64(c-'0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			v = v<<4 | uint64(c|0x20-'a'+10)
		default:
			return 0, false
		}
		s.i++
	}
	return v, true
}
