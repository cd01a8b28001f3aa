// SPDX-License-Identifier: Apache-2.0

package client

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

const hookBody = `{"task_id":"task_1","worker_id":"12D3","status":"failed","type":"task.failed","reason":"oom_killed","duration_seconds":3.5,"artifacts_url":null}`

// hook is a webhook that is sent in a test.
type hook struct {
	method, contentType, body string
	header                    map[string]string
}

// send sends it.
func (h hook) send(to http.Handler) *httptest.ResponseRecorder {
	r := httptest.NewRequest(h.method, "/hook", strings.NewReader(h.body))
	r.Header.Set("Content-Type", h.contentType)
	for name, value := range h.header {
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	to.ServeHTTP(w, r)
	return w
}

// standard returns the headers of Standard Webhooks.
func standard(key []byte, id string, at time.Time, body string) map[string]string {
	stamp := fmt.Sprint(at.Unix())
	signature := base64.StdEncoding.EncodeToString(sum(key, []byte(id+"."+stamp+"."+body)))
	return map[string]string{"webhook-id": id, "webhook-timestamp": stamp, "webhook-signature": "v1a,x v1,AAAA v1," + signature}
}

func TestWebhook(t *testing.T) {
	t.Setenv(EnvWebhookSecret, "")
	const secret, old = "the-secret", "the-old-secret"
	key := []byte("0123456789abcdef01234567")
	whsec := "whsec_" + base64.StdEncoding.EncodeToString(key)
	now := time.Unix(1_800_000_000, 0)
	ours := func(secret, body string) map[string]string {
		return map[string]string{"X-AgentFM-Signature": hex.EncodeToString(sum([]byte(secret), []byte(body)))}
	}
	with := func(h map[string]string, name, value string) map[string]string {
		h[name] = value
		return h
	}
	post := func(header map[string]string) hook {
		return hook{"POST", "application/json; charset=utf-8", hookBody, header}
	}
	secrets := []string{"", old, secret, whsec}
	for name, c := range map[string]struct {
		hook    hook
		handler WebhookHandler
		status  int
		signed  Signature
	}{
		"ours":                  {post(ours(secret, hookBody)), WebhookHandler{Secrets: secrets}, 204, HMACSignature},
		"ours, old secret":      {post(ours(old, hookBody)), WebhookHandler{Secrets: secrets}, 204, HMACSignature},
		"ours, whsec":           {post(ours(whsec, hookBody)), WebhookHandler{Secrets: secrets}, 204, HMACSignature},
		"standard":              {post(standard([]byte(secret), "m1", now, hookBody)), WebhookHandler{Secrets: secrets}, 204, StandardSignature},
		"standard, whsec":       {post(standard(key, "m1", now, hookBody)), WebhookHandler{Secrets: secrets}, 204, StandardSignature},
		"standard, a bit late":  {post(standard(key, "m1", now.Add(-4*time.Minute), hookBody)), WebhookHandler{Secrets: secrets}, 204, StandardSignature},
		"standard, required":    {post(standard(key, "m1", now, hookBody)), WebhookHandler{Secrets: secrets, RequireStandard: true}, 204, StandardSignature},
		"both":                  {post(with(standard(key, "m1", now, hookBody), "X-AgentFM-Signature", "00")), WebhookHandler{Secrets: secrets}, 204, StandardSignature},
		"no secret, allowed":    {post(nil), WebhookHandler{AllowUnsigned: true}, 204, NoSignature},
		"no secret":             {post(nil), WebhookHandler{}, 401, ""},
		"empty secrets":         {post(ours("", hookBody)), WebhookHandler{Secrets: []string{""}}, 401, ""},
		"missing":               {post(nil), WebhookHandler{Secrets: secrets, AllowUnsigned: true}, 401, ""},
		"wrong secret":          {post(ours("other", hookBody)), WebhookHandler{Secrets: secrets}, 401, ""},
		"another body":          {post(ours(secret, hookBody+" ")), WebhookHandler{Secrets: secrets}, 401, ""},
		"not hex":               {post(map[string]string{"X-AgentFM-Signature": "xx"}), WebhookHandler{Secrets: secrets}, 401, ""},
		"prefix":                {post(map[string]string{"X-AgentFM-Signature": hex.EncodeToString(sum([]byte(secret), []byte(hookBody)))[:32]}), WebhookHandler{Secrets: secrets}, 401, ""},
		"hex and more":          {post(map[string]string{"X-AgentFM-Signature": hex.EncodeToString(sum([]byte(secret), []byte(hookBody))) + "x"}), WebhookHandler{Secrets: secrets}, 401, ""},
		"ours, standard needed": {post(ours(secret, hookBody)), WebhookHandler{Secrets: secrets, RequireStandard: true}, 401, ""},
		"replayed":              {post(standard(key, "m1", now.Add(-5*time.Minute-time.Second), hookBody)), WebhookHandler{Secrets: secrets}, 401, ""},
		"of the future":         {post(standard(key, "m1", now.Add(5*time.Minute+time.Second), hookBody)), WebhookHandler{Secrets: secrets}, 401, ""},
		"replayed, ours good":   {post(with(standard(key, "m1", now.Add(-time.Hour), hookBody), "X-AgentFM-Signature", ours(secret, hookBody)["X-AgentFM-Signature"])), WebhookHandler{Secrets: secrets}, 401, ""},
		"another id":            {post(with(standard(key, "m1", now, hookBody), "webhook-id", "m2")), WebhookHandler{Secrets: secrets}, 401, ""},
		"no id":                 {post(with(standard(key, "", now, hookBody), "webhook-id", "")), WebhookHandler{Secrets: secrets}, 401, ""},
		"another time":          {post(with(standard(key, "m1", now, hookBody), "webhook-timestamp", fmt.Sprint(now.Unix()+1))), WebhookHandler{Secrets: secrets}, 401, ""},
		"no time":               {post(with(standard(key, "m1", now, hookBody), "webhook-timestamp", "now")), WebhookHandler{Secrets: secrets}, 401, ""},
		"another version":       {post(with(standard(key, "m1", now, hookBody), "webhook-signature", "v2,AAAA")), WebhookHandler{Secrets: secrets}, 401, ""},
		"standard, wrong key":   {post(standard([]byte("other"), "m1", now, hookBody)), WebhookHandler{Secrets: secrets}, 401, ""},
		"GET":                   {hook{"GET", "application/json", hookBody, ours(secret, hookBody)}, WebhookHandler{Secrets: secrets}, 405, ""},
		"text":                  {hook{"POST", "text/plain", hookBody, ours(secret, hookBody)}, WebhookHandler{Secrets: secrets}, 415, ""},
		"no type":               {hook{"POST", "", hookBody, ours(secret, hookBody)}, WebhookHandler{Secrets: secrets}, 415, ""},
		"compressed":            {post(with(ours(secret, hookBody), "Content-Encoding", "gzip")), WebhookHandler{Secrets: secrets}, 415, ""},
		"too large":             {hook{"POST", "application/json", hookBody + strings.Repeat(" ", MaxWebhook), nil}, WebhookHandler{Secrets: secrets}, 413, ""},
		"not JSON":              {hook{"POST", "application/json", "{", ours(secret, "{")}, WebhookHandler{Secrets: secrets}, 400, ""},
		"not a webhook":         {hook{"POST", "application/json", "{}", ours(secret, "{}")}, WebhookHandler{Secrets: secrets}, 400, ""},
		"no id of a task":       {hook{"POST", "application/json", strings.Replace(hookBody, "task_1", "../x", 1), nil}, WebhookHandler{AllowUnsigned: true}, 400, ""},
		"callback fails":        {post(nil), WebhookHandler{AllowUnsigned: true, Callback: func(*http.Request, WebhookPayload) error { return errors.New("private") }}, 500, ""},
	} {
		var got *WebhookPayload
		if c.handler.Callback == nil {
			c.handler.Callback = func(_ *http.Request, p WebhookPayload) error {
				got = &p
				return nil
			}
		}
		c.handler.now = func() time.Time { return now }
		w := c.hook.send(&c.handler)
		if w.Code != c.status || (got != nil) != (c.status == 204) || strings.Contains(w.Body.String(), "private") {
			t.Errorf("%s: %d %s, %v", name, w.Code, w.Body, got)
		}
		if (w.Header().Get("Allow") == "POST") != (c.status == 405) {
			t.Errorf("%s: %v", name, w.Header())
		}
		if got == nil {
			continue
		}
		want := WebhookPayload{TaskID: "task_1", WorkerID: "12D3", Status: TaskFailed, Type: "task.failed", Reason: ReasonOOMKilled, DurationSeconds: 3.5, Signed: c.signed, ID: c.hook.header["webhook-id"]}
		if *got != want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestWebhookEnv wants the secret of the environment to count where no other is given.
func TestWebhookEnv(t *testing.T) {
	t.Setenv(EnvWebhookSecret, "of-the-environment")
	sign := func(secret string) hook {
		return hook{"POST", "application/json", hookBody, map[string]string{"X-AgentFM-Signature": hex.EncodeToString(sum([]byte(secret), []byte(hookBody)))}}
	}
	if w := sign("of-the-environment").send(&WebhookHandler{}); w.Code != 204 {
		t.Error(w.Code)
	}
	if w := sign("other").send(&WebhookHandler{AllowUnsigned: true}); w.Code != 401 {
		t.Error(w.Code)
	}
	if w := sign("of-the-environment").send(&WebhookHandler{Secrets: []string{"other"}}); w.Code != 401 {
		t.Error(w.Code)
	}
}

// FuzzWebhook wants no body without a signature to be handed over.
func FuzzWebhook(f *testing.F) {
	f.Add([]byte(hookBody), "00", "v1,AAAA", "1")
	f.Fuzz(func(t *testing.T, body []byte, ours, standard, stamp string) {
		h := &WebhookHandler{Secrets: []string{"a secret that is not guessed"}, Callback: func(*http.Request, WebhookPayload) error {
			t.Error("handed over")
			return nil
		}}
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(string(body)))
		r.Header = http.Header{"Content-Type": {"application/json"}, "X-Agentfm-Signature": {ours}, "Webhook-Signature": {standard}, "Webhook-Id": {"1"}, "Webhook-Timestamp": {stamp}}
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code < 400 {
			t.Errorf("%d", w.Code)
		}
	})
}
