// SPDX-License-Identifier: Apache-2.0

package auth

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// site is a server of Caddy with the provider before a handler that says who
// asked, and from where.
const site = `{
	"listen": ["%s:0"],
	"protocols": ["h1"],
	"automatic_https": {"disable": true},
	"trusted_proxies": {"source": "static", "ranges": [%s]},
	"routes": [{"handle": [
		{"handler": "authentication", "providers": {"agentfm": {"api_keys_file": %q}}},
		{"handler": "static_response", "body":
			"{http.auth.user.id} {http.auth.user.scope} {http.auth.user.models} {http.vars.client_ip}"}
	]}]
}`

// startCaddy runs Caddy with two servers, one of which trusts proxies on this
// machine, and returns their addresses.
func startCaddy(t *testing.T, file string) (plain, trusting string) {
	t.Helper()
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	no := false
	err := caddy.Run(&caddy.Config{
		Admin: &caddy.AdminConfig{Disabled: true, Config: &caddy.ConfigSettings{Persist: &no}},
		AppsRaw: caddy.ModuleMap{"http": json.RawMessage(fmt.Sprintf(`{"servers": {"plain": %s, "trusting": %s}}`,
			fmt.Sprintf(site, "127.0.0.1", "", file), fmt.Sprintf(site, "localhost", `"127.0.0.0/8", "::1"`, file)))},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
	})
	app, err := caddy.ActiveContext().App("http")
	if err != nil {
		t.Fatal(err)
	}
	address := func(name string) string {
		return "http://" + app.(*caddyhttp.App).Servers[name].Listeners()[0].Addr().String()
	}
	return address("plain"), address("trusting")
}

// get sends a request with headers in pairs of name and value.
func get(t *testing.T, url string, headers ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header[headers[i]] = append(r.Header[headers[i]], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// TestCaddy has the provider in Caddy: identity and address are not what headers
// say, unless a trusted proxy says it.
func TestCaddy(t *testing.T) {
	freshFailures(t)
	file := filepath.Join(t.TempDir(), "keys")
	writeKeys(t, file, "ann the-key-of-ann-123 models=b,A scope=run\n")
	plain, trusting := startCaddy(t, file)
	right := []string{"Authorization", "Bearer the-key-of-ann-123"}
	claims := []string{
		"X-User", "root", "X-Token-User-Id", "root", "X_User", "root", "Remote-User", "root", "Http.auth.user.id", "root",
		"X-Webauth-User", "root", "X-Forwarded-User", "root", "Http_auth_user_id", "root",
		"X-Forwarded-For", "203.0.113.9", "X-Real-Ip", "203.0.113.9", "Forwarded", "for=203.0.113.9", "Client_ip", "203.0.113.9",
	}
	for _, url := range []string{plain, trusting} {
		want := "ann run a,b 127.0.0.1"
		if url == trusting {
			want = "ann run a,b 203.0.113.9"
		}
		if resp, body := get(t, url, append(claims, right...)...); resp.StatusCode != 200 || body != want {
			t.Errorf("got %d %q, want %q", resp.StatusCode, body, want)
		}
		resp, _ := get(t, url, claims...)
		if resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") != realm {
			t.Errorf("got %d, %q", resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
		}
	}
	wrong := []string{"Authorization", "Bearer a-wrong-key-of-length"}
	for i := range maxFailures { // of another forwarded address each, which nobody believes
		resp, _ := get(t, plain, append([]string{"X-Forwarded-For", fmt.Sprintf("203.0.113.%d", 100+i)}, wrong...)...)
		if resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") != realm+`, error="invalid_token"` {
			t.Errorf("guess %d: got %d, %q", i, resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
		}
	}
	for _, url := range []string{plain, trusting} { // they count together
		resp, _ := get(t, url, append([]string{"X-Forwarded-For", "127.0.0.1"}, right...)...)
		if resp.StatusCode != 401 || resp.Header.Get("Retry-After") != "60" || resp.Header.Get("WWW-Authenticate") != realm {
			t.Errorf("the right key after %d guesses: got %d, %v", maxFailures, resp.StatusCode, resp.Header)
		}
	}
	if resp, _ := get(t, trusting, append([]string{"X-Forwarded-For", "203.0.113.100"}, right...)...); resp.StatusCode != 200 {
		t.Errorf("another client of a trusted proxy: got %d", resp.StatusCode)
	}
}

// The rights of a key go with its user, and with no other.
func TestEstablished(t *testing.T) {
	r, err := http.NewRequest(http.MethodGet, "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if id := Established(r, "ann"); id.ID != "ann" || !id.MayUse("x") || !id.MayRun() || !id.MayRead() {
		t.Errorf("outside of Caddy: got %+v", id)
	}
	vars := make(map[string]any)
	r = r.WithContext(context.WithValue(r.Context(), caddyhttp.VarsCtxKey, vars))
	ann := &Identity{ID: "ann", read: true, models: map[string]bool{"a": true}}
	caddyhttp.SetVar(r.Context(), identityVar, ann)
	if id := Established(r, "ann"); id != ann {
		t.Errorf("got %+v", id)
	}
	if id := Established(r, "bob"); id.ID != "bob" || !id.MayUse("x") || !id.MayRun() {
		t.Errorf("another user: got %+v", id)
	}
	vars[identityVar] = "ann"
	if id := Established(r, "ann"); id.ID != "ann" || !id.MayRun() {
		t.Errorf("a variable of a configuration: got %+v", id)
	}
}

func TestUnmarshalCaddyfile(t *testing.T) {
	for input, want := range map[string]string{
		"agentfm_auth {\n api_keys a {env.B}\n}":           `{"api_keys":["a","{env.B}"]}`,
		"agentfm_auth {\n api_keys_file f\n}":              `{"api_keys_file":"f"}`,
		"agentfm_auth {\n api_keys a\n api_keys_file f\n}": `{"api_keys":["a"],"api_keys_file":"f"}`,
		"agentfm_auth":                                          "want api_keys or api_keys_file",
		"agentfm_auth {\n}":                                     "want api_keys or api_keys_file",
		"agentfm_auth x {\n api_keys a\n}":                      "wrong argument count",
		"agentfm_auth {\n api_keys\n}":                          "wrong argument count",
		"agentfm_auth {\n api_keys_file a b\n}":                 "wrong argument count",
		"agentfm_auth {\n api_keys_file a\n api_keys_file b\n}": "already specified",
		"agentfm_auth {\n retries 2\n}":                         "unrecognized option",
	} {
		var p Provider
		got := ""
		if err := p.UnmarshalCaddyfile(caddyfile.NewTestDispenser(input)); err != nil {
			got = err.Error()
		} else {
			b, err := json.Marshal(&p)
			if err != nil {
				t.Fatal(err)
			}
			got = string(b)
		}
		if !strings.Contains(got, want) || strings.HasPrefix(want, "{") && got != want {
			t.Errorf("%q: got %s", input, got)
		}
	}
}

func TestProvisionRefuses(t *testing.T) {
	for config, want := range map[string]string{
		`{}`:                                  "want api_keys or api_keys_file",
		`{"api_keys": []}`:                    "api_keys: no key",
		`{"api_keys": ["short"]}`:             "api_keys: key 1 has fewer",
		`{"api_keys_file": "/nonexistent/k"}`: "api_keys_file: ",
		`{"api_key": "x"}`:                    "unknown field",
	} {
		err := caddy.Validate(&caddy.Config{Admin: &caddy.AdminConfig{Disabled: true}, AppsRaw: caddy.ModuleMap{
			"http": json.RawMessage(`{"servers": {"s": {"listen": ["127.0.0.1:0"], "routes": [{"handle":
				[{"handler": "authentication", "providers": {"agentfm": ` + config + `}}]}]}}}`),
		}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", config, err)
		}
	}
}
