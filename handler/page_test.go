// SPDX-License-Identifier: Apache-2.0

package handler

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"golang.org/x/net/html"

	"github.com/Agent-FM/caddy-agentfm/internal/await"
	"github.com/Agent-FM/caddy-agentfm/ledger"
	"github.com/Agent-FM/caddy-agentfm/mesh"
)

// hostile is what a stranger may call itself, or say.
const hostile = `</p></bdi></title><script>alert(1)</script><img src=x onerror=alert(1)>'"` + "`{{.}}\u202egnp.\x1b]52;c;x\a"

// elements counts the elements of a page, and wants none that runs or fetches something.
func elements(t *testing.T, page string) map[string]int {
	t.Helper()
	count := make(map[string]int)
	for z := html.NewTokenizer(strings.NewReader(page)); ; {
		kind := z.Next()
		if kind == html.ErrorToken {
			return count
		}
		token := z.Token()
		if kind != html.StartTagToken && kind != html.SelfClosingTagToken {
			continue
		}
		count[token.Data]++
		if strings.Contains(" script img iframe object embed link form svg base ", " "+token.Data+" ") {
			t.Errorf("the page has %s", token)
		}
		for _, a := range token.Attr {
			if strings.HasPrefix(a.Key, "on") || a.Key == "style" || a.Key == "src" || a.Key == "href" && strings.Contains(a.Val, ":") {
				t.Errorf("the page has %s", token)
			}
		}
	}
}

func TestPeerPage(t *testing.T) {
	n := openLedger(t, ledger.Settings{Floor: -0.5})
	w := worker(peerA, hostile, "llama3.2")
	w.Author, w.Capability, w.ImageRef, w.ImageDigest = hostile, hostile, hostile, hostile
	f := &fakeMesh{workers: []mesh.WorkerInfo{w}}
	g := serve(t, f, func(g *gate, _ *serverSettings) { g.h.ledger = ledger.Using(n.Ledger) })
	if a := g.do(t, "GET", "/ui/peer/"+peerB, ""); a.status != 200 || !strings.Contains(a.body, "Nothing is said of it.") || !strings.Contains(a.body, peerB) {
		t.Errorf("nothing is known: %d %s", a.status, a.body)
	}
	for _, language := range []string{"en", `x" onload="alert(1)`} {
		body, err := json.Marshal(map[string]any{"text": hostile, "language": language, "rating": 0.5})
		if err != nil {
			t.Fatal(err)
		}
		if a := g.do(t, "POST", "/v1/peers/"+peerA+"/comments/self", string(body)); a.status != 201 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	a := g.do(t, "GET", "/ui/peer/"+peerA, "")
	if a.status != 200 || a.header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("%d %v", a.status, a.header)
	}
	count := elements(t, a.body)
	if count["tr"] != 5 || count["h1"] != 1 || count["caption"] != 1 || count["th"] != 4 {
		t.Errorf("%v", count)
	}
	for _, want := range []string{"&lt;script&gt;alert(1)", `lang="en"`, "&#43;0.50", "honesty", "On probation", "verified", "\uFFFDgnp.\uFFFD]52"} {
		if !strings.Contains(a.body, want) {
			t.Errorf("the page has no %q:\n%s", want, a.body)
		}
	}
	if strings.ContainsAny(a.body, "\u202e\x1b\a") || strings.Contains(a.body, "onload") {
		t.Errorf("%s", a.body)
	}
	for name, want := range map[string]string{
		"Content-Security-Policy": "default-src 'none'; style-src 'sha256-", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
	} {
		if got := a.header.Get(name); !strings.HasPrefix(got, want) || strings.Contains(got, "unsafe") {
			t.Errorf("%s: %q", name, got)
		}
	}
	for range 20 {
		n.judge(peerA, false)
	}
	await.Until(t, "it is refused", func() bool {
		return strings.Contains(g.do(t, "GET", "/ui/peer/"+peerA, "").body, "its score is below the floor")
	})
	if a := g.do(t, "HEAD", "/ui/peer/"+peerA, ""); a.status != 200 || a.body != "" {
		t.Errorf("HEAD: %d %q", a.status, a.body)
	}
}

// TestPeerPages turns the pages of a long log.
func TestPeerPages(t *testing.T) {
	n := openLedger(t, ledger.Settings{Floor: -0.5})
	g := serveLedger(t, n)
	for i := range pageLines + 5 {
		if a := g.do(t, "POST", "/v1/peers/"+peerA+"/comments/self", fmt.Sprintf(`{"text":"comment %d."}`, i)); a.status != 201 {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	for _, c := range []struct {
		query      string
		rows       int
		has, lacks string
	}{
		{"", pageLines, `<a href="?offset=50">Older</a>`, "Newer"},
		{"?offset=50", 5, `<a href="?offset=0">Newer</a>`, "Older"},
		{"?offset=1000", 0, "No more is said of it.", "Older"},
	} {
		a := g.do(t, "GET", "/ui/peer/"+peerA+c.query, "")
		if rows := strings.Count(a.body, `class="text"`); rows != c.rows || !strings.Contains(a.body, c.has) || strings.Contains(a.body, c.lacks) {
			t.Errorf("%s: %d rows\n%s", c.query, rows, a.body)
		}
	}
}

// TestPeerPageRights gives the page to whom the other routes give what is in it, and takes
// the key as the password that a browser asks for.
func TestPeerPageRights(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	const all, some, run = "key-for-everything", "key-for-one-model!", "key-for-runs-only!"
	if err := os.WriteFile(file, []byte("all "+all+"\nsome "+some+" models=other\nrun "+run+" scope=run\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}}
	g := serve(t, f, func(g *gate, _ *serverSettings) { g.h.APIKeysFile = file })
	basic := func(user, password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	for _, c := range []struct {
		name, method, path, auth string
		status                   int
	}{
		{"no key", "GET", "/ui/peer/" + peerA, "", 401},
		{"a key", "GET", "/ui/peer/" + peerA, "Bearer " + all, 200},
		{"a password", "GET", "/ui/peer/" + peerA, basic("", all), 200},
		{"a password of somebody", "GET", "/ui/peer/" + peerA, basic("ann", all), 200},
		{"a wrong password", "GET", "/ui/peer/" + peerA, basic("", "wrong"), 401},
		{"the key as a name", "GET", "/ui/peer/" + peerA, basic(all, ""), 401},
		{"another model", "GET", "/ui/peer/" + peerA, basic("", some), 404},
		{"another right", "GET", "/ui/peer/" + peerA, basic("", run), 403},
		{"no peer id", "GET", "/ui/peer/x", basic("", all), 400},
		{"below", "GET", "/ui/peer/" + peerA + "/x", "Bearer " + all, 404},
		{"no offset", "GET", "/ui/peer/" + peerA + "?offset=-1", basic("", all), 400},
		{"a post", "POST", "/ui/peer/" + peerA, basic("", all), 405},
		{"a password elsewhere", "GET", "/v1/models", basic("", all), 401},
	} {
		var headers []string
		if c.auth != "" {
			headers = []string{"Authorization", c.auth}
		}
		a := g.do(t, c.method, c.path, "", headers...)
		page := strings.HasPrefix(c.path, "/ui/")
		if a.status != c.status || page != strings.HasPrefix(a.header.Get("Content-Type"), "text/html") {
			t.Errorf("%s: %d %v\n%s", c.name, a.status, a.header, a.body)
		}
		if challenge := a.header.Get("WWW-Authenticate"); page && (a.status == 401) != strings.HasPrefix(challenge, "Basic ") {
			t.Errorf("%s: %q", c.name, challenge)
		}
	}
	for _, path := range []string{"/ui", "/ui/", "/ui/peers", "/uix"} {
		if ours(path) {
			t.Errorf("%s is ours", path)
		}
	}
}

// TestForeignPasswords wants other sites not to spend the guesses of who looks at them.
func TestForeignPasswords(t *testing.T) {
	const key = "a-key-of-sixteen-chars"
	basic := func(password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte("x:"+password))
	}
	for name, c := range map[string]struct {
		path, password, site, user string
		first, afterwards          int // the status of the right key, too
	}{
		"another site":          {"/ui/peer/" + peerA, "wrong", "cross-site", "", 401, 200},
		"another host":          {"/ui/peer/" + peerA, "wrong", "same-site", "", 401, 200},
		"no page":               {"/v1/models", "wrong", "cross-site", "", 401, 200},
		"another site, and key": {"/ui/peer/" + peerA, key, "cross-site", "", 401, 200},
		"a link, and key":       {"/ui/peer/" + peerA, key, "cross-site", "?1", 200, 200},
		"a link":                {"/ui/peer/" + peerA, "wrong", "cross-site", "?1", 401, 429},
		"the address bar":       {"/ui/peer/" + peerA, "wrong", "none", "?1", 401, 429},
		"no browser":            {"/ui/peer/" + peerA, "wrong", "", "", 401, 429},
	} {
		g := serve(t, &fakeMesh{workers: []mesh.WorkerInfo{worker(peerA, "HR", "llama3.2")}}, withKeys(key))
		first := g.do(t, "GET", c.path, "", "Authorization", basic(c.password), "Sec-Fetch-Site", c.site, "Sec-Fetch-User", c.user).status
		for range 40 {
			g.do(t, "GET", c.path, "", "Authorization", basic(c.password), "Sec-Fetch-Site", c.site, "Sec-Fetch-User", c.user)
		}
		if got := g.do(t, "GET", "/v1/models", "", "Authorization", "Bearer "+key).status; first != c.first || got != c.afterwards {
			t.Errorf("%s: %d, and %d afterwards", name, first, got)
		}
	}
}
