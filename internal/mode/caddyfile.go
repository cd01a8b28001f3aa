// SPDX-License-Identifier: Apache-2.0

package mode

import (
	"errors"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// caddyfile is a Caddyfile that is being written.
type caddyfile struct {
	strings.Builder
	depth int
}

// line writes a line.
func (c *caddyfile) line(s string) {
	c.WriteString(strings.Repeat("\t", c.depth) + s + "\n")
}

// block writes a block, and what is in it.
func (c *caddyfile) block(head string, body func()) {
	c.line(strings.TrimLeft(head+" {", " "))
	c.depth++
	body()
	c.depth--
	c.line("}")
}

// plainWord is a word that needs no quotes.
var plainWord = regexp.MustCompile(`^[a-zA-Z0-9_./:@%+,=][a-zA-Z0-9_./:@%+,=-]*$`)

// quote returns a word of a Caddyfile that means the text as it is, without placeholders.
func quote(text string) (string, error) {
	if plainWord.MatchString(text) {
		return text, nil
	}
	if !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return "", errors.New("want text without control characters")
	}
	// A backslash before a brace makes it one of text, and {$ begins a variable unless
	// it is the default of one that has no name.
	word := strings.NewReplacer("{$", "\\{$:{$}", "{", `\{`, "}", `\}`).Replace(text)
	switch {
	case !strings.Contains(text, `\`):
		return `"` + strings.ReplaceAll(word, `"`, `\"`) + `"`, nil
	case !strings.Contains(text, "`"):
		return "`" + word + "`", nil // where a backslash is one, too
	}
	return "", errors.New("want text without a backslash, or without a backquote")
}
