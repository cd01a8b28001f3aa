// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Keys of the key files here.
const (
	aliceKey   = "alice-has-this-key-and-tells-nobody"
	readerKey  = "a-key-that-may-only-read-what-is-there"
	runnerKey  = "a-key-that-may-only-run-tasks-and-more"
	expiredKey = "a-key-whose-time-is-over-for-long-now"
	leavingKey = "a-key-that-is-about-to-be-taken-away"
	otherKey   = "a-key-of-the-other-site-and-its-file"
)

const keyFile = "alice " + aliceKey + "\nreader " + readerKey + " scope=read\nrunner " + runnerKey + " scope=run\nold " +
	expiredKey + " expires=2020-01-01T00:00:00Z\n"

// wantChallenge wants an answer that says which credentials are wanted.
func wantChallenge(t *testing.T, a received, status int, code, more string) {
	t.Helper()
	a.failed(t, status, code)
	if got, want := a.header.Values("WWW-Authenticate"), `Bearer realm="agentfm"`+more; !slices.Equal(got, []string{want}) {
		t.Errorf("WWW-Authenticate %q, want %q", got, want)
	}
}

// B13: headers with keys that are none, each with its status and challenge, as
// bytes on a connection.
func TestB13Headers(t *testing.T) {
	t.Parallel()
	keys, others := t.TempDir(), t.TempDir()
	writeFile(t, keys, "keys", keyFile+"leaving "+leavingKey+"\n")
	writeFile(t, others, "keys", otherKey+"\n")
	f := startFront(t, trustLoopback,
		"@other path /other/*\n\thandle @other {\n\t\turi strip_prefix /other\n\t\tagentfm {\n\t\t\tapi_keys_file "+others+"/keys\n\t\t}\n\t}\n"+
			"\thandle {\n\t\tagentfm {\n\t\t\tapi_keys_file "+keys+"/keys\n\t\t}\n\t}")
	const malformed, invalid, scope = "unauthorized", "invalid_api_key", "insufficient_scope"
	token, rights := `, error="invalid_token"`, `, error="insufficient_scope"`
	rows := []struct {
		name, method, path, headers string
		status                      int
		code, challenge             string
	}{
		{"right", "GET", "/v1/models", "Authorization: Bearer " + aliceKey, 200, "", ""},
		{"lower case scheme", "GET", "/v1/models", "Authorization: bearer " + aliceKey, 200, "", ""},
		{"upper case scheme and name", "GET", "/v1/models", "AUTHORIZATION: BEARER " + aliceKey, 200, "", ""},
		{"two spaces", "GET", "/v1/models", "Authorization: Bearer  " + aliceKey, 200, "", ""},
		{"space at the end", "GET", "/v1/models", "Authorization: Bearer " + aliceKey + "  ", 200, "", ""},
		{"none", "GET", "/v1/models", "", 401, malformed, ""},
		{"empty", "GET", "/v1/models", "Authorization:", 401, malformed, ""},
		{"two, both right", "GET", "/v1/models", "Authorization: Bearer " + aliceKey + "\r\nAuthorization: Bearer " + aliceKey, 401, malformed, ""},
		{"two, the first right", "GET", "/v1/models", "Authorization: Bearer " + aliceKey + "\r\nAuthorization: Basic eDp5", 401, malformed, ""},
		{"two, the second right", "GET", "/v1/models", "Authorization: Bearer x\r\nAuthorization: Bearer " + aliceKey, 401, malformed, ""},
		{"two in one", "GET", "/v1/models", "Authorization: Bearer " + aliceKey + ", Bearer " + aliceKey, 401, malformed, ""},
		{"Basic", "GET", "/v1/models", "Authorization: Basic YWxpY2U6YWxpY2U=", 401, malformed, ""},
		{"Basic with a key", "GET", "/v1/models", "Authorization: Basic " + aliceKey, 401, malformed, ""},
		{"no scheme", "GET", "/v1/models", "Authorization: " + aliceKey, 401, malformed, ""},
		{"scheme alone", "GET", "/v1/models", "Authorization: Bearer", 401, malformed, ""},
		{"tab", "GET", "/v1/models", "Authorization: Bearer\t" + aliceKey, 401, malformed, ""},
		{"tab after a space", "GET", "/v1/models", "Authorization: Bearer \t" + aliceKey, 401, malformed, ""},
		{"colon", "GET", "/v1/models", "Authorization: Bearer: " + aliceKey, 401, malformed, ""},
		{"quotes", "GET", "/v1/models", `Authorization: Bearer "` + aliceKey + `"`, 401, invalid, token},
		{"upper case key", "GET", "/v1/models", "Authorization: Bearer " + strings.ToUpper(aliceKey), 401, invalid, token},
		{"half a key", "GET", "/v1/models", "Authorization: Bearer " + aliceKey[:20], 401, invalid, token},
		{"more than a key", "GET", "/v1/models", "Authorization: Bearer " + aliceKey + "x", 401, invalid, token},
		{"64 KiB", "GET", "/v1/models", "Authorization: Bearer " + strings.Repeat("x", 64<<10), 401, malformed, ""},
		{"not ASCII", "GET", "/v1/models", "Authorization: Bearer ключ-é-\xff-" + aliceKey, 401, invalid, token},
		{"its hash", "GET", "/v1/models", "Authorization: Bearer sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", 401, invalid, token},
		{"a name", "GET", "/v1/models", "Authorization: Bearer alice", 401, invalid, token},
		{"of another file", "GET", "/v1/models", "Authorization: Bearer " + otherKey, 401, invalid, token},
		{"of this file, elsewhere", "GET", "/other/v1/models", "Authorization: Bearer " + aliceKey, 401, invalid, token},
		{"there", "GET", "/other/v1/models", "Authorization: Bearer " + otherKey, 200, "", ""},
		{"expired", "GET", "/v1/models", "Authorization: Bearer " + expiredKey, 401, invalid, token},
		{"reads", "GET", "/api/workers", "Authorization: Bearer " + readerKey, 200, "", ""},
		{"may not run", "POST", "/v1/completions", "Authorization: Bearer " + readerKey, 403, scope, rights},
		{"may not run either", "POST", "/api/execute", "Authorization: Bearer " + readerKey, 403, scope, rights},
		{"may not read", "GET", "/v1/models", "Authorization: Bearer " + runnerKey, 403, scope, rights},
		{"in another header", "GET", "/v1/models", "X-Api-Key: " + aliceKey, 401, malformed, ""},
		{"for a proxy", "GET", "/v1/models", "Proxy-Authorization: Bearer " + aliceKey, 401, malformed, ""},
		{"in a cookie", "GET", "/v1/models", "Cookie: Authorization=Bearer " + aliceKey, 401, malformed, ""},
		{"with an underscore", "GET", "/v1/models", "HTTP_AUTHORIZATION: Bearer " + aliceKey, 401, malformed, ""},
		{"in the query", "GET", "/v1/models?api_key=" + aliceKey + "&access_token=" + aliceKey, "", 401, malformed, ""},
	}
	for i, row := range rows {
		for _, overTLS := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/TLS %t", row.name, overTLS), func(t *testing.T) {
				length := ""
				if row.method == "POST" {
					length = "Content-Length: 2\r\n"
				}
				a, err := f.raw(t, overTLS, row.method, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 192.0.2.%d\r\n%s%s\r\n\r\n%s",
					row.method, row.path, i+1, length, row.headers, map[string]string{"POST": "{}"}[row.method]))
				switch {
				case err != nil:
					t.Fatal(err)
				case row.code != "":
					wantChallenge(t, a, row.status, row.code, row.challenge)
				case a.status != row.status:
					t.Errorf("%d %s", a.status, a.body)
				}
			})
		}
	}
	t.Run("2 MiB", func(t *testing.T) { // the server's own limit, before any handler
		a, err := f.raw(t, false, "GET", "GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+strings.Repeat("x", 2<<20)+"\r\n\r\n")
		if err == nil && a.status != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
	t.Run("revoked", func(t *testing.T) {
		url := f.url + "/v1/models"
		if a := wantAsk(t, httpClient, "GET", url, "", bearer(leavingKey)...); a.status != 200 {
			t.Fatalf("before: %d", a.status)
		}
		writeFile(t, keys, "keys", keyFile)
		began := time.Now()
		var a received
		await(t, "the key is refused", func() bool {
			a = wantAsk(t, httpClient, "GET", url, "", bearer(leavingKey)...)
			return a.status != 200
		})
		t.Logf("a key that was taken away served for %v more", time.Since(began).Round(time.Millisecond))
		wantChallenge(t, a, 401, invalid, token)
	})
	for _, key := range []string{aliceKey, readerKey, runnerKey, expiredKey, leavingKey, otherKey} {
		if strings.Contains(f.log.String(), key) {
			t.Errorf("the log has the key %q", key)
		}
	}
}

// B13: how long the refusal takes tells nothing about a key: one that is wrong in
// its last character takes as long as one like no other. Too much else runs here
// for a limit on the difference, but at night.
func TestB13Timing(t *testing.T) {
	f := startFront(t, trustLoopback, "agentfm {\n\t\tapi_keys "+aliceKey+"\n\t}")
	samples := scaled(1_000, 100_000)
	tokens := []string{aliceKey[:len(aliceKey)-1] + "?", "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"}
	took := make([][]time.Duration, len(tokens))
	c := newClient(t, 1)
	for i := range samples {
		for k := range tokens {
			k := (k + i) % len(tokens)
			from := fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255)
			req, err := http.NewRequest("GET", f.url+"/v1/models", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+tokens[k])
			req.Header.Set("X-Forwarded-For", from)
			began := time.Now()
			a, err := send(c, req)
			took[k] = append(took[k], time.Since(began))
			if err != nil || a.status != 401 {
				t.Fatalf("%d %s %v", a.status, a.body, err)
			}
		}
	}
	medians := make([]time.Duration, len(tokens))
	for k := range took {
		slices.Sort(took[k])
		medians[k] = took[k][samples/2]
	}
	ratio := float64(medians[0]) / float64(medians[1])
	t.Logf("%d samples each: wrong in the last character %v, unknown %v, ratio %.3f", samples, medians[0], medians[1], ratio)
	if nightly && (ratio < 0.95 || ratio > 1.05) {
		t.Errorf("the medians differ by more than 5 %%: %v", medians)
	}
}

// guess sends n wrong keys from each of some addresses, at the same time, and
// returns how often each status came.
func (f *front) guess(t *testing.T, n int, addresses ...string) map[int]int {
	t.Helper()
	c := newClient(t, 1)
	c.Transport.(*http.Transport).MaxIdleConnsPerHost = 8
	statuses := make(map[int]int)
	var mu sync.Mutex
	var wg sync.WaitGroup
	work := make(chan [2]string)
	for range 8 {
		wg.Go(func() {
			for w := range work {
				a, err := ask(t.Context(), c, "GET", f.url+"/v1/models", nil, "Authorization", "Bearer "+w[0], "X-Forwarded-For", w[1])
				if err != nil {
					t.Error(err)
					continue
				}
				mu.Lock()
				statuses[a.status]++
				mu.Unlock()
			}
		})
	}
	for i := range n {
		for _, address := range addresses {
			work <- [2]string{fmt.Sprintf("guess-number-%d-of-many", i), address}
		}
	}
	close(work)
	wg.Wait()
	c.CloseIdleConnections()
	return statuses
}

// A5: who guesses keys is soon refused with every key, the right one too; others
// are served; and neither the log nor the memory grows with the guesses.
func TestA5BruteForce(t *testing.T) {
	t.Parallel()
	const budget = 30 // of one address in a minute
	f := startFront(t, trustLoopback, "agentfm {\n\t\tapi_keys "+aliceKey+"\n\t}")
	status := func(t *testing.T, address string) int {
		t.Helper()
		return wantAsk(t, httpClient, "GET", f.url+"/v1/models", "", append(bearer(aliceKey), "X-Forwarded-For", address)...).status
	}
	guesses := scaled(2_500, 50_000)
	began := time.Now()
	one := f.guess(t, guesses, "198.51.100.7")
	// A window ends after a minute, which the guesses may outlast.
	windows := func() int { return 1 + int(time.Since(began)/time.Minute) }
	if one[401] < budget || one[401] > windows()*budget || one[401]+one[429] != guesses {
		t.Errorf("from one address: %v", one)
	}
	if nightly { // into a window in which there are guesses
		f.guess(t, budget+1, "198.51.100.7")
	}
	if windows() == 1 || nightly {
		a := wantAsk(t, httpClient, "GET", f.url+"/v1/models", "", append(bearer(aliceKey), "X-Forwarded-For", "198.51.100.7")...)
		a.failed(t, 429, "rate_limited")
		if a.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	for _, address := range []string{"198.51.100.8", "127.0.0.1", "2001:db8::1"} {
		if got := status(t, address); got != 200 {
			t.Errorf("another client at %s: %d", address, got)
		}
	}

	// Of IPv6, a /64 is one source, whichever of its addresses is used.
	addresses := make([]string, 50)
	for i := range addresses {
		addresses[i] = fmt.Sprintf("2001:db8:0:7:%x:%x:%x:%x", rand.N(1<<16), rand.N(1<<16), rand.N(1<<16), i)
	}
	began = time.Now()
	network := f.guess(t, guesses/len(addresses), addresses...)
	if network[401] < budget || network[401] > windows()*budget {
		t.Errorf("from one /64: %v", network)
	}
	if got := status(t, "2001:db8:0:7:ffff::"); got != 429 && windows() == 1 {
		t.Errorf("a new address of the /64, with the right key: %d", got)
	}
	if got := status(t, "2001:db8:0:8::1"); got != 200 {
		t.Errorf("the next /64: %d", got)
	}

	// 50 addresses at once each have their own.
	for i := range addresses {
		addresses[i] = fmt.Sprintf("203.0.113.%d", i+1)
	}
	began = time.Now()
	many := f.guess(t, guesses/len(addresses), addresses...)
	if n := len(addresses); many[401] != n*budget && windows() == 1 {
		t.Errorf("from %d addresses: %v", n, many)
	}
	if got := status(t, addresses[49]); got != 429 && windows() == 1 {
		t.Errorf("the last of them, with the right key: %d", got)
	}

	if nightly { // more sources than are remembered
		before := f.liveHeap(t)
		for i := range 100_000 / 50 {
			for k := range addresses {
				addresses[k] = fmt.Sprintf("10.%d.%d.%d", i>>8, i&255, k)
			}
			f.guess(t, 1, addresses...)
		}
		grown := f.liveHeap(t) - before
		t.Logf("the live heap grew by %d KiB", grown>>10)
		if grown > 32<<20 {
			t.Errorf("the live heap grew by %d KiB", grown>>10)
		}
	}
	f.wantFewFailureLines(t)
}

// wantFewFailureLines wants at most ten log entries about failed logins in any
// second, and one about each client.
func (f *front) wantFewFailureLines(t *testing.T) {
	t.Helper()
	type second struct {
		client string
		at     int64
	}
	lines, all := make(map[second]int), make(map[int64]int)
	for line := range strings.Lines(f.log.String()) {
		var entry struct {
			Msg, Client string
			TS          float64
		}
		if json.Unmarshal([]byte(line), &entry) != nil || entry.Msg != "authentication failed" {
			continue
		}
		lines[second{entry.Client, int64(entry.TS)}]++
		all[int64(entry.TS)]++
	}
	if len(all) == 0 {
		t.Error("the log says nothing of failed logins")
	}
	// Seconds of the clock are not those of the limit: two may meet in one.
	if most := slices.Max(append(slices.Collect(maps.Values(all)), 0)); most > 20 {
		t.Errorf("%d lines in one second", most)
	}
	if most := slices.Max(append(slices.Collect(maps.Values(lines)), 0)); most > 2 {
		t.Errorf("%d lines about one client in one second", most)
	}
}

// identityHeaders are headers by which others than Caddy say who a client is.
var identityHeaders = []string{
	"X-User", "X-User-Id", "X-Token-User-Id", "X-Token-Subject", "X_Token_User_Id", "X.Token.User.Id", "X-Remote-User", "Remote-User", "REMOTE_USER",
	"X-Forwarded-User", "X-Forwarded-Email", "X-Auth-Request-User", "X-WebAuth-User", "X-Authentik-Username", "X-Api-Key", "User-Id", "X-AgentFM-User",
	"X-Http-Auth-User-Id", "Http.auth.user.id", "Http-Auth-User-Id", "X-Consumer-Id", "X-Authenticated-Userid", "Tailscale-User-Login", "X-Amzn-Oidc-Identity",
	"OpenAI-Organization", "OpenAI-Project", "Cookie",
}

// addressHeaders are headers by which proxies say where a client is.
var addressHeaders = []string{"X-Forwarded-For", "X_Forwarded_For", "X-Real-IP", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP", "Fly-Client-IP",
	"X-Cluster-Client-IP", "X-Originating-IP", "Forwarded"}

// A6: headers neither let anybody in nor change who a client is taken for, nor,
// but for X-Forwarded-For from a trusted proxy, where it is.
func TestA6IdentityHeaders(t *testing.T) {
	t.Parallel()
	for _, trusted := range []bool{false, true} {
		t.Run(fmt.Sprintf("trusted proxy %t", trusted), func(t *testing.T) {
			t.Parallel()
			global, address := "", "127.0.0.1"
			if trusted {
				global, address = trustLoopback, "192.0.2.66"
			}
			dir := t.TempDir()
			writeFile(t, dir, "keys", "alice "+aliceKey+"\nroot another-key-that-only-root-has\n")
			f := startFront(t, global, "log\n\tagentfm {\n\t\tapi_keys_file "+dir+"/keys\n\t\ttrust_caddy_auth\n\t}")
			spoofed := []string{"X-Claim", "root"}
			for _, name := range identityHeaders {
				spoofed = append(spoofed, name, "root")
			}
			for _, name := range addressHeaders {
				spoofed = append(spoofed, name, "192.0.2.66")
			}
			for version := 1; version <= 2; version++ {
				c := newClient(t, version)
				for _, path := range []string{"/v1/models", "/api/workers", "/api/tasks/x/artifacts"} {
					wantAsk(t, c, "GET", "https://"+f.host+path, "", spoofed...).failed(t, 401, "unauthorized")
				}
				if a := wantAsk(t, c, "GET", "https://"+f.host+"/v1/models", "", append(spoofed, bearer(aliceKey)...)...); a.status != 200 {
					t.Errorf("with a key: %d %s", a.status, a.body)
				}
			}
			f.awaitLog("handled request")
			await(t, "the access log", func() bool { return strings.Count(f.log.String(), `"user_id":"alice"`) >= 2 })
			f.wantIdentity(t, address)
		})
	}
}

// wantIdentity wants the access log to know alice and nobody else, at an address.
func (f *front) wantIdentity(t *testing.T, address string) {
	t.Helper()
	for line := range strings.Lines(f.log.String()) {
		var entry struct {
			Msg     string
			Status  int
			User    string `json:"user_id"`
			Request struct {
				ClientIP string `json:"client_ip"`
				Headers  http.Header
			}
		}
		if json.Unmarshal([]byte(line), &entry) != nil || entry.Msg != "handled request" || entry.Request.Headers.Get("X-Claim") == "" {
			continue
		}
		if want := map[int]string{200: "alice"}[entry.Status]; entry.User != want || entry.Request.ClientIP != address {
			t.Errorf("status %d for user %q at %s", entry.Status, entry.User, entry.Request.ClientIP)
		}
	}
}

// A6: without trusted proxies a spoofed address gives no new guesses, and takes
// none from others.
func TestA6SpoofedAddresses(t *testing.T) {
	t.Parallel()
	f := startFront(t, "", "agentfm {\n\t\tapi_keys "+aliceKey+"\n\t}")
	var addresses []string
	for i := range 50 {
		addresses = append(addresses, fmt.Sprintf("192.0.2.%d", i))
	}
	began := time.Now()
	got := f.guess(t, 2, addresses...)
	if got[401] != 30 && time.Since(began) < time.Minute {
		t.Errorf("%v", got)
	}
	a := wantAsk(t, httpClient, "GET", f.url+"/v1/models", "", append(bearer(aliceKey), "X-Forwarded-For", "203.0.113.9")...)
	if time.Since(began) < time.Minute {
		a.failed(t, 429, "rate_limited")
	}
}
