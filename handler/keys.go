// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
)

// minKey is the length of the shortest key, in characters.
const minKey = 16

// keySet holds the hashes of the keys; of the keys themselves nothing stays.
type keySet [][sha256.Size]byte

// parseKeys reads the values of api_keys. No error quotes a value that could be
// a key.
func parseKeys(values []string) (keySet, error) {
	var set keySet
	repl := caddy.NewReplacer()
	for i, value := range values {
		list, err := repl.ReplaceOrErr(value, true, true)
		if err != nil {
			return nil, badPlaceholder(i, value)
		}
		for key := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == '\n' || r == '\r' }) {
			key = strings.TrimSpace(key)
			switch {
			case key == "": // a list may end with a comma
			case strings.ContainsFunc(key, unicode.IsSpace):
				return nil, fmt.Errorf("key %d contains white space", len(set)+1)
			case utf8.RuneCountInString(key) < minKey:
				return nil, fmt.Errorf("key %d has fewer than %d characters", len(set)+1, minKey)
			default:
				set = append(set, sha256.Sum256([]byte(key)))
			}
		}
	}
	if len(set) == 0 {
		return nil, errors.New("no key is given; to serve without keys, leave api_keys out")
	}
	return set, nil
}

// badPlaceholder names the value in which a placeholder cannot be replaced. Only
// what is plainly a reference is quoted: anything else may be a key with a brace.
func badPlaceholder(i int, value string) error {
	for _, prefix := range []string{"{env.", "{file."} {
		if strings.HasPrefix(value, prefix) && strings.IndexByte(value, '}') == len(value)-1 {
			return fmt.Errorf("%s is empty or cannot be read", value)
		}
	}
	return fmt.Errorf("value %d has a placeholder that is unknown or empty", i+1)
}

// has reports whether key is in the set. It takes the same time for every key.
func (s keySet) has(key string) bool {
	hash := sha256.Sum256([]byte(key))
	found := 0
	for i := range s {
		found |= subtle.ConstantTimeCompare(s[i][:], hash[:])
	}
	return found == 1
}
