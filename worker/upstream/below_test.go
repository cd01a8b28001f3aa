// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"net/url"
	"path"
	"strings"
	"testing"
)

// FuzzBelow wants every request to go to the server, below its API.
func FuzzBelow(f *testing.F) {
	for _, s := range []string{
		"/v1/models", "/v1", "/v1/", "/v1x", "/v1/../x", "/v1/%2e%2e/x", "/v1/..%2fx", "/v1/a%2Fb?c=d", "/v1/..\\x", "//v1/x", "/%76%31/x",
		"http://evil.test/v1/x", "/v1/..;/x", "/v1//x", "*", "",
	} {
		f.Add(s)
	}
	base, err := ParseBase("http://127.0.0.1:1/base path/v1")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		from, err := url.ParseRequestURI(s)
		if err != nil {
			return
		}
		u, ok := Below(base, from)
		if !ok {
			return
		}
		again, err := url.Parse(u.String())
		if err != nil || again.Host != base.Host || again.Scheme != base.Scheme || again.User != nil || again.Path != u.Path {
			t.Fatalf("%q goes to %q (%v)", s, u, err)
		}
		for _, p := range []string{again.Path, strings.ReplaceAll(again.Path, `\`, "/")} {
			if p = path.Clean(p); p != base.Path && !strings.HasPrefix(p, base.Path+"/") {
				t.Errorf("%q goes to %q", s, u)
			}
		}
	})
}
