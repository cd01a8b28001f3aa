// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"net/http"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// TestStandardWebhooks wants the library of that name to find our signatures right, and
// nothing else. Other languages' are in e2e.
func TestStandardWebhooks(t *testing.T) {
	const fresh, old, other = "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c=", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	s, err := NewSigner(fresh, old)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		secret string
		age    time.Duration
		change func(h http.Header, body []byte)
		good   bool
	}{
		"new secret":   {fresh, 0, nil, true},
		"old secret":   {old, 0, nil, true},
		"other secret": {other, 0, nil, false},
		"four minutes": {fresh, 4 * time.Minute, nil, true},
		"six minutes":  {fresh, 6 * time.Minute, nil, false},
		"to come":      {fresh, -6 * time.Minute, nil, false},
		"body":         {fresh, 0, func(_ http.Header, b []byte) { b[0] = '[' }, false},
		"id":           {fresh, 0, func(h http.Header, _ []byte) { h.Set("Webhook-Id", "msg_2") }, false},
		"time":         {fresh, time.Minute, func(h http.Header, _ []byte) { h.Set("Webhook-Timestamp", time.Now().Format("0")) }, false},
		"no signature": {fresh, 0, func(h http.Header, _ []byte) { h.Del("Webhook-Signature") }, false},
	} {
		h, body := make(http.Header), []byte(openaiBody)
		s.Sign(h, "msg_1", time.Now().Add(-c.age), body)
		if c.change != nil {
			c.change(h, body)
		}
		receiver, err := standardwebhooks.NewWebhook(c.secret)
		if err != nil {
			t.Fatal(err)
		}
		if err := receiver.Verify(body, h); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
