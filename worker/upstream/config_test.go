// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func TestSettings(t *testing.T) {
	t.Setenv("KEY", secret)
	t.Setenv("BAD_KEY", "sk-two keys")
	t.Setenv("HOST", "example.com:1234")
	ok := "http://127.0.0.1:1/v1"
	for name, c := range map[string]struct {
		r    *Runtime
		want string // base URL and key, or the text of the error after !
	}{
		"no base":          {&Runtime{}, "!base_url: required"},
		"with /v1":         {&Runtime{BaseURL: "http://h/v1"}, "http://h/v1 "},
		"with /v1/":        {&Runtime{BaseURL: "https://h/v1/"}, "https://h/v1 "},
		"without /v1":      {&Runtime{BaseURL: "http://h"}, "http://h/v1 "},
		"only a slash":     {&Runtime{BaseURL: "http://h/"}, "http://h/v1 "},
		"another path":     {&Runtime{BaseURL: "https://h/v1beta/openai/"}, "https://h/v1beta/openai "},
		"placeholder":      {&Runtime{BaseURL: "http://{env.HOST}/v1", APIKey: "{env.KEY}"}, "http://example.com:1234/v1 Bearer " + secret},
		"IPv6":             {&Runtime{BaseURL: "http://[::1]:8000"}, "http://[::1]:8000/v1 "},
		"no placeholder":   {&Runtime{BaseURL: "{env.NO_SUCH}"}, "!base_url: "},
		"no scheme":        {&Runtime{BaseURL: "127.0.0.1:11434"}, "!not a URL"},
		"another scheme":   {&Runtime{BaseURL: "unix:///x"}, "!not a URL"},
		"no host":          {&Runtime{BaseURL: "http:///v1"}, "!not a URL"},
		"password":         {&Runtime{BaseURL: "http://u:sk-password@h/v1"}, "!has credentials in it"},
		"broken, password": {&Runtime{BaseURL: "http://u:sk-password@h:x/v1"}, "!not a URL"},
		"query":            {&Runtime{BaseURL: "http://h/v1?a=b"}, "!has a query"},
		"key and file":     {&Runtime{BaseURL: ok, APIKey: "sk-a", APIKeyFile: "f"}, "!only one"},
		"no key":           {&Runtime{BaseURL: ok, APIKey: "{env.NO_SUCH}"}, "!api_key: a placeholder"},
		"key with braces":  {&Runtime{BaseURL: ok, APIKey: "sk-{a}"}, "!api_key: a placeholder"},
		"two keys":         {&Runtime{BaseURL: ok, APIKey: "{env.BAD_KEY}"}, "!not one key"},
		"key with a line":  {&Runtime{BaseURL: ok, APIKey: "sk-a\r\nX: y"}, "!not one key"},
		"interval":         {&Runtime{BaseURL: ok, HealthInterval: -1}, "!health_interval"},
		"models twice":     {&Runtime{BaseURL: ok, Models: []string{"a", "a"}}, "!twice"},
		"rename to a peer": {&Runtime{BaseURL: ok, Rename: map[string]string{"12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL": "a"}}, "!not a name"},
		"rename twice":     {&Runtime{BaseURL: ok, Rename: map[string]string{"a": "x", "A": "y"}}, "!twice"},
		"route":            {&Runtime{BaseURL: ok, Routes: []string{"/chat/completions"}}, "!not a route"},
		"route with dots":  {&Runtime{BaseURL: ok, Routes: []string{"/v1/../admin"}}, "!not a route"},
		"route, encoded":   {&Runtime{BaseURL: ok, Routes: []string{"/v1/%2e%2e/admin"}}, "!not a route"},
		"route is all":     {&Runtime{BaseURL: ok, Routes: []string{"/v1"}}, "!not a route"},
		"routes twice":     {&Runtime{BaseURL: ok, Routes: []string{"/v1/a", "/v1/a"}}, "!twice"},
	} {
		t.Run(name, func(t *testing.T) {
			r := c.r
			ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
			defer cancel()
			err := r.Provision(ctx)
			if err == nil {
				err = r.Validate()
			}
			if want, fails := strings.CutPrefix(c.want, "!"); fails {
				if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "sk-") {
					t.Errorf("got %v, want …%s…", err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := r.base.String() + " " + r.key.get(); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestCaddyfile(t *testing.T) {
	var r Runtime
	err := r.UnmarshalCaddyfile(caddyfile.NewTestDispenser("openai {\n base_url http://h\n models a b\n rename x y\n rename z y\n routes /v1/a /v1/b\n health_interval 1m\n}"))
	if err != nil || r.BaseURL != "http://h" || strings.Join(r.Models, " ") != "a b" || r.Rename["x"]+r.Rename["z"] != "yy" ||
		strings.Join(r.Routes, " ") != "/v1/a /v1/b" || r.HealthInterval == 0 {
		t.Errorf("got %+v, %v", &r, err)
	}
	for in, want := range map[string]string{
		"openai http://h":                                          "wrong argument count",
		"openai {\n url http://h\n}":                               "unrecognized option 'url'",
		"openai {\n}":                                              "base_url: required",
		"openai {\n base_url a b\n}":                               "wrong argument count",
		"openai {\n base_url a\n base_url b\n}":                    "already specified",
		"openai {\n base_url a\n api_key sk-a sk-b\n}":             "want one key",
		"openai {\n base_url a\n api_key sk-a\n api_key_file f\n}": "only one",
		"openai {\n base_url a\n models\n}":                        "wrong argument count",
		"openai {\n base_url a\n rename x\n}":                      "a name and a value",
		"openai {\n base_url a\n rename x y\n rename x z\n}":       "already specified",
		"openai {\n base_url a\n routes\n}":                        "wrong argument count",
		"openai {\n base_url a\n health_interval 0\n}":             "not a duration",
	} {
		err := new(Runtime).UnmarshalCaddyfile(caddyfile.NewTestDispenser(in))
		if err == nil || !strings.Contains(strings.ToLower(err.Error()), want) || strings.Contains(err.Error(), "sk-") {
			t.Errorf("%q: got %v, want …%s…", in, err, want)
		}
	}
}
