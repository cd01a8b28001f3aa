// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func TestUnmarshalCaddyfile(t *testing.T) {
	for input, want := range map[string]string{
		"agentfm":                                                                `{}`,
		"agentfm {\n}":                                                           `{}`,
		"agentfm {\n retries 0\n}":                                               `{"retries":0}`,
		"agentfm {\n body_limit 1MiB\n}":                                         `{"body_limit":1048576}`,
		"agentfm {\n body_limit 5\n}":                                            `{"body_limit":5}`,
		"agentfm {\n allow_unauthenticated\n}":                                   `{"allow_unauthenticated":true}`,
		"agentfm {\n api_keys {env.KEYS}\n}":                                     `{"api_keys":["{env.KEYS}"]}`,
		"agentfm {\n api_keys a b \"c d\"\n}":                                    `{"api_keys":["a","b","c d"]}`,
		"agentfm {\n api_keys a,b\n retries 7\n}":                                `{"api_keys":["a,b"],"retries":7}`,
		"agentfm {\n retries 1\n body_limit 1kB\n}":                              `{"retries":1,"body_limit":1000}`,
		"agentfm {\n api_keys_file k\n}":                                         `{"api_keys_file":"k"}`,
		"agentfm {\n trust_caddy_auth\n}":                                        `{"trust_caddy_auth":true}`,
		"agentfm {\n allow_origins a b\n}":                                       `{"allow_origins":["a","b"]}`,
		"agentfm {\n queue\n}":                                                   `{"queue":{}}`,
		"agentfm {\n queue {\n size 5\n wait 2s\n }\n}":                          `{"queue":{"size":5,"wait":2000000000}}`,
		"agentfm {\n heartbeat off\n first_byte_timeout 1s\n task_timeout 1h\n}": `{"first_byte_timeout":1000000000,"task_timeout":3600000000000,"heartbeat":-1}`,
		"agentfm {\n policy round_robin\n}":                                      `{"policy":{"policy":"round_robin"}}`,
		"agentfm {\n policy sticky {\n header X-Chat\n }\n}":                     `{"policy":{"headers":["X-Chat"],"policy":"sticky"}}`,
	} {
		var h Handler
		if err := h.UnmarshalCaddyfile(caddyfile.NewTestDispenser(input)); err != nil {
			t.Errorf("%q: %v", input, err)
			continue
		}
		if got, err := json.Marshal(&h); err != nil || string(got) != want {
			t.Errorf("%q: got %s, %v", input, got, err)
		}
	}
}

func TestUnmarshalCaddyfileRefuses(t *testing.T) {
	for input, text := range map[string]string{
		"agentfm x":                                                    "wrong argument count",
		"agentfm x {\n}":                                               "wrong argument count",
		"agentfm {\n nonsense\n}":                                      "unrecognized option",
		"agentfm {\n api_key x\n}":                                     "unrecognized option",
		"agentfm {\n api_keys\n}":                                      "wrong argument count",
		"agentfm {\n api_keys a\n api_keys b\n}":                       "already specified",
		"agentfm {\n api_keys_file\n}":                                 "wrong argument count",
		"agentfm {\n api_keys_file a b\n}":                             "wrong argument count",
		"agentfm {\n trust_caddy_auth on\n}":                           "wrong argument count",
		"agentfm {\n allow_origins\n}":                                 "wrong argument count",
		"agentfm {\n allow_origins a\n allow_origins b\n}":             "already specified",
		"agentfm {\n retries\n}":                                       "wrong argument count",
		"agentfm {\n retries 1 2\n}":                                   "wrong argument count",
		"agentfm {\n retries 1\n retries 1\n}":                         "already specified",
		"agentfm {\n retries -1\n}":                                    "retries",
		"agentfm {\n retries many\n}":                                  "retries",
		"agentfm {\n retries 1.5\n}":                                   "retries",
		"agentfm {\n retries 99999999999999999999\n}":                  "retries",
		"agentfm {\n body_limit\n}":                                    "wrong argument count",
		"agentfm {\n body_limit 1 MiB\n}":                              "wrong argument count",
		"agentfm {\n body_limit 0\n}":                                  "body_limit",
		"agentfm {\n body_limit -1\n}":                                 "body_limit",
		"agentfm {\n body_limit 1parsec\n}":                            "body_limit",
		"agentfm {\n body_limit 9EiB\n}":                               "body_limit",
		"agentfm {\n policy\n}":                                        "wrong argument count",
		"agentfm {\n policy best\n}":                                   "'best' is not a selection policy",
		"agentfm {\n policy sticky X\n}":                               "wrong argument count",
		"agentfm {\n policy sticky {\n cookie x\n }\n}":                "unrecognized option 'cookie'",
		"agentfm {\n policy sticky\n policy sticky\n}":                 "already specified",
		"agentfm {\n queue 5\n}":                                       "wrong argument count",
		"agentfm {\n queue {\n size 0\n }\n}":                          "size",
		"agentfm {\n queue {\n length 5\n }\n}":                        "unrecognized option 'length'",
		"agentfm {\n queue {\n wait soon\n }\n}":                       "wait",
		"agentfm {\n heartbeat 0\n}":                                   "heartbeat",
		"agentfm {\n heartbeat\n}":                                     "wrong argument count",
		"agentfm {\n task_timeout never\n}":                            "task_timeout",
		"agentfm {\n first_byte_timeout -1s\n}":                        "first_byte_timeout",
		"agentfm {\n allow_unauthenticated true\n}":                    "wrong argument count",
		"agentfm {\n allow_unauthenticated\n allow_unauthenticated\n}": "already specified",
		"agentfm {\n retries 1 {\n x\n }\n}":                           "unexpected block",
	} {
		var h Handler
		err := h.UnmarshalCaddyfile(caddyfile.NewTestDispenser(input))
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: got %v, want %q", input, err, text)
		}
	}
}

// An api_keys that holds nothing must not open the gateway.
func TestEmptyKeysAreRefused(t *testing.T) {
	h := &Handler{APIKeys: []string{}}
	if err := h.setUp(&fakeMesh{}, nopLogger); err == nil || !strings.HasPrefix(err.Error(), "api_keys: ") {
		t.Errorf("got %v", err)
	}
}

// The whole way of a configuration, beside a running server: nothing is opened.
func TestProvision(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	t.Setenv("TEST_KEYS", keyOne)
	load := func(handler string) error {
		return caddy.Validate(&caddy.Config{AppsRaw: caddy.ModuleMap{
			"http": json.RawMessage(`{"servers":{"s":{"listen":["127.0.0.1:0"],"routes":[{"handle":[` + handler + `]}]}}}`),
		}})
	}
	for _, good := range []string{
		`{"handler":"agentfm"}`,
		`{"handler":"agentfm","api_keys":["{env.TEST_KEYS}"],"retries":0,"body_limit":1,"allow_unauthenticated":true}`,
	} {
		if err := load(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for bad, text := range map[string]string{
		`{"handler":"agentfm","api_keys":[]}`:                    "api_keys: no key is given",
		`{"handler":"agentfm","api_keys":["{env.TEST_UNSET}"]}`:  "api_keys: {env.TEST_UNSET}",
		`{"handler":"agentfm","retries":-1}`:                     "retries",
		`{"handler":"agentfm","body_limit":-1}`:                  "body_limit",
		`{"handler":"agentfm","api_key":["x"]}`:                  "unknown field",
		`{"handler":"agentfm","api_keys_file":"/nonexistent/k"}`: "api_keys_file: ",
		`{"handler":"agentfm","allow_origins":["*"]}`:            "allow_origins: '*' would let every web page",
		`{"handler":"agentfm","allow_origins":["example.com"]}`:  "allow_origins: 'example.com' is not an origin",
	} {
		if err := load(bad); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: got %v", bad, err)
		}
	}
}

func FuzzUnmarshalCaddyfile(f *testing.F) {
	f.Add("agentfm {\n api_keys a b\n retries 2\n body_limit 1MiB\n allow_unauthenticated\n}")
	f.Fuzz(func(t *testing.T, input string) {
		var h Handler
		if err := h.UnmarshalCaddyfile(caddyfile.NewTestDispenser(input)); err != nil {
			return
		}
		if h.Retries != nil && *h.Retries < 0 || h.BodyLimit < 0 || h.APIKeys != nil && len(h.APIKeys) == 0 {
			t.Errorf("%q: got %+v", input, h)
		}
	})
}

func FuzzHeaderText(f *testing.F) {
	f.Add("HR Ässistant\r\nX-Injected: 1")
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range []byte(headerText(s)) {
			if c < ' ' || c > '~' {
				t.Fatalf("%q became %q", s, headerText(s))
			}
		}
	})
}
