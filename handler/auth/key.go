// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"

	"github.com/Agent-FM/caddy-agentfm/internal/webhook"
)

// minKey is the length of the shortest key, in characters.
const minKey = 16

// hashPrefix marks a key that is given by its hash.
const hashPrefix = "sha256:"

// NewKey returns a new random key: `afm_` and 43 characters.
func NewKey() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: see crypto/rand
	return newKeyPrefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// newKeyPrefix begins the keys of [NewKey], for those who search for lost keys.
const newKeyPrefix = "afm_"

// Hash returns the form in which a key may stand in api_keys and in a key file
// without being told: `sha256:` and 64 hex digits.
func Hash(key string) string {
	h := sha256.Sum256([]byte(key))
	return hashPrefix + hex.EncodeToString(h[:])
}

// key is a key as it is kept: its hash, and what it stands for.
type key struct {
	hash     [sha256.Size]byte
	identity *Identity
	expires  time.Time       // zero for never
	signer   *webhook.Signer // of its webhooks; nil for that of the gateway
	line     int             // in the file; 0 for a key of the configuration
}

// expired reports whether the key's time is over.
func (k *key) expired(now time.Time) bool { return !k.expires.IsZero() && !now.Before(k.expires) }

// keySet is all keys. It does not change.
type keySet []key

// find returns the key that token is, or nil. It compares with every key, so
// that it takes the same time for every token.
func (s keySet) find(token string) *key {
	hash := sha256.Sum256([]byte(token))
	found := -1
	for i := range s {
		equal := subtle.ConstantTimeCompare(s[i].hash[:], hash[:])
		found = subtle.ConstantTimeSelect(equal, i, found)
	}
	if found < 0 {
		return nil
	}
	return &s[found]
}

// defaultID returns the identity of a key without a name.
func defaultID(hash [sha256.Size]byte) string { return "key-" + hex.EncodeToString(hash[:4]) }

// hashKey reads a key, or its hash. No error quotes it.
func hashKey(text string) (hash [sha256.Size]byte, err error) {
	if n := len(hashPrefix); len(text) >= n && strings.EqualFold(text[:n], hashPrefix) {
		b, err := hex.DecodeString(text[n:])
		if err != nil || len(b) != len(hash) {
			return hash, fmt.Errorf("has a hash that is not %d hex digits", 2*len(hash))
		}
		return [sha256.Size]byte(b), nil
	}
	switch {
	case strings.ContainsFunc(text, unicode.IsSpace):
		return hash, errors.New("contains white space")
	case strings.ContainsFunc(text, unicode.IsControl):
		return hash, errors.New("contains a control character")
	case utf8.RuneCountInString(text) < minKey:
		return hash, fmt.Errorf("has fewer than %d characters", minKey)
	case len(text) > maxKey:
		return hash, fmt.Errorf("has more than %d bytes", maxKey)
	}
	return sha256.Sum256([]byte(text)), nil
}

// parseValues reads the values of api_keys. No error quotes a value that could be
// a key.
func parseValues(values []string) ([]key, error) {
	var set keySet
	n := 0
	repl := caddy.NewReplacer()
	for i, value := range values {
		list, err := repl.ReplaceOrErr(value, true, true)
		if err != nil {
			return nil, badPlaceholder(i, value)
		}
		for text := range strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == '\n' || r == '\r' }) {
			text = strings.TrimSpace(text)
			if text == "" { // a list may end with a comma
				continue
			}
			n++
			hash, err := hashKey(text)
			if err != nil {
				return nil, fmt.Errorf("key %d %w", n, err)
			}
			set = append(set, key{hash: hash, identity: Unrestricted(defaultID(hash))})
		}
	}
	if n == 0 {
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
