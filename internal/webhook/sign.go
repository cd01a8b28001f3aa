// SPDX-License-Identifier: Apache-2.0

// Package webhook signs webhooks: as Standard Webhooks says, which OpenAI's libraries
// check as well, and as AgentFM's clients expect it.
package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// prefix begins a secret in the form of Standard Webhooks.
const prefix = "whsec_"

// Errors of secrets. They quote nothing.
var (
	errForm = errors.New("what follows whsec_ is not the base64 of 24 to 64 bytes")
	errNone = errors.New("a secret is empty")
	errMany = errors.New("more than two secrets; want the new one and the one before it")
)

// Signer signs with a secret, and while that takes the place of another, with the other
// too. The nil signer does not sign.
type Signer struct {
	secrets []secret // newest first
}

// secret is one of a signer's.
type secret struct {
	text []byte
	key  []byte // of Standard Webhooks
}

// NewSigner returns one for a secret, and the one before it where receivers still have
// that. Without secrets it is nil.
func NewSigner(secrets ...string) (*Signer, error) {
	switch {
	case len(secrets) == 0:
		return nil, nil
	case len(secrets) > 2:
		return nil, errMany
	}
	s := new(Signer)
	for _, text := range secrets {
		if text == "" {
			return nil, errNone
		}
		key := []byte(text)
		if coded, ok := strings.CutPrefix(text, prefix); ok {
			var err error
			if key, err = base64.StdEncoding.DecodeString(coded); err != nil || len(key) < 24 || len(key) > 64 {
				return nil, errForm
			}
		}
		s.secrets = append(s.secrets, secret{[]byte(text), key})
	}
	return s, nil
}

// Sign sets the headers of a webhook with that id and body, which is sent now.
func (s *Signer) Sign(h http.Header, id string, now time.Time, body []byte) {
	timestamp := strconv.FormatInt(now.Unix(), 10)
	h.Set("Webhook-Id", id)
	h.Set("Webhook-Timestamp", timestamp)
	if s == nil {
		return
	}
	content := fmt.Appendf(nil, "%s.%s.%s", id, timestamp, body)
	signatures := make([]string, len(s.secrets))
	for i, secret := range s.secrets {
		signatures[i] = "v1," + base64.StdEncoding.EncodeToString(mac(secret.key, content))
	}
	h.Set("Webhook-Signature", strings.Join(signatures, " "))
	h.Set("X-AgentFM-Signature", hex.EncodeToString(mac(s.secrets[0].text, body)))
}

// mac returns the HMAC-SHA256 of b.
func mac(key, b []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(b)
	return m.Sum(nil)
}
