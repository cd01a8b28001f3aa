// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/Agent-FM/caddy-agentfm/router"
)

// TestModules wants each policy to be what it says.
func TestModules(t *testing.T) {
	for name, input := range map[string]string{
		"least_loaded": "least_loaded",
		"power_of_two": "power_of_two",
		"round_robin":  "round_robin",
		"sticky":       "sticky {\nheader X-Chat X-Session\n}",
	} {
		mod, err := caddyfile.UnmarshalModule(dispenser(input), Namespace+"."+name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, ok := mod.(router.Selector); !ok {
			t.Errorf("%s is no selector", name)
		}
	}
}

func dispenser(input string) *caddyfile.Dispenser {
	d := caddyfile.NewTestDispenser(input)
	d.Next()
	return d
}

func TestErrors(t *testing.T) {
	for input, want := range map[string]string{
		"least_loaded twice":                   "wrong argument count",
		"round_robin {\nn 2\n}":                "unrecognized option 'n'",
		"power_of_two {\nn 2\n}":               "unrecognized option 'n'",
		"sticky {\nheader\n}":                  "wrong argument count",
		"sticky {\nheader X\nheader Y\n}":      "already specified",
		"sticky {\nheader X {\nheader Y\n}\n}": "unexpected block",
		"sticky X-Session":                     "wrong argument count",
	} {
		name, _, _ := strings.Cut(input, " ")
		_, err := caddyfile.UnmarshalModule(dispenser(input), Namespace+"."+name)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", input, err, want)
		}
	}
}

func TestHeaderNames(t *testing.T) {
	for name, valid := range map[string]bool{"X-Session": true, "a b": false, "X:": false, "": false} {
		if err := (&Sticky{Headers: []string{name}}).Validate(); (err == nil) != valid {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestSession(t *testing.T) {
	s := new(Sticky)
	if err := s.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	h := http.Header{}
	h.Set("x-agentfm-session", "one")
	if got := s.Session(h); got != "one" {
		t.Errorf("got %q", got)
	}
	s.Headers = []string{"X-A", "X-B"}
	h.Set("X-B", "b")
	if got := s.Session(h); got != "b" {
		t.Errorf("got %q", got)
	}
	h.Set("X-A", "a")
	if got := s.Session(h); got != "a" {
		t.Errorf("got %q", got)
	}
	if got := s.Session(http.Header{}); got != "" {
		t.Errorf("got %q", got)
	}
}
