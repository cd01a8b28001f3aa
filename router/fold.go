// SPDX-License-Identifier: Apache-2.0

package router

import (
	"unicode"
	"unicode/utf8"
)

// fold returns what is equal for texts that strings.EqualFold finds equal.
func fold(s string) string { return string(appendFold(nil, s)) }

// appendFold appends the folded s to b.
func appendFold(b []byte, s string) []byte {
	for _, r := range s {
		b = utf8.AppendRune(b, foldRune(r))
	}
	return b
}

// foldRune returns the lower case of a Latin letter; of any other letter the
// first of those that differ in case alone.
func foldRune(r rune) rune {
	if r < utf8.RuneSelf {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}
	least := r
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		least = min(least, f)
	}
	if least < utf8.RuneSelf { // the Kelvin sign is a K
		return foldRune(least)
	}
	return least
}
