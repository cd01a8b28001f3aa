// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"strings"
	"testing"
)

func TestRules(t *testing.T) {
	for _, tc := range []struct {
		rule, to string
		want     bool
	}{
		{"api.example.com:443", "api.example.com:443", true},
		{"api.example.com:443", "API.Example.COM.:443", true},
		{"api.example.com:443", "api.example.com:0443", true},
		{"api.example.com:443", "api.example.com:80", false},
		{"api.example.com:443", "example.com:443", false},
		{"api.example.com:443", "x.api.example.com:443", false},
		{"api.example.com:443", "api.example.com.evil.example:443", false},
		{"api.example.com:443", "xapi.example.com:443", false},
		{"*.example.com:443", "a.example.com:443", true},
		{"*.example.com:443", "a.b.example.com:443", true},
		{"*.example.com:443", "example.com:443", false},
		{"*.example.com:443", "evilexample.com:443", false},
		{"*.example.com:443", "10.0.0.1:443", false},
		{"10.0.0.1:80", "10.0.0.1:80", true},
		{"10.0.0.1:80", "[::ffff:10.0.0.1]:80", true}, // the same address
		{"10.0.0.1:80", "10.0.0.1:81", false},
		{"10.0.0.1:80", "10.0.0.2:80", false},
		{"[2001:db8::1]:80", "[2001:0db8:0::1]:80", true},
	} {
		r, err := parseRule(tc.rule)
		if err != nil {
			t.Fatal(err)
		}
		to, err := parseTarget(tc.to)
		if err != nil || r.covers(to) != tc.want {
			t.Errorf("%s covers %s: %v (%v), want %v", tc.rule, tc.to, r.covers(to), err, tc.want)
		}
	}
}

func TestNoTargets(t *testing.T) {
	for _, s := range []string{
		"", ":", "a", "a:", ":1", "a:0", "a:65536", "a:-1", "a:+1", "a:1:1", "a:b", "a:1/x", "a:1?x", "u@a:1", "u:p@a:1", "http://a:1", "//a:1",
		"a b:1", "a\x00:1", "a\n:1", "a%2e:1", "a..b:1", ".a:1", "..:1", ".:1", "[a]:1", "[]:1", "[10.0.0.1:1", "::1:1", "[fe80::1%eth0]:1",
		"127.1:1", "2130706433:1", "0x7f000001:1", "0x7f.1:1", "127.0.0.1.:1", "127.0.0.01:1", "017700000001:1", "a.0x10:1", "1.2.3.4.5:1",
		"ａ:1", "127。0。0。1:1", "*.a:1", strings.Repeat("a", 64) + ":1", strings.Repeat("a.", 127) + "aa:1",
	} {
		if got, err := parseTarget(s); err == nil {
			t.Errorf("%q is %s", s, got)
		}
	}
}

func FuzzTarget(f *testing.F) {
	for _, s := range []string{"a.example:443", "[::1]:80", "[::ffff:1.2.3.4]:1", "A.:1", "127.1:1", "u@a:1", "a:1 ", "[::1%lo]:1"} {
		f.Add(s)
	}
	allowed, _ := parseRule("*.example.com:443")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseTarget(s)
		if err != nil {
			return
		}
		again, err := parseTarget(got.String())
		if err != nil || again != got || got.port == 0 || (got.name == "") != got.addr.IsValid() {
			t.Errorf("%q is %s, which is %s (%v)", s, got, again, err)
		}
		if strings.ContainsAny(got.String(), "@/\\?#% \t\r\n\x00") {
			t.Errorf("%q is %q", s, got)
		}
		if allowed.covers(got) && !strings.HasSuffix(strings.TrimSuffix(strings.ToLower(s[:strings.LastIndexByte(s, ':')]), "."), ".example.com") {
			t.Errorf("%q is let through as %s", s, got)
		}
	})
}
