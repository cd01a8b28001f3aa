// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"context"
	"crypto/tls"
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// TestBase wants the address of the gateway that its client has used, also behind a proxy
// that ends TLS, and nobody else's word for it.
func TestBase(t *testing.T) {
	proto, host := "X-Forwarded-Proto", "X-Forwarded-Host"
	for name, c := range map[string]struct {
		trusted any
		tls     bool
		header  map[string]string
		want    string
	}{
		"plain":            {nil, false, nil, "http://gw:8080"},
		"TLS":              {false, true, nil, "https://gw:8080"},
		"trusted":          {true, false, map[string]string{proto: "https", host: "gateway.example.com"}, "https://gateway.example.com"},
		"trusted, a port":  {true, false, map[string]string{proto: "HTTPS", host: "[2001:db8::1]:8443"}, "https://[2001:db8::1]:8443"},
		"trusted, several": {true, false, map[string]string{proto: "https, http", host: "a.example, b"}, "https://a.example"},
		"trusted, TLS":     {true, true, map[string]string{proto: "http"}, "http://gw:8080"},
		"says nothing":     {true, true, nil, "https://gw:8080"},
		"not trusted":      {false, false, map[string]string{proto: "https", host: "evil.example"}, "http://gw:8080"},
		"nobody says":      {nil, false, map[string]string{proto: "https", host: "evil.example"}, "http://gw:8080"},
		"another scheme":   {true, false, map[string]string{proto: "javascript", host: "a"}, "http://a"},
		"a path":           {true, false, map[string]string{host: "a/b"}, "http://gw:8080"},
		"a user":           {true, false, map[string]string{host: "u@a"}, "http://gw:8080"},
		"a query":          {true, false, map[string]string{host: "a?b"}, "http://gw:8080"},
		"no port":          {true, false, map[string]string{host: "a:"}, "http://gw:8080"},
		"no name":          {true, false, map[string]string{host: ":1"}, "http://gw:8080"},
		"a line":           {true, false, map[string]string{host: "a\nb"}, "http://gw:8080"},
		"long":             {true, false, map[string]string{host: strings.Repeat("a", 1000)}, "http://gw:8080"},
	} {
		vars := map[string]any{caddyhttp.TrustedProxyVarKey: c.trusted}
		r, err := http.NewRequestWithContext(context.WithValue(t.Context(), caddyhttp.VarsCtxKey, vars), "POST", "http://gw:8080"+submitPath, nil)
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range c.header {
			r.Header.Set(name, value)
		}
		if c.tls {
			r.TLS = new(tls.ConnectionState)
		}
		if got := (&exchange{r: r}).base(); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
