// SPDX-License-Identifier: Apache-2.0

package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// openaiSecret is that of OpenAI's example of a signature, and openaiBody its body.
const (
	openaiSecret = "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c="
	openaiBody   = `{"id": "evt_685c059ae3a481909bdc86819b066fb6", "object": "event", "created_at": 1750861210, "type": "response.completed", "data": {"id": "resp_123"}}`
)

// TestVectors are the examples of OpenAI and of Standard Webhooks.
func TestVectors(t *testing.T) {
	for _, v := range []struct {
		secret, id, body, want string
		at                     int64
	}{
		{openaiSecret, "wh_685c059ae39c8190af8c71ed1022a24d", openaiBody, "v1,gUAg4R2hWouRZqRQG4uJypNS8YK885G838+EHb4nKBY=", 1750861210},
		{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", `{"test": 2432232314}`,
			"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", 1614265330},
	} {
		s, err := NewSigner(v.secret)
		if err != nil {
			t.Fatal(err)
		}
		h := make(http.Header)
		s.Sign(h, v.id, time.Unix(v.at, 0), []byte(v.body))
		if got := h.Get("Webhook-Signature"); got != v.want {
			t.Errorf("got %s, want %s", got, v.want)
		}
		if h.Get("Webhook-Timestamp") != fmt.Sprint(v.at) || h.Get("Webhook-Id") != v.id {
			t.Errorf("got %v", h)
		}
	}
}

// TestRotation wants receivers to find a signature of either secret, the newest first.
func TestRotation(t *testing.T) {
	at, body := time.Unix(1750861210, 0), []byte(openaiBody)
	one := func(secrets ...string) http.Header {
		s, err := NewSigner(secrets...)
		if err != nil {
			t.Fatal(err)
		}
		h := make(http.Header)
		s.Sign(h, "msg_1", at, body)
		return h
	}
	fresh, old, both := one("a-new-secret"), one(openaiSecret), one("a-new-secret", openaiSecret)
	if got, want := both.Get("Webhook-Signature"), fresh.Get("Webhook-Signature")+" "+old.Get("Webhook-Signature"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	m := hmac.New(sha256.New, []byte("a-new-secret"))
	m.Write(body)
	if got := both.Get("X-AgentFM-Signature"); got != hex.EncodeToString(m.Sum(nil)) {
		t.Errorf("got %s", got)
	}
	// A plain secret is that of a library which is given whsec_ and its base64.
	if coded := one("whsec_" + base64.StdEncoding.EncodeToString([]byte("a-new-secret-of-24-bytes"))); coded.Get("Webhook-Signature") != one("a-new-secret-of-24-bytes").Get("Webhook-Signature") {
		t.Error("the plain secret has another key")
	}
	if none := one(); none.Get("Webhook-Signature") != "" || none.Get("X-AgentFM-Signature") != "" || none.Get("Webhook-Id") != "msg_1" {
		t.Errorf("without a secret: %v", none)
	}
}

func TestSecrets(t *testing.T) {
	for text, ok := range map[string]bool{
		"plain": true, "whsec_" + strings.Repeat("QUFB", 8): true, "plain older": true, "whsec_" + strings.Repeat("QUFB", 7): false,
		"whsec_" + strings.Repeat("QUFB", 22): false, "whsec_*": false, "whsec_": false, "": false, "plain ": false, "plain older oldest": false,
		"plain whsec_secretsecret": false,
	} {
		s, err := NewSigner(strings.Split(text, " ")...)
		if (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
		if err != nil && (strings.Contains(err.Error(), "QUFB") || strings.Contains(err.Error(), "secretsecret") || strings.Contains(err.Error(), "plain")) {
			t.Errorf("the error shows the secret: %v", err)
		}
		if shown := fmt.Sprintf("%v %+v", struct{ S *Signer }{s}, []any{struct{ s *Signer }{s}}); strings.Contains(shown, "plain") {
			t.Errorf("%s", shown)
		}
	}
}
