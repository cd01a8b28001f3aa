// SPDX-License-Identifier: Apache-2.0

//go:build unix

package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/html"
)

// The page of a peer, whose name and comments are hostile, is shown by a real browser, which
// sends the API key as a password: it runs nothing and has all as text.
func TestPeerPage(t *testing.T) {
	chromium := need(t, "AGENTFM_TEST_CHROMIUM")
	port := freePorts(t, 1)[0]
	p := start(t, home(t), caddyfile("\n\t\t\tlisten /ip4/127.0.0.1/tcp/"+port+"\n\t\t\tdiscovery off\n\t\t\tbootstrap off", withKey))
	peer := p.awaitLog("mesh node is open")["peer"].(string)
	const name = `<script>owned()</script>`
	const text = `</p></td></table><script>document.documentElement.id = 'owned'</script>` +
		`<img src=x onerror="document.documentElement.id='owned'"><style>body{display:none}</style><meta http-equiv=refresh content="0;url=/health">`
	s := newStranger(t)
	s.AgentName, s.Author, s.Model = name, `"><b>`, "m"
	s.publish("/ip4/127.0.0.1/tcp/"+port+"/p2p/"+peer, nil)
	p.awaitWorkers(1)
	p.awaitLog("serving initial configuration") // the ledger is open
	resp, err := p.send(t.Context(), http.MethodPost, "/v1/peers/"+s.PeerID+"/comments/self", map[string]any{"text": text, "rating": -1, "language": `en" onload="owned()`})
	if err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatal(resp, err)
	}
	_ = resp.Body.Close()

	page := dump(t, chromium, strings.Replace(p.url, "://", "://any:"+testKey+"@", 1)+"/ui/peer/"+s.PeerID)
	doc, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string][]string) // the texts of elements
	for n := range doc.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		for _, a := range n.Attr {
			if a.Val == "owned" || strings.HasPrefix(a.Key, "on") {
				t.Errorf("%s has %+v", n.Data, a)
			}
		}
		var b strings.Builder
		for c := range n.Descendants() {
			if c.Type == html.TextNode {
				b.WriteString(c.Data)
			}
		}
		found[n.Data] = append(found[n.Data], b.String())
	}
	if h1 := found["h1"]; len(h1) != 1 || h1[0] != name || found["title"][0] != "Reputation of "+s.PeerID {
		t.Errorf("the page is %q of %q", found["title"], h1)
	}
	if len(found["script"])+len(found["img"])+len(found["b"]) > 0 || len(found["style"]) != 1 || !strings.Contains(strings.Join(found["td"], "\n"), text) {
		t.Errorf("%s", page)
	}
}

// dump returns what a browser makes of a page.
func dump(t *testing.T, chromium, url string) string {
	t.Helper()
	profile, err := os.MkdirTemp("", "agentfm-browser") // its last process may still write
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(profile)
	browser := exec.Command(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
		"--user-data-dir="+profile, "--dump-dom", url)
	browser.Env = append(os.Environ(), "TMPDIR="+profile)
	browser.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // with all of its processes
	out, log := &logBuffer{}, &logBuffer{}
	browser.Stdout, browser.Stderr = out, log
	if err := browser.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(patience, func() { _ = syscall.Kill(-browser.Process.Pid, syscall.SIGKILL) })
	err = browser.Wait()
	late.Stop()
	_ = syscall.Kill(-browser.Process.Pid, syscall.SIGKILL)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	return out.String()
}
